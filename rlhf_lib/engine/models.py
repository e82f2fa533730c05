"""What the algorithms ask of a Hugging Face model: log-probabilities of actions, values of states, scores of texts.

Rows are padded on the right, so a causal model never looks at padding from a real token, and positions count from 0:
no attention mask is needed for exact results, and the fast causal kernel can be used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..maths import losses
from ..maths.alignment import acting_states, action_log_probs, actions_of
from ..maths.masking import keep
from ..maths.records import Texts
from ..maths.shapes import ActionMask, PerAction, PerRow, PerState, Tokens

LOGITS_AT_ONCE = 2**22  # numbers in one block of logits: 16 MiB in float32


def load_policy(folder: str | Path) -> nn.Module:
    """A causal language model in float32, in evaluation mode (no dropout anywhere, as in N+)."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_scorer(folder: str | Path) -> nn.Module:
    """A sequence-classification model with one output: a reward model, or a critic read at every state."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()


def freeze(model: nn.Module) -> nn.Module:
    """No gradients, no optimiser state: for reference and reward models."""
    return model.requires_grad_(False).eval()


def hidden_states(model: nn.Module, tokens: Tokens) -> Tensor:
    """[B, T, D] after the final norm: what the head reads."""
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


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
    actions = actions_of(tokens)[action_mask]
    head = model.get_output_embeddings()

    def score_block(states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float() / temperature
        log_probs = logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
        return log_probs, entropy(logits)

    # In blocks, since where V is large even the logits of the chosen places alone are too many.
    blocks = list(_in_blocks(score_block, states, actions, rows=max(1, LOGITS_AT_ONCE // head.weight.shape[0])))
    log_probs, entropies = (torch.cat(column) for column in zip(*blocks, strict=True))
    blank = torch.zeros(action_mask.shape, dtype=log_probs.dtype, device=log_probs.device)
    return blank.masked_scatter(action_mask, log_probs), blank.masked_scatter(action_mask, entropies)


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


def scorer_from_policy(policy: nn.Module, *, seed: int) -> nn.Module:
    """A reward model that starts from a policy's body; head of spread 1/sqrt(D + 1), as Stiennon et al. 2020 and N+."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(policy.config)
    config.num_labels, config.reward_offset = 1, 0.0
    scorer = AutoModelForSequenceClassification.from_config(config).float()
    scorer.base_model.load_state_dict(policy.base_model.state_dict())
    width = scorer.score.weight.shape[1]
    noise = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        scorer.score.weight.copy_(noise / (width + 1) ** 0.5)
    return scorer.eval()


def _in_blocks(function: Callable, states: Tensor, actions: Tensor, *, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The function over blocks of rows; with more than one, backward recomputes logits instead of keeping them."""
    recompute = len(states) > rows and torch.is_grad_enabled()
    for start in range(0, max(len(states), 1), rows):
        block = states[start : start + rows], actions[start : start + rows]
        yield checkpoint(function, *block, use_reentrant=False) if recompute else function(*block)
