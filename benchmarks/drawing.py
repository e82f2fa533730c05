"""Pictures for the README: plain SVG, the same bytes every time."""

from __future__ import annotations

from pathlib import Path


def new_figure(columns: int = 1):
    """A figure and its axes, side by side."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "rlhf", "svg.fonttype": "path", "font.size": 11})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(7.2, 3.4), layout="constrained", facecolor="white", squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def save(figure, path: Path) -> None:
    """Without the date, so that only a change of the data changes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
