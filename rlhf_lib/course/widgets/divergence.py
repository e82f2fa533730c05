"""Lesson 04's instrument: what a sampler's settings cut away, and what KL, entropy and estimators make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...engine.sampling import uniforms
from ...maths.kl import kl_exact, kl_k1, kl_k2, kl_k3
from ...maths.losses import entropy
from .instrument import Instrument, html_table, module, stylesheet
from .plain import plain, show, token_texts

DRAWS = (10, 100, 1000)
SHOWN = 12  # the likeliest tokens; the others share a line
ROUNDING = 1e-9  # of sums over the vocabulary: less is 0
MOST = 2**17  # numbers in one page
ESTIMATORS = (kl_k1, kl_k2, kl_k3)


def kl_explorer(
    logits: Float[Tensor, "S V"],
    tokenizer,
    *,
    reference_logits: Float[Tensor, "S V"] | None = None,
    states: Sequence[str] | None = None,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int | None = None,
    score_temperature: float = 0.7,
    matrix: Sequence[Sequence[str]] = (),
    seed: int = 0,
) -> KlExplorer:
    """A sampler's temperature, top-k and top-p on real logits, beside the distribution that a forward pass scores.

    logits             [S, V] of the policy in a few states; tokenizer turns the V ids into text
    reference_logits   [S, V] of the reference there; left out, it has the policy's weights, as before the first update
    states             [S] what to call each state: the text that was read last, say
    temperature, top_p, top_k  of the sampler, applied as `generate` does: temperature, top-k (None: off), top-p
    score_temperature  of the forward pass that scores policy and reference
    matrix             rows of text to show below, the first one its headings
    seed               of the draws: the same for every setting
    """
    reference = logits if reference_logits is None else reference_logits
    names = [f"state {place}" for place in range(len(logits))] if states is None else list(states)
    width = logits.shape[-1]
    settings = dict(temperature=float(temperature), top_p=float(top_p), top_k=width if top_k is None else top_k)
    view = dict(state=0, **settings, score_temperature=float(score_temperature), draws=100)
    _refuse(logits, reference, names, view)
    view["top_k"] = min(view["top_k"], width)
    data = dict(
        logits=logits.double(), reference=[] if reference_logits is None else reference.double(), states=names,
        tokens=token_texts(torch.arange(width), tokenizer), matrix=list(matrix),
        uniforms=uniforms("kl_explorer", seed, rows=1, steps=max(DRAWS))[0],
    )  # fmt: skip
    return KlExplorer(data=plain(data), view=view)


def _refuse(logits: Tensor, reference: Tensor, names: Sequence[str], view: dict) -> None:
    """What the page could not show."""
    if logits.dim() != 2 or logits.shape != reference.shape:
        raise ValueError(f"logits must both be [S, V], got {tuple(logits.shape)} and {tuple(reference.shape)}")
    if logits.numel() > MOST:
        raise ValueError(f"{tuple(logits.shape)} logits are more than a page can hold ({MOST} numbers): fewer states")
    if len(names) != len(logits):
        raise ValueError(f"{len(names)} names for {len(logits)} states")
    if min(view["temperature"], view["score_temperature"]) <= 0:
        raise ValueError("temperatures must be above 0: at 0 nothing is left to compare")
    if not 0 < view["top_p"] <= 1 or view["top_k"] < 1:
        raise ValueError(f"top_p must be in (0, 1] and top_k 1 or more, got {view['top_p']} and {view['top_k']}")


class KlExplorer(Instrument):
    """See `kl_explorer`."""

    _esm = module("divergence")
    _css = stylesheet("divergence")

    def summary(self) -> str:
        view, width = self.view, len(self.data["tokens"])
        cut = f"temperature {view['temperature']:g}, top-p {view['top_p']:g}, top-k {_top_k_text(view['top_k'], width)}"
        return f"{len(self.data['logits'])} states, {width} tokens, {cut}, scored at {view['score_temperature']:g}"

    def static_html(self) -> str:
        tables = (self._tokens(), self._divergences(), self._estimators(), self._matrix())
        return "\n".join(table for table in tables if table)

    def logits(self) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """As the controls stand: of the sampler, of the scored policy and of the reference, [V] each; why each token
        is cut ("" where it is not).
        """
        view, data = self.view, self.data
        given = _numbers(data["logits"][view["state"]])
        reference = _numbers(data["reference"][view["state"]]) if data["reference"] else given
        sampler, reasons = filtered(given / view["temperature"], top_k=view["top_k"], top_p=view["top_p"])
        return sampler, given / view["score_temperature"], reference / view["score_temperature"], reasons

    def _tokens(self) -> str:
        sampler, scored, _, reasons = self.logits()
        s, p = sampler.softmax(-1), scored.softmax(-1)
        order = torch.sort(scored, descending=True, stable=True).indices.tolist()
        shown, rest = order[:SHOWN], order[SHOWN:]
        rows = [[self.data["tokens"][v], show(p[v]), show(s[v]), reasons[v] or "kept"] for v in shown]
        if rest:
            cut = sum(bool(reasons[v]) for v in rest)
            rows.append([f"{len(rest)} others", show(clean(p[rest].sum())), show(clean(s[rest].sum())), f"{cut} cut"])
        return html_table(self.data["states"][self.view["state"]], ["token", "scored", "sampled", ""], rows)

    def _divergences(self) -> str:
        sampler, scored, _, reasons = self.logits()
        entropies = map(entropy, (scored, sampler))
        divergences = kl_exact(scored, sampler), kl_exact(sampler, scored)
        rows = [
            ["tokens it can draw", len(reasons), sum(not reason for reason in reasons)],
            ["entropy, nats", *(show(clean(x)) for x in entropies)],
            ["KL(this || other), nats", *(show(clean(x)) for x in divergences)],
        ]
        return html_table("Scored and sampled", ["", "scored", "sampled"], rows)

    def _estimators(self) -> str:
        exact = show(clean(kl_exact(*self.logits()[1:3])))
        rows = (
            [title, name, *(show(clean(x)) for x in (drawn.mean(), expected, spread))]
            for title, name, drawn, expected, spread in self.estimates()
        )
        head = ["", "", f"mean of {self.view['draws']}", "expected", "spread of one"]
        return html_table(f"Estimates of KL(policy || reference), which is {exact}", head, rows)

    def estimates(self) -> Iterator[tuple[str, str, Tensor, Tensor, Tensor]]:
        """For each way to draw and to score, and each estimator: title, name, what the draws say, and its exact mean
        and standard deviation.
        """
        sampler, scored, reference, _ = self.logits()
        draws = _numbers(self.data["uniforms"][: self.view["draws"]])
        for title, drawn_from, said in (
            ("matched: drawn from what is scored", scored, scored),
            ("drawn by the sampler, scored anew", sampler, scored),
            ("drawn by the sampler, its own log-probs", sampler, sampler),
        ):
            tokens = inverse_cdf(drawn_from, draws)
            for estimator in ESTIMATORS:
                terms = _terms(estimator, said, reference)
                yield title, estimator.__name__.removeprefix("kl_"), terms[tokens], *_moments(drawn_from, terms)

    def _matrix(self) -> str:
        head, *rows = self.data["matrix"] or [[]]
        return html_table("Every cause, measured", head, rows) if rows else ""


def filtered(logits: Float[Tensor, "V"], *, top_k: int, top_p: float) -> tuple[Tensor, list[str]]:
    """The logits with -inf where top-k, and then top-p, cut; and which of the two it was, "" for what is kept.

    Top-k keeps what is as likely as the k-th. Top-p keeps the fewest of the likeliest whose mass reaches `top_p`, by
    what is left after top-k, and always one.
    """
    by_k = logits < logits.topk(top_k).values[-1]
    kept = logits.masked_fill(by_k, -torch.inf)
    ascending, order = torch.sort(kept, stable=True)
    cut = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    cut[-1] = False
    by_p = torch.empty_like(cut).scatter(0, order, cut) & ~by_k
    reasons = ["cut by top-k" if k else "cut by top-p" if p else "" for k, p in zip(by_k.tolist(), by_p.tolist())]
    return kept.masked_fill(by_p, -torch.inf), reasons


def inverse_cdf(logits: Float[Tensor, "V"], draws: Tensor) -> Tensor:
    """The token that each number in [0, 1) leads to, as the library's sampler draws."""
    cdf = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, draws * cdf[-1], right=True).clamp(max=len(logits) - 1)


def clean(x: Tensor | float) -> float:
    """0 for what is rounding only."""
    x = float(x)
    return 0.0 if abs(x) < ROUNDING else x


def _terms(estimator: Callable, p_logits: Tensor, q_logits: Tensor) -> Tensor:
    return estimator(p_logits.log_softmax(-1), q_logits.log_softmax(-1))


def _moments(logits: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `terms` under softmax(logits)."""
    s = logits.softmax(-1)
    mean = torch.where(s == 0, 0.0, s * terms).sum()
    return mean, torch.where(s == 0, 0.0, s * (terms - mean) ** 2).sum().sqrt()


def _numbers(entries: Sequence[float | str]) -> Tensor:
    return torch.tensor([float(entry) for entry in entries], dtype=torch.float64)


def _top_k_text(top_k: int, width: int) -> str:
    return "off" if top_k >= width else str(top_k)
