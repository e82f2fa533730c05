"""A budget as a table: what is alive at the highest moment of each phase."""

from __future__ import annotations

import html
from collections.abc import Sequence

from .phases import Phase, total

MIB = 2**20
COLUMNS = 12  # characters of one


def table(phases: Sequence[Phase]) -> list[list[str]]:
    """Headings, one line for whatever takes bytes in some phase, and the sum."""
    what = list(dict.fromkeys(name for phase in phases for name, amount in phase.rows.items() if amount))
    lines = [[name, *(in_mib(phase.rows.get(name, 0)) for phase in phases)] for name in what]
    return [["MiB", *(phase.name for phase in phases)], *lines, ["all", *(in_mib(phase.total) for phase in phases)]]


def in_mib(amount: int) -> str:
    return f"{amount / MIB:,.1f}" if amount else ""


def peak_line(phases: Sequence[Phase]) -> str:
    highest = max(phases, key=total)
    return f"highest in {highest.name} ({highest.when}): {highest.total / MIB:,.1f} MiB"


def as_text(phases: Sequence[Phase]) -> str:
    lines = table(phases)
    first = max(len(line[0]) for line in lines)
    widths = [max(len(cell) for cell in column) + 2 for column in list(zip(*lines))[1:]]
    written = ["".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], widths))])
               for line in lines]  # fmt: skip
    return "\n".join([*written, peak_line(phases)])


def as_html(phases: Sequence[Phase]) -> str:
    head, *lines = table(phases)
    heads = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{html.escape(line[0])}</th>'
        + "".join(f"<td>{cell}</td>" for cell in line[1:]) + "</tr>"
        for line in lines
    )  # fmt: skip
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table><p>{html.escape(peak_line(phases))}</p>"
