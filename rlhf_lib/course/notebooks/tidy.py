"""One form for every committed notebook: nothing in it changes unless a cell or what it shows has changed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ...pipeline.errors import UserError

# What is random in a text, and what stands for it. tests/nbval_sanitize.cfg tells nbval the same.
RANDOM = {
    r"\bat 0x[0-9a-fA-F]{6,}": "at 0xADDRESS",
    r"[^\s'(]*ipykernel_\d+[/\\]\d+\.py": "cell.py",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
OURS = "course"  # a notebook's metadata that is kept
KEPT_OF_A_CELL = ("tags", "jupyter")  # `jupyter`: a cell that is folded
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
ABOVE_A_PACKAGE = re.compile(r"(?:[A-Za-z]:)?[/\\][^\s\x1b]*?[/\\](?=(?:rlhf_lib|site-packages|python3\.\d+)[/\\])")


def read(path: Path) -> NotebookNode:
    """A notebook; UserError if the file is not one."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is not a notebook: {str(error).splitlines()[0][:200]}") from None


def written(notebook: NotebookNode) -> str:
    """The text of its file."""
    return nbformat.writes(notebook) + "\n"


def tidy(notebook: NotebookNode) -> NotebookNode:
    """In place: what a front end adds and what differs from run to run is taken out."""
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    ours = {name: notebook.metadata[name] for name in [OURS] if name in notebook.metadata}
    notebook.metadata = nbformat.from_dict({**METADATA, **ours})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for place, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{place}")
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT_OF_A_CELL and v})
        if cell.cell_type == "code":
            cell.outputs = [_tidy_output(output, widgets) for output in _merged(cell.outputs)]
    return notebook


def without_outputs(notebook: NotebookNode) -> NotebookNode:
    """In place: as if it had never run."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def steady(text: str) -> str:
    """Object addresses and the kernel's temporary file names replaced."""
    for pattern, replacement in RANDOM.items():
        text = re.sub(pattern, replacement, text)
    return text


def _merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring prints as one output, stdout first: how they arrive in pieces is chance."""
    merged: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        if output.output_type != "stream":
            merged += [*_ordered(streams), output]
            streams = {}
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            streams[output.name] = output
    return merged + _ordered(streams)


def _ordered(streams: dict[str, NotebookNode]) -> list[NotebookNode]:
    for stream in streams.values():
        stream.text = re.sub(r".*\r(?=[^\n])", "", stream.text)  # a bar drawn again and again: its last state
    return [streams[name] for name in sorted(streams, reverse=True)]


def _tidy_output(output: NotebookNode, widgets: dict) -> NotebookNode:
    if output.output_type == "stream":
        output.text = steady(output.text)
    elif output.output_type == "error":
        output.evalue = steady(output.evalue)
        output.traceback = [ABOVE_A_PACKAGE.sub("", steady(line)) for line in output.traceback]
    else:
        for kind, value in output.data.items():
            if kind.startswith("text/") and isinstance(value, str):
                output.data[kind] = steady(value)
        _without_widget(output, widgets)
    return output


def _without_widget(output: NotebookNode, widgets: dict) -> None:
    """A live widget needs its kernel, and its ids are random: its page or picture stays in the file instead of it."""
    view = output.data.pop(WIDGET_VIEW, None)
    if view and not {"text/html", "image/png"} & output.data.keys():
        picture = _picture_in(view["model_id"], widgets)
        if picture:
            output.data["image/png"] = picture


def _picture_in(model_id: str, widgets: dict) -> str | None:
    """The first Image widget in a box, as base64."""
    model = widgets.get(model_id, {})
    if model.get("model_name") == "ImageModel" and model["state"].get("format", "png") == "png":
        return next((buffer["data"] for buffer in model.get("buffers", []) if buffer["path"] == ["value"]), None)
    children = model.get("state", {}).get("children", [])
    pictures = (_picture_in(child.removeprefix("IPY_MODEL_"), widgets) for child in children)
    return next((picture for picture in pictures if picture), None)
