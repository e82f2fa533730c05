"""What all instruments share: a widget whose state is plain data and which is readable without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"
IMPORT = re.compile(r'^import \{[^}]*\} from "\./base\.js";\n', re.MULTILINE)
NOTE = "This is what it shows at first: run the cell to use the instrument."


def module(name: str) -> str:
    """static/base.js and static/NAME.js as the one ES module that a widget may be: it cannot import its neighbours."""
    base, own = ((STATIC / f"{file}.js").read_text(encoding="utf-8") for file in ("base", name))
    return re.sub(r"^export ", "", base, flags=re.MULTILINE) + IMPORT.sub("", own)


def stylesheet(name: str) -> str:
    """static/base.css, then static/NAME.css."""
    return "\n".join((STATIC / f"{file}.css").read_text(encoding="utf-8") for file in ("base", name))


class Instrument(anywidget.AnyWidget):
    """One instrument; `data` is what it shows, `view` what its controls are set to. See the package's docstring.

    Both are made of dicts, lists, strings, numbers and booleans only. Where order matters it is a list's: notebooks
    sort the keys of dicts. Python may set either, the page follows; the controls write `view`, Python may observe it.
    """

    data = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    _ipython_display_ = None  # ipywidgets 7 would show the widget by this, and leave the table below out

    def summary(self) -> str:
        """A few words for `__repr__`, the same on every machine: notebooks are compared with it."""
        raise NotImplementedError

    def static_html(self) -> str:
        """What the instrument shows at first, as tables, for GitHub, for print and before the first run."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()})"

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": f"{self.static_html()}\n<p><em>{NOTE}</em></p>"}, metadata


def html_table(caption: str, head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A plain table; the first cell of each row is its header. Every text is escaped."""
    parts = [
        "<table>",
        f"<caption>{escape(caption)}</caption>",
        f"<thead><tr>{''.join(_html_cell('th', cell) for cell in head)}</tr></thead>",
        "<tbody>",
        *(_html_row(*row) for row in rows),
        "</tbody>",
        "</table>",
    ]
    return "\n".join(parts)


def _html_row(head: object, *cells: object) -> str:
    return f"<tr>{_html_cell('th', head)}{''.join(_html_cell('td', cell) for cell in cells)}</tr>"


def _html_cell(tag: str, text: object) -> str:
    return f"<{tag}>{escape(str(text))}</{tag}>"
