"""Instruments on real tensors: they show what a learner's functions and a real model just produced.

    mask_explorer         lesson 01   toggle a mask; naive against masked statistics; a NaN in padding
    alignment_microscope  lesson 02   a rollout's rows by state and by action, and what each number was made from
    gae_explorer          lesson 03   gamma, lambda, an edited reward: how credit moves
    kl_explorer           lesson 04   temperature, top-k, top-p: what is cut, and what KL and its estimators make of it
    clip_explorer         lesson 05   every action by ratio and advantage; clip, loss and slope at a point set by hand
    bug_board             lesson 08   a blind run over healthy ones; suspects, instruments at a price, a verdict
    float_bits            lesson 09   a number bit by bit in float32, bfloat16 and FP16; its neighbours; overflow
    memory_budget         lesson 10   an update's memory by phase against a GPU; what each setting does to it
    training_dashboard    lesson 00   a PPO run while it trains; `replay_dashboard` shows a finished one

To write another one:

1. A class over `Instrument` (instrument.py) with `_esm = module("name")` and `_css = stylesheet("name")`, its
   `summary()` and `static_html()`, and a function in small letters that makes it from tensors.
2. `data` is what it shows, sent once; `view` is what its controls are set to, so that Python can read and set them.
   Both are `plain(...)` (plain.py): NaN and infinity survive; wherever order matters there is a list, not a dict.
3. static/name.js: `import {...} from "./base.js"` (one statement, for the linter; Python joins the files) and
   `export default instrument("Title", build)`. No build step, nothing fetched. Numbers pass `number()` on the way in
   and `show()` on the way out. Text goes through `make(..., {text})`, never through markup. Controls come from
   base.js: `choice`, `toggle`, `dropdown`, `slider`, `button`; `walkable` gives a grid its arrow keys.
4. static/name.css: colours only through the `--rw-...` variables of base.css, mixed from the theme. Whatever a colour
   says, a sign, word or border says too.
5. The page recomputes only what a control changes, in less than 100 ms (benchmarks/widgets.py), and tests/browser/
   compares it with numbers computed in Python.
"""

from .bugs import bug_board
from .clip import clip_explorer
from .credit import gae_explorer
from .dashboard import replay_dashboard, training_dashboard
from .divergence import kl_explorer
from .floats import float_bits
from .instrument import Instrument
from .masks import mask_explorer
from .memory import memory_budget
from .microscope import alignment_microscope

__all__ = [
    "Instrument",
    "alignment_microscope",
    "bug_board",
    "clip_explorer",
    "float_bits",
    "gae_explorer",
    "kl_explorer",
    "mask_explorer",
    "memory_budget",
    "replay_dashboard",
    "training_dashboard",
]
