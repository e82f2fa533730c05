"""Pre-training of the shipped base model, once, for everybody: `python -m rlhf_lib rebuild --only base`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from .mixture import Batch, make_batch
from .tokenizer import make_tokenizer
from .world import TinyTLDR

STEPS, POSTS, WARM_UP, SEED = 3000, 32, 100, 0
MATRIX_RATE, OTHER_RATE = 1e-2, 1e-3  # peak learning rates of Muon (weight matrices) and AdamW (all else)


def new_base(tokenizer):
    """The tiny Llama, 0.68 million weights, untrained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=TinyTLDR.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )
    )  # fmt: skip


def pretrain(model, tokenizer, *, steps: int = STEPS) -> Iterator[dict]:
    """Train on the mixture; yields step and loss. Muon, because with AdamW alone the judgements are hardly learned."""
    optimizers = _optimizers(model)
    for step in range(steps):
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = peak * _rate(step, steps)
        loss = _loss(model, make_batch(tokenizer, SEED, step * POSTS, POSTS))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield dict(step=step + 1, loss=float(loss))


def _optimizers(model) -> list[tuple[torch.optim.Optimizer, float]]:
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(
            f"rebuilding the base model needs torch 2.9 or later (torch.optim.Muon), not {torch.__version__}"
        )
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in named if not (weight.dim() == 2 and "embed" not in name)]
    return [
        (torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01), MATRIX_RATE),
        (torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.01), OTHER_RATE),
    ]


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to 2 % of the peak."""
    return min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def _loss(model, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return (losses * batch.weights.flatten()).sum() / batch.weights.sum()


def main(folder: str, steps: int = STEPS) -> None:
    tokenizer = make_tokenizer()
    model = new_base(tokenizer)
    for metrics in pretrain(model, tokenizer, steps=steps):
        if metrics["step"] % 100 == 0:
            print(metrics, flush=True)
        if metrics["step"] % 500 == 0:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    import sys

    main(sys.argv[1], int(sys.argv[2]))
