"""The README's pictures of the instruments: a real JupyterLab, light and dark, each instrument as a lesson shows it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.widgets import SETUP, lab_and_browser
from tests.browser import lab as jupyter

FOLDER = Path(__file__).parent.parent / "docs" / "widgets"
COLOURS = 128  # of each picture's own palette: a third of the bytes, and no difference that one could see
WIDTH = 920  # pixels
RUN = """
from dataclasses import replace
from rlhf_lib.course.short_runs import SHORT
from rlhf_lib.course.widgets import training_dashboard

EIGHT = replace(SHORT, updates=8)
"""


@dataclass(frozen=True)
class Shot:
    """A file's name, the instrument's title, the cell that makes it, what its controls are set to, and a line of
    Python to wait for.
    """

    name: str
    title: str
    cell: str
    view: dict = field(default_factory=dict)
    wait: str = ""


SHOTS = [
    Shot(
        "mask_explorer", "Mask explorer",
        "mask_explorer(shipped[0].values[some], shipped[0].action_mask[some], name='values')", {"padding": "nan"},
    ),
    Shot(
        "alignment_microscope", "Alignment microscope", "alignment_microscope(*shipped)", {"cell": ["td_errors", 52]},
    ),
    Shot("gae_explorer", "GAE explorer", "gae_explorer(*shipped, row=1)", {"lam": 0.8, "rewards": [[4, 2.0]]}),
    Shot("kl_explorer", "KL explorer", "kl_explorer(**test_divergence.of_a_row(1))", {"draws": 1000}),
    Shot("clip_explorer", "Clip explorer", "clip_explorer(*test_clip.moved())"),
    Shot(
        "bug_board", "Blind bug board", "bug_board(7)",
        {"update": 7, "struck": ["KL averaged over the padded row"], "asked": ["component tests"]},
    ),
    Shot("float_bits", "Float bits", "float_bits(test_floats.NUMBERS)", {"chosen": 2, "value": 18_743_296.0}),
    Shot(
        "memory_budget", "Memory budget", "memory_budget(test_memory.PLAN)",
        {"model": 3, "vocabulary": 128_256, "trainable_layers": 16, "numbers": "bfloat16", "prompt": 512, "gpu": 24},
    ),
    Shot("training_dashboard", "Training dashboard", "training_dashboard(EIGHT).start()", wait="_ = it.wait()"),
]  # fmt: skip


def shrink(path: Path) -> None:
    from PIL import Image

    image = Image.open(path).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def take(lab, browser, shot: Shot) -> None:
    """Both pictures of one instrument."""
    jupyter.write_notebook(lab.folder / f"{shot.name}.ipynb", SETUP + RUN, f"it = {shot.cell}\nit")
    notebook = jupyter.Notebook(browser, lab, f"{shot.name}.ipynb")
    notebook.page.set_viewport_size({"width": WIDTH + 420, "height": 1900})
    notebook.run_all()
    notebook.run_python(shot.wait)
    widget = notebook.widget(shot.title)
    view = widget.evaluate("root => root.state().view")
    notebook.set_view(widget, "it", {**view, **shot.view})
    notebook.page.mouse.move(0, 0)
    for theme in ("Light", "Dark"):
        notebook.theme(theme)
        path = FOLDER / f"{shot.name}_{theme.lower()}.png"
        widget.screenshot(path=path, animations="disabled")
        shrink(path)
        print(f"{path.relative_to(FOLDER.parent.parent)}  {path.stat().st_size // 1024} KiB")
    notebook.close()


def main(names: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with lab_and_browser() as (lab, browser):
        for shot in SHOTS:
            if not names or shot.name in names:
                take(lab, browser, shot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which ones, e.g. gae_explorer (default: all)")
    main(parser.parse_args().names)
