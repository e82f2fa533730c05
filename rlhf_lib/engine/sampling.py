"""The sampler: prompts in, whole responses out, one token at a time, and the same ones however the work is split."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from ..maths.alignment import action_mask_from_lengths, actions_of
from ..maths.masking import mask_from_lengths
from ..maths.records import Samples
from ..maths.shapes import Lengths, Tokens
from . import distributed, sharding
from .past import cache_name, cache_of

DROP_WHEN = 0.25  # copying the cache costs about as much as a step: do it when this share of its rows has ended


def uniforms(*key: object, rows: int, steps: int) -> Tensor:
    """[rows, steps] numbers in [0, 1) that depend on the key alone, for example (seed, stage, update).

    Row b, step t decides response token t of global row b: dropping finished rows, bucketing, resuming or splitting
    rows over processes changes no token.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(rows, steps, generator=generator, dtype=torch.float64)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Tokens,
    prompt_lengths: Lengths,
    uniforms: Tensor,
    *,
    temperature: float,
    eos_token_id: int,
    pad_token_id: int,
) -> Samples:
    """Continue each prompt until its EOS, or for as many tokens as `uniforms` has columns.

    prompts      [B, P] right-padded, prompt_lengths [B]
    uniforms     [B, N] numbers in [0, 1), see `uniforms`
    temperature  the policy is softmax(logits / temperature); 0 takes the likeliest token. No top-k, no top-p
    model        writes so many rows at a time as its attribute `sampled_at_once` says, if it has one
    returns      `Samples`, right-padded; sampler_log_probs are the sampler's own, to be compared with a forward pass
    """
    own = distributed.own_share(torch.arange(len(prompts), device=prompts.device))
    with sharding.whole(model) as writer:
        written = [
            _write(
                writer, prompts[rows], prompt_lengths[rows], uniforms[rows.cpu()],
                temperature=temperature, eos_token_id=eos_token_id, pad_token_id=pad_token_id,
            )
            for rows in own.split(getattr(model, "sampled_at_once", len(prompts)))
        ]  # fmt: skip
    whole = distributed.combine(own, len(prompts), *map(torch.cat, zip(*written, strict=True)))
    return _right_padded(prompts, prompt_lengths, *whole, pad_token_id)


def _write(
    model: nn.Module, prompts: Tokens, prompt_lengths: Lengths, uniforms: Tensor, *, temperature: float,
    eos_token_id: int, pad_token_id: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Responses [B, N] and their log-probs, padded on the right; their lengths [B], and whether each has its EOS."""
    rows, steps = uniforms.shape
    responses = torch.full((rows, steps), pad_token_id, device=prompts.device)
    log_probs = torch.zeros(rows, steps, device=prompts.device)
    lengths = torch.full((rows,), steps, device=prompts.device)
    has_eos = torch.zeros(rows, dtype=torch.bool, device=prompts.device)
    if rows == 0:  # more processes than rows
        return responses, log_probs, lengths, has_eos

    decoder = getattr(model, "decoder", Decoder)(model, *_pad_left(prompts, prompt_lengths, pad_token_id))
    alive, uniforms = torch.arange(rows, device=prompts.device), uniforms.to(prompts.device)
    for step in range(steps):  # row i of the decoder is row alive[i]; it stays for a while after its EOS
        tokens, chosen_log_probs = _choose(decoder.logits, uniforms[alive, step], temperature)
        running = ~has_eos[alive]
        responses[alive, step] = tokens.where(running, pad_token_id)
        log_probs[alive, step] = chosen_log_probs.where(running, 0)
        ends = running & (tokens == eos_token_id)
        has_eos[alive], lengths[alive] = ends | ~running, lengths[alive].where(~ends, step + 1)
        going_on = (running & ~ends).nonzero().squeeze(1)  # nothing else waits for a GPU: a token costs one such wait
        if step + 1 == steps or len(going_on) == 0:
            break
        if len(going_on) <= (1 - DROP_WHEN) * len(alive):
            decoder.keep(going_on)
            alive, tokens = alive[going_on], tokens[going_on]
        decoder.feed(tokens)
    return responses, log_probs, lengths, has_eos


class Decoder:
    """A model with its cache, fed one token a row; rows can be dropped."""

    def __init__(self, model: nn.Module, tokens: Tensor, mask: Tensor):
        self.model, self.mask = model, mask
        self.positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.cache = None
        self._forward(tokens)

    def feed(self, tokens: Tensor) -> None:
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        self.positions = self.positions[:, -1:] + 1
        self._forward(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def _forward(self, tokens: Tensor) -> None:
        output = self.model(
            input_ids=tokens, attention_mask=self.mask.long(), position_ids=self.positions,
            use_cache=True, logits_to_keep=1, **{cache_name(): cache_of(()) if self.cache is None else self.cache},
        )  # fmt: skip
        self.logits, self.cache = output.logits[:, -1].float(), getattr(output, cache_name())


def _choose(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row by the inverse CDF, and its log-probability (0 for the certain choice at temperature 0)."""
    if temperature == 0:
        return logits.argmax(-1), torch.zeros_like(logits[:, 0])
    log_probs = (logits / temperature).log_softmax(-1)
    cdf = log_probs.double().exp().cumsum(-1)
    tokens = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), log_probs.gather(-1, tokens).squeeze(1)


def _pad_left(prompts: Tensor, lengths: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """The prompts moved to the right edge, so that all rows continue in one column, and the mask of real tokens."""
    width = int(lengths.max())
    source = torch.arange(width, device=prompts.device) - (width - lengths[:, None])
    mask = source >= 0
    return torch.where(mask, prompts.gather(1, source.clamp(min=0)), pad_token_id), mask


def _right_padded(
    prompts: Tensor, prompt_lengths: Tensor, responses: Tensor, log_probs: Tensor, lengths: Tensor, has_eos: Tensor,
    pad_token_id: int,
) -> Samples:  # fmt: skip
    """Prompt and response in one row, trimmed to the longest."""
    sequence_lengths = prompt_lengths + lengths
    room = int(prompt_lengths.max()) + responses.shape[1]
    place = prompt_lengths[:, None] + torch.arange(responses.shape[1], device=prompts.device)
    tokens = torch.full((len(prompts), room), pad_token_id, device=prompts.device)
    tokens[:, : prompts.shape[1]] = prompts[:, :room]
    tokens = tokens.masked_fill(~mask_from_lengths(prompt_lengths, room), pad_token_id).scatter(1, place, responses)
    per_token = torch.zeros(tokens.shape, device=prompts.device).scatter(1, place, log_probs)
    width = int(sequence_lengths.max())
    action_mask = action_mask_from_lengths(prompt_lengths, sequence_lengths, width)
    return Samples(
        tokens=tokens[:, :width],
        prompt_lengths=prompt_lengths,
        sequence_lengths=sequence_lengths,
        has_eos=has_eos,
        action_mask=action_mask,
        sampler_log_probs=actions_of(per_token[:, :width]),
    )
