"""From a log to a diagnosis: the signs that are there, and the questions that could not be asked."""

from __future__ import annotations

from dataclasses import dataclass

from .logs import Log
from .signs import RULES, Rule, Sign

NOTHING = "no sign of a known bug"
BROKEN_OFF = "the loss is not finite"


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the doctor says of a log.

    signs      certain ones first
    not_asked  rules that read a column which the log lacks
    """

    updates: int
    signs: tuple[Sign, ...]
    not_asked: tuple[Rule, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """Each family of bugs that fits, once."""
        return tuple(dict.fromkeys(sign.family for sign in self.signs))

    @property
    def first(self) -> str:
        """The family to look at first, or that there is none."""
        return self.families[0] if self.signs else NOTHING

    def as_json(self) -> dict:
        """Plain data, for `--json`."""
        signs = [
            dict(family=sign.family, certain=sign.certain, says=sign.says, evidence=sign.evidence,
                 look_at=look_at(sign.family))
            for sign in self.signs
        ]  # fmt: skip
        not_asked = [dict(family=rule.family, reads=rule.reads) for rule in self.not_asked]
        return dict(updates=self.updates, signs=signs, not_asked=not_asked)

    def __str__(self) -> str:
        lines = [f"{self.updates} PPO updates: {self._verdict}"]
        for sign in self.signs:
            lines += [
                f"  [{'certain' if sign.certain else 'likely'}] {sign.family}",
                f"      seen     {sign.says}",
                f"      look at  {look_at(sign.family)}",
            ]
        if self.not_asked:
            lines.append("  not asked, for want of a column:")
            lines += [f"      {rule.family} ({', '.join(rule.reads)})" for rule in self.not_asked]
        if not self.signs:
            lines.append(
                "  That is no clean bill: some bugs of the museum leave no sign in a log. Test the components."
            )
        return "\n".join(lines)

    __repr__ = __str__

    @property
    def _verdict(self) -> str:
        count = len(self.families)
        return f"{count} kind{'s' if count > 1 else ''} of bug fit{'' if count > 1 else 's'}" if count else NOTHING


def diagnose(log: Log) -> Diagnosis:
    """Ask every rule."""
    signs = [sign for rule in RULES if (sign := rule.sign(log)) is not None]
    if log.ended_by:
        signs.insert(0, Sign(BROKEN_OFF, True, f"the run was broken off: {log.ended_by}", {}))
    signs.sort(key=lambda sign: not sign.certain)
    return Diagnosis(log.updates, tuple(signs), tuple(rule for rule in RULES if not log.has(*rule.reads)))


def look_at(family: str) -> str:
    """Where to look, of all rules of a family."""
    if family == BROKEN_OFF:
        return "the dump: python -m rlhf_lib.engine.dump names the first tensor that is not finite"
    return "; ".join(rule.look_at for rule in RULES if rule.family == family)
