"""What the algorithms ask of a Hugging Face model: log-probabilities of actions, values of states, scores of texts.

Rows are padded on the right, so a causal model never looks at padding from a real token, and positions count from 0:
no attention mask is needed for exact results, and the fast causal kernel can be used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..maths import losses
from ..maths.alignment import acting_states, action_log_probs, actions_of
from ..maths.masking import keep, mask_from_lengths
from ..maths.records import Texts
from ..maths.shapes import ActionMask, PerAction, PerRow, PerState, Tokens
from .fused import chosen_log_probs
from .loading import load_model
from .sharding import passes_through

TextsT = TypeVar("TextsT", bound=Texts)
States, Actions, PerChoice = Float[Tensor, "N D"], Int[Tensor, "N"], Float[Tensor, "N"]
LOGITS_AT_ONCE = 2**22  # numbers in one block of logits on a CPU: 16 MiB in float32


def load_policy(folder: str | Path, *, attention: str = "sdpa") -> nn.Module:
    """A causal language model in float32, in evaluation mode (no dropout anywhere, as in N+)."""
    from transformers import AutoModelForCausalLM

    return load_model(AutoModelForCausalLM, folder, attn_implementation=attention)


def load_scorer(folder: str | Path, *, attention: str = "sdpa") -> nn.Module:
    """A sequence-classification model with one output: a reward model, or a critic read at every state."""
    from transformers import AutoModelForSequenceClassification

    return load_model(AutoModelForSequenceClassification, folder, num_labels=1, attn_implementation=attention)


def freeze(model: nn.Module) -> nn.Module:
    """No gradients, no optimiser state: for reference and reward models."""
    return model.requires_grad_(False).eval()


def hidden_states(model: nn.Module, tokens: Tokens) -> Tensor:
    """[B, T, D] after the final norm: what the head reads."""
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def read_ahead(model: nn.Module, texts: TextsT) -> TextsT:
    """The same texts, once a frozen trunk has read them if the model has one: those of a prompt all together.

    Micro-batches may part those of a prompt, other ones at another size or resumed; last bits must not depend on it.
    """
    if trunk := vars(model.base_model).get("trunk"):
        trunk.states_of(trunk.rows(texts.tokens))
    return texts


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Those of the body, from the first to the last."""
    body = model.base_model
    return body.layers if hasattr(body, "layers") else body.h


