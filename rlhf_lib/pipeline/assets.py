"""The files shipped with the package, how they are made, and whether they are the ones that were made.

assets/base/          the tiny Llama, pre-trained on the mixture
assets/sft/           what `run --preset tiny --seed 0` makes of it
assets/reward_model/  likewise
assets/rollout.safetensors  64 posts as PPO sees them before its first update, for the lessons
assets/runs/          what whole runs logged, see `recordings`
assets/manifest.json  SHA-256 of every file, versions, and the command
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ..algorithms import ppo
from ..algorithms.parts import Parts
from ..engine.files import digest
from ..engine.loading import save_tokenizer
from ..engine.run_folder import RunFolder
from ..maths.records import Rollout
from ..worlds.tiny_tldr import pretrain
from ..worlds.tiny_tldr.tokenizer import make_tokenizer
from ..worlds.tiny_tldr.world import ASSETS
from .recordings import build_recordings
from .run import Progress, Run
from .scales import world_of
from .settings import load_settings
from .stages import STAGES, ppo_state
from .texts import make_prompts

MANIFEST = ASSETS / "manifest.json"
ROLLOUT_POSTS = 64
COMMAND = "python -m rlhf_lib rebuild"


def build_base(progress: Progress) -> None:
    """Pre-train the base model (about half an hour on two cores)."""
    tokenizer = make_tokenizer()
    model = pretrain.new_base(tokenizer)
    for _ in progress("base", pretrain.pretrain(model, tokenizer), pretrain.STEPS):
        pass
    _ship("base", model, tokenizer)


def build_lesson_models(progress: Progress) -> None:
    """SFT and reward model as the tiny preset's seed 0 makes them, and one rollout before the first update."""
    settings = load_settings("tiny", ["engine.device=cpu"])  # what is shipped does not depend on who has a GPU
    with tempfile.TemporaryDirectory() as folder:
        out = RunFolder(folder)
        run = Run(settings, world_of(settings), out, out, Parts(), progress)
        for stage in ("sft", "preferences", "reward_model"):
            STAGES[stage](run)
        for name in ("sft", "reward_model"):
            shutil.copytree(out / name, ASSETS / name, dirs_exist_ok=True)
        _record_rollout(run)


def write_manifest(progress: Progress | None = None) -> None:
    """Name every shipped file by its hash."""
    import transformers

    files = {path.relative_to(ASSETS).as_posix(): digest(path) for path in _shipped()}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    MANIFEST.write_text(json.dumps({"command": COMMAND, "versions": versions, "sha256": files}, indent=2) + "\n")


BUILDERS: dict[str, Callable] = {
    "base": build_base,
    "lesson": build_lesson_models,
    "runs": build_recordings,
    "manifest": write_manifest,
}


def changed_files() -> list[str]:
    """Shipped files that are not the ones the manifest names, or that it does not name, or that are missing."""
    named = json.loads(MANIFEST.read_text())["sha256"]
    here = {path.relative_to(ASSETS).as_posix(): digest(path) for path in _shipped()}
    return sorted(name for name in named.keys() | here.keys() if named.get(name) != here.get(name))


def load_rollout() -> Rollout:
    """The recorded rollout: row b is post b of split "rollout" of `TinyTLDR(0)`."""
    from safetensors.torch import load_file

    return Rollout(**load_file(ASSETS / "rollout.safetensors"))


def _record_rollout(run: Run) -> None:
    from safetensors.torch import save_file

    prompts = make_prompts(run.world, run.world.posts("rollout", ROLLOUT_POSTS))
    rollout = ppo.collect(ppo_state(run), prompts, run.settings.ppo, run.parts)
    save_file({name: tensor.contiguous() for name, tensor in vars(rollout).items()}, ASSETS / "rollout.safetensors")


def _ship(name: str, model, tokenizer) -> None:
    model.save_pretrained(ASSETS / name)
    save_tokenizer(tokenizer, ASSETS / name)


def _shipped() -> list[Path]:
    return sorted(path for path in ASSETS.rglob("*") if path.is_file() and path != MANIFEST)
