"""Lesson 04: samplers that draw from another distribution than the one that is scored, and what gives them away."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from ..algorithms import step_zero
from ..engine import sampling
from ..engine.models import score_actions
from ..maths.diagnostics import step_zero_gaps
from ..maths.losses import entropy
from ..maths.masking import mask_from_lengths, masked_mean
from ..maths.records import Samples
from .lesson import TinyLesson

STEPS = 24  # tokens a response may have
COLUMNS = ("KL", "entropy\nerror", "ratio\nerror", "KL", "ratio\nerror", "sampler\ngap")
GAPS = ("kl_before_first_update", "ratio_error_before_first_update", "sampler_forward_gap")
# What rounding may do. On the right the library's own limits; on the left sampler and forward pass are compared.
LIMITS = (1e-5, 1e-4, 1e-4, *(step_zero.LIMITS[name][0] for name in GAPS))


class Careless(nn.Module):
    """A model as a careless sampler uses it: its logits filtered, some of its inputs forgotten."""

    def __init__(self, model: nn.Module, *filters: Callable, temperature: float, forgets: tuple[str, ...] = ()):
        super().__init__()
        self.model, self.filters, self.temperature, self.forgets = model, filters, temperature, forgets
        self.entropies: list[Tensor] = []  # of every step
        self.impossible: list[Tensor] = []  # share of the vocabulary at -inf

    def forward(self, input_ids: Tensor, **inputs: object):
        output = self.model(input_ids, **{name: x for name, x in inputs.items() if name not in self.forgets})
        logits = output.logits[:, -1].float() / self.temperature
        for change in self.filters:
            logits = change(input_ids, logits)
        self.entropies.append(entropy(logits))
        self.impossible.append((logits == -torch.inf).float().mean())
        output.logits = logits[:, None]
        return output


class Written(NamedTuple):
    """Texts, and how the sampler saw its own choices: mean entropy in nats, share of logits at -inf."""

    samples: Samples
    entropy: Tensor
    impossible: Tensor


def write(
    lesson: TinyLesson, model: nn.Module, *filters: Callable, temperature: float = 0.7, forgets: tuple[str, ...] = ()
) -> Written:
    """Responses to the lesson's 64 posts, always from the same random draws."""
    sampler = Careless(model, *filters, temperature=temperature, forgets=forgets)
    with mock.patch.object(sampling, "DROP_WHEN", 2.0):  # finished rows stay: every step shows all of them
        samples = _sample(lesson, sampler, rows=64, temperature=1.0)  # the temperature is among the filters
    entropies = torch.stack(sampler.entropies, dim=1)
    wrote = mask_from_lengths(samples.sequence_lengths - samples.prompt_lengths, entropies.shape[1])
    return Written(samples, masked_mean(entropies, wrote), torch.stack(sampler.impossible).mean())


@torch.no_grad()
def six_numbers(written: Written, policy: nn.Module, reference: nn.Module, temperature: float = 0.7) -> list[float]:
    """By the sampler's log-probs: KL, entropy error, ratio error. By a forward pass: KL, ratio error, sampler gap."""
    samples, mask = written.samples, written.samples.action_mask
    old, entropies = score_actions(policy, samples.tokens, mask, temperature=temperature)
    ref, _ = score_actions(reference, samples.tokens, mask, temperature=temperature)
    new, _ = score_actions(policy, samples.tokens, mask, temperature=temperature)  # once more, as training does
    kl, ratio, _ = step_zero_gaps(new, samples.sampler_log_probs, ref, samples.sampler_log_probs, mask).values()
    by_forward_pass = step_zero_gaps(new, old, ref, samples.sampler_log_probs, mask).values()
    entropy_error = (written.entropy - masked_mean(entropies, mask)).abs()
    return [float(number) for number in (kl, entropy_error, ratio, *by_forward_pass)]


def draw_causes(matrix: Mapping[str, tuple[str, list[float]]]) -> None:
    """A row for each cause, its six numbers, and what to do about it; bold and shaded beyond rounding."""
    import matplotlib.pyplot as plt

    numbers, limits = torch.tensor([found for _, found in matrix.values()]), torch.tensor(LIMITS)
    _, axes = plt.subplots(figsize=(10.5, 0.42 * len(matrix)))
    axes.imshow((numbers / limits).clamp(min=1).log10().clamp(max=4), cmap="Oranges", vmax=6, aspect="auto")
    for row, (remedy, found) in enumerate(matrix.values()):
        for column, number in enumerate(found):
            weight = "bold" if number > LIMITS[column] else "normal"
            axes.text(column, row, f"{number:.2g}", ha="center", va="center", weight=weight)
        axes.text(5.6, row, remedy, va="center")
    axes.axvline(2.5, color="black")
    axes.set_xticks(range(6), COLUMNS)
    axes.set_yticks(range(len(matrix)), matrix)
    axes.xaxis.tick_top()
    axes.grid(False)
    axes.set_xlabel("old log-probs of the sampler (the bug)   |   of a forward pass (the fix)")
    plt.show()


def random_gpt2(lesson: TinyLesson, seed: int = 0) -> nn.Module:
    """A model that learns its positions, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(lesson.tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2,
        eos_token_id=lesson.tokenizer.eos_token_id, bos_token_id=None, pad_token_id=lesson.tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def with_dropout(llama: nn.Module, share: float = 0.1) -> nn.Module:
    """A copy in training mode whose attention drops a share of its weights."""
    dropping = copy.deepcopy(llama).train()
    for layer in dropping.model.layers:
        layer.self_attn.attention_dropout = share
    return dropping


@torch.no_grad()
def times_as_long(lesson: TinyLesson, model: nn.Module, rows: int) -> float:
    """How many times longer it takes to write full-length responses than to score them; each the best of three."""

    def generate() -> Samples:
        return _sample(lesson, model, rows, temperature=0.7, eos_token_id=-1)

    texts = generate()
    return _seconds(generate) / _seconds(lambda: score_actions(model, texts.tokens, texts.action_mask, temperature=0.7))


def _seconds(action: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _sample(lesson: TinyLesson, model: nn.Module, rows: int, **how: object) -> Samples:
    lengths = lesson.rollout.prompt_lengths[:rows]
    width = int(lengths.max())
    prompts = lesson.rollout.tokens[:rows, :width].where(
        mask_from_lengths(lengths, width), lesson.tokenizer.pad_token_id
    )
    tokens = dict(eos_token_id=lesson.tokenizer.eos_token_id, pad_token_id=lesson.tokenizer.pad_token_id)
    draws = sampling.uniforms(0, "lesson 04", rows=64, steps=STEPS)[:rows]
    return sampling.sample(model, prompts, lengths, draws, **{**tokens, **how})
