"""The settings of PPO."""

from __future__ import annotations

from dataclasses import dataclass

from . import bounds


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Every number of PPO. Sources: N+ is Huang et al. 2024; where the tiny world differs, the preset says so."""

    updates: int = 30  # rollouts; N+ makes about 1950 of 512
    batch_size: int = 128  # episodes a rollout; N+ 512
    samples_per_prompt: int = 1  # episodes of one prompt in a rollout, N+; more spare reading prompts
    minibatches: int = 1  # a rollout and epoch, N+
    epochs: int = 4  # passes over a rollout, N+
    micro_batch_size: int = 32  # rows in memory at once; changes no result
    skip_unread: bool = False  # no last feed-forward in states that nobody reads; changes results by rounding only
    lean: bool = False  # Llamas only: nothing made that nobody reads, nothing twice; changes results by rounding only
    response_length: int = 24  # tokens at most; N+ 53
    temperature: float = 0.7  # the policy is softmax(logits / temperature), N+
    learning_rate: float = 3e-6  # at the first update, then linearly to 0, N+
    adam_eps: float = 1e-5  # N+
    max_grad_norm: float | None = None  # for policy and critic each; N+ does not clip
    kl_coef: float = 0.05  # reward units a nat, N+
    gamma: float = 1.0  # N+
    lam: float = 0.95  # N+
    clip: float = 0.2  # of the ratio, Schulman 2017, N+
    value_clip: float = 0.2  # reward units, N+
    value_coef: float = 0.1  # N+
    entropy_coef: float = 0.0  # N+ has no entropy bonus
    score_without_eos: float = -1.0  # reward units, instead of the reward model's score, N+

    def __post_init__(self):
        whole = ("updates", "batch_size", "samples_per_prompt", "minibatches", "epochs", "micro_batch_size")
        bounds.at_least(1, self, *whole, "response_length")
        bounds.above_zero(self, "temperature", "learning_rate", "adam_eps", "clip", "value_clip", "max_grad_norm")
        bounds.at_least(0, self, "kl_coef", "value_coef", "entropy_coef")
        bounds.share(self, "gamma", "lam")
        bounds.finite(self, "score_without_eos")
        bounds.divides(self, "batch_size", "minibatches")
        bounds.divides(self, "batch_size", "samples_per_prompt")
        if self.skip_unread and self.lean:
            raise ValueError("skip_unread and lean do not go together: lean skips that as well, leave it alone")

    @property
    def sparing(self) -> dict[str, bool]:
        """What `engine.lean.sparing` asks for."""
        return dict(lean=self.lean, skip_unread=self.skip_unread, keep=self.minibatches == 1)