def part_of(body: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
    """The same body with some of its layers."""
    part = copy.copy(body)
    part._modules = dict(body._modules)
    part.layers = nn.ModuleList(layers)
    return part


@contextmanager
def last_mlp_only_where(read: Bool[Tensor, "B states"], *of: nn.Module) -> Iterator[None]:
    """Within, the last feed-forward part of these models runs in the states that somebody reads, and gives 0 elsewhere.

    It looks at one state at a time and nothing but the head comes after it, so that what is read is what it would be,
    up to rounding. In a long prompt with a short response this is most of that layer's work.
    """

    def gather(_, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0][read]

    def scatter(_, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        blank = output.new_zeros(*read.shape, output.shape[-1])
        return blank.index_put(read.nonzero(as_tuple=True), output)

    last = [[m for name, m in model.base_model.named_modules() if name.endswith(".mlp")][-1:] for model in of]
    hooks = [hook for (mlp,) in filter(None, last)
             for hook in (mlp.register_forward_pre_hook(gather), mlp.register_forward_hook(scatter))]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def run_layers_again(model: nn.Module) -> nn.Module:
    """The same model with gradient checkpointing: a layer keeps its input alone, and runs again for its backward pass.

    Results stay what they are, bit for bit. It does not go with `last_mlp_only_where`, whose hooks are gone by then.
    """
    for layer in layers_of(model):
        layer.forward = partial(_again_if_needed, layer.forward)  # a closure would keep this layer in a deep copy
    return model


def _again_if_needed(forward: Callable, *inputs, **settings):
    if not torch.is_grad_enabled():
        return forward(*inputs, **settings)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **settings)


def train_top_layers(model: nn.Module, layers: int) -> nn.Module:
    """The same model, of which only the top layers, the final norm and a scorer's head learn.

    raises  ValueError if it has fewer layers
    """
    all_layers = list(model.base_model.layers)
    if not 0 <= layers <= len(all_layers):
        raise ValueError(f"layers must be from 0 to {len(all_layers)}, got {layers}")
    model.requires_grad_(False)
    *_, final_norm = (module for name, module in model.base_model.named_children() if "norm" in name)
    top = all_layers[len(all_layers) - layers :]
    for module in [*top, final_norm, *([model.score] if hasattr(model, "score") else [])]:
        module.requires_grad_(True)
    return model


def no_entropy(logits: Tensor) -> Tensor:
    """In place of `losses.entropy` where nobody reads it: it costs two passes over the vocabulary, and two back."""
    return logits.new_zeros(logits.shape[:-1])


def logits_at_once(device: str) -> int:
    """Numbers in one block of logits. For each a GPU reads the whole head, and back adds a gradient of its size."""
    return LOGITS_AT_ONCE * (16 if device == "cuda" else 1)


def score_actions(
    model: nn.Module,
    tokens: Tokens,
    action_mask: ActionMask,
    *,
    temperature: float,
    entropy: Callable[[Tensor], Tensor] = losses.entropy,
) -> tuple[PerAction, PerAction]:
    """Log-probability of each action and entropy of softmax(logits / temperature), in nats; 0 off the mask.

    entropy  from logits [..., V] to nats
    returns  two of [B, T-1], float32 at least. The head runs only where something was chosen: no tensor of [B, T, V]
             ever exists
    """
    states = acting_states(hidden_states(model, tokens))[action_mask]
    head, actions = model.get_output_embeddings(), actions_of(tokens)[action_mask]
    how = dict(temperature=temperature, rows=max(1, logits_at_once(tokens.device.type) // head.weight.shape[0]))
    if len(states) > how["rows"] and entropy is no_entropy and hasattr(model.base_model, "lean"):
        log_probs = chosen_log_probs(states, actions, head.weight, **how)
        entropies = torch.zeros_like(log_probs)
    else:
        log_probs, entropies = score_in_blocks(head, states, actions, entropy=entropy, **how)
    blank = torch.zeros(action_mask.shape, dtype=log_probs.dtype, device=log_probs.device)
    return blank.masked_scatter(action_mask, log_probs), blank.masked_scatter(action_mask, entropies)


def score_in_blocks(
    head: nn.Module, states: States, actions: Actions, *, temperature: float, rows: int,
    entropy: Callable[[Tensor], Tensor],
) -> tuple[PerChoice, PerChoice]:  # fmt: skip
    """Log-probability of each action and entropy of softmax(logits / temperature), in nats, `rows` states at a time.

    head     from states [n, D] to logits [n, V]
    states   [N, D], and actions [N] that were chosen in them
    rows     of a block; where V is large even the logits of the chosen places alone are too many
    entropy  from logits [n, V] to nats [n]
    returns  two of [N], in float32 whatever the head computes in. With more than one block only states are kept
             between the passes: backward makes the logits of each block again
    """

    def score(states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float().div_(temperature)  # in place: it may be the largest tensor there is
        log_probs = logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
        return log_probs, entropy(logits)

    again = len(states) > rows and torch.is_grad_enabled()
    blocks = [
        checkpoint(score, *block, use_reentrant=False, preserve_rng_state=False) if again else score(*block)
        for block in zip(states.split(rows), actions.split(rows), strict=True)
    ]
    log_probs, entropies = zip(*blocks, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def score_actions_from_logits(
    model: nn.Module,
    tokens: Tokens,
    action_mask: ActionMask,
    *,
    temperature: float,
    entropy: Callable[[Tensor], Tensor] = losses.entropy,
) -> tuple[PerAction, PerAction]:
    """The same as `score_actions` the plain way, by all logits [B, T, V]: to read, and for small vocabularies."""
    logits = model(input_ids=tokens, use_cache=False).logits.float() / temperature
    log_probs = keep(action_log_probs(logits, tokens), action_mask)
    return log_probs, keep(entropy(acting_states(logits)), action_mask)


def state_values(critic: nn.Module, tokens: Tokens) -> PerState:
    """What a sequence-classification model says in every state, less its `reward_offset`, in reward units."""
    offset = getattr(critic.config, "reward_offset", 0.0)
    return critic.score(hidden_states(critic, tokens)).squeeze(-1).float() - offset


def read_score(per_state: PerState, texts: Texts) -> PerRow:
    """The number at the last real token of each text: the EOS where there is one, never the padding."""
    return per_state.gather(1, texts.sequence_lengths[:, None] - 1).squeeze(1)


def scored_states(texts: Texts) -> Bool[Tensor, "B states"]:
    """True in the one state of each row that `read_score` reads."""
    up_to, before = (mask_from_lengths(texts.sequence_lengths - less, texts.tokens.shape[1]) for less in (0, 1))
    return up_to & ~before


def scorer_from_policy(policy: nn.Module, *, seed: int) -> nn.Module:
    """A reward model that starts from a policy's body; head of spread 1/sqrt(D + 1), as Stiennon et al. 2020 and N+."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(policy.config)
    config.num_labels, config.reward_offset = 1, 0.0
    scorer = AutoModelForSequenceClassification.from_config(config).float()
    scorer.base_model.load_state_dict(policy.base_model.state_dict())
    width = scorer.score.weight.shape[1]
    noise = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    scorer.score.weight.detach().copy_(noise / (width + 1) ** 0.5)
    return scorer.eval()


# Of a sharded model body and head are one pass. No decorators: lesson 04 shows these functions as they are
score_actions, state_values = passes_through(score_actions), passes_through(state_values)
