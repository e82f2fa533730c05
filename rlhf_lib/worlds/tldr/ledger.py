"""The numbers of N+ to compare with, and what a deviation hints at. They stand in ledger.json, each with its source.

expected   quantity, value, tolerance (value +- tolerance agrees), unit, provenance, source; `values` where seeds differ
           much, `note` where the number needs one, `tokenizer` where it holds for lengths of that tokenizer only
hints      quantities (patterns), above and below (of measured - value; null: no bound), bug; the first that fits counts

Provenance, best first: CODE (read in the source of N+), CARD (published with the data), DERIVED (from such numbers),
PLOT (read by eye from a figure, +-0.005), DOCS (another project's documentation), WIKI (a secondary summary, not
checked against the paper).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

LEDGER = Path(__file__).parent / "ledger.json"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measured number beside that of N+."""

    quantity: str
    measured: float
    expected: float
    tolerance: float
    unit: str
    provenance: str
    source: str
    note: str  # what to know about the number, or nothing
    comparable: bool  # False: the number of N+ holds for another tokenizer
    hint: str  # the class of bug that such a deviation hints at, or nothing

    @property
    def agrees(self) -> bool:
        return abs(self.measured - self.expected) <= self.tolerance + 1e-9

    @property
    def line(self) -> str:
        """For the screen."""
        verdict = "another tokenizer" if not self.comparable else "agrees" if self.agrees else "differs"
        hint = f": {self.hint}" if self.hint else ""
        return (
            f"{self.quantity}: {self.measured:.6g} {self.unit} (N+ {self.expected:g} +- {self.tolerance:g}, "
            f"{self.provenance}) {verdict}{hint}"
        )


def compare(measured: Mapping[str, float], *, tokenizer: str = "") -> list[Finding]:
    """Each measured number that the ledger knows, in the ledger's order.

    measured   by dotted name, see `token_statistics.flat`
    tokenizer  a name or path, such as EleutherAI/pythia-1b-deduped; of another one than N+'s, lengths in tokens are
               shown beside N+'s, but no hint is drawn from them
    """
    return [
        _finding(entry, measured[entry["quantity"]], tokenizer)
        for entry in read_ledger()["expected"]
        if entry["quantity"] in measured
    ]


@cache
def read_ledger() -> dict:
    """The content of ledger.json."""
    return json.loads(LEDGER.read_text(encoding="utf-8"))


def _finding(entry: dict, measured: float, tokenizer: str) -> Finding:
    comparable = entry.get("tokenizer", "") in tokenizer.lower()
    deviation = measured - entry["value"]
    agrees = abs(deviation) <= entry["tolerance"] + 1e-9
    return Finding(
        measured=measured,
        expected=entry["value"],
        comparable=comparable,
        hint=_hint(entry["quantity"], deviation) if comparable and not agrees else "",
        note=entry.get("note", ""),
        **{name: entry[name] for name in ("quantity", "tolerance", "unit", "provenance", "source")},
    )


def _hint(quantity: str, deviation: float) -> str:
    for hint in read_ledger()["hints"]:
        low = -math.inf if hint["above"] is None else hint["above"]
        high = math.inf if hint["below"] is None else hint["below"]
        if low < deviation < high and any(fnmatchcase(quantity, pattern) for pattern in hint["quantities"]):
            return hint["bug"]
    return ""
