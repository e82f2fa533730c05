"""What every function of the maths must do: `check_<function>(fn)` raises AssertionError for a wrong `fn`.

A check takes any function with the library's signature, so that the library, an exercise and a deliberate mistake all
meet the same demands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields

import numpy as np
import torch
from sklearn.metrics import explained_variance_score
from torch.distributions import Categorical, kl_divergence

from rlhf_lib.maths.records import Rollout, Targets, Texts
from tests import helpers
from tests.helpers import CASES, GAMMA_LAM, assert_close, bools, call, floats

NAN, INF = math.nan, math.inf
CLIP = 0.2


def assert_meets_specification(fn: Callable) -> None:
    """Run the check that is named after `fn`."""
    globals()[f"check_{fn.__name__}"](fn)


# Aggregation


def check_mask_from_lengths(fn: Callable) -> None:
    """Exactly the first `length` places; none for 0, all for the width."""
    assert_close(fn(torch.tensor([0, 2, 3]), 3), bools("...", "xx.", "xxx"))


def check_keep(fn: Callable) -> None:
    """Selects: what is not kept may be NaN, in the result and in the gradient."""
    x = floats([1, NAN, INF, -2]).requires_grad_()
    kept = fn(x, bools("x..x"))
    assert_close(kept.detach(), floats([1, 0, 0, -2]))
    assert_close(fn(x, bools("x..x"), otherwise=9.0).detach(), floats([1, 9, 9, -2]))
    assert_close(helpers.derivative(kept, x), floats([1, 0, 0, 1]))
    assert_close(fn(floats([NAN, 1]), bools("x.")), floats([NAN, 0]))  # a NaN that counts stays in sight
    for wrong in (bools("x"), bools("x", "x"), bools("xx")):  # these would broadcast, or nearly
        helpers.assert_refuses(fn, floats([1], [2], [3]), wrong, says="(3, 1)")
        helpers.assert_refuses(fn, floats([1], [2], [3]), wrong, says=str(tuple(wrong.shape)))


def _check_reduction(fn: Callable, statistic: Callable[[list[float]], float], *, empty: float) -> None:
    def of(entries: list[float]) -> float:
        return float(statistic(entries)) if entries else empty

    names = ("rewards", "action_mask")
    for case in CASES:
        for dim in (None, 0, 1):
            assert_close(call(fn, case, names, dim=dim), helpers.reduced_spec(of, *(case[n] for n in names), dim))
        helpers.assert_reads_only_what_counts(fn, case, names)
        helpers.assert_gradient(fn, case, names, into="rewards")
    assert_close(fn(floats([1, 2], [3, 5]), bools("xx", ".."), dim=1)[1], torch.tensor(empty, dtype=torch.float64))
    assert fn(floats([1, NAN]), bools("xx")).isnan(), "a NaN that counts must stay in sight"
    helpers.assert_refuses(fn, floats([1, 2], [3, 4]), bools("x", "."), says="(2, 1)")


def check_masked_sum(fn: Callable) -> None:
    """Python's sum over the entries that count; 0 for none."""
    _check_reduction(fn, sum, empty=0.0)


def check_masked_mean(fn: Callable) -> None:
    """NumPy's mean over the entries that count; NaN for none, so that an empty batch is seen."""
    _check_reduction(fn, np.mean, empty=NAN)


def check_masked_var(fn: Callable) -> None:
    """NumPy's population variance over the entries that count: 0 for one, NaN for none."""
    _check_reduction(fn, np.var, empty=NAN)
    assert_close(fn(floats([1, 3, 99]), bools("xx.")), torch.tensor(1.0, dtype=torch.float64))  # mean 2, ((1)+(1))/2
    assert_close(fn(floats([5, 99]), bools("x.")), torch.tensor(0.0, dtype=torch.float64))


def check_masked_softmax(fn: Callable) -> None:
    """torch's softmax of the counted entries alone, whatever stands elsewhere; 0 where nothing counts."""
    logits, mask = floats([1, NAN, -2], [1000, 999, 1], [3, 4, INF], [1, 2, 3]), bools("x.x", "xx.", ".x.", "...")
    probabilities = fn(logits, mask)
    for row in range(4):
        places = helpers.chosen(mask, row)
        expected = torch.zeros(3, dtype=torch.float64)
        expected[places] = logits[row, places].softmax(-1)
        assert_close(probabilities[row], expected)
    finite = logits.nan_to_num(posinf=0.0)
    assert_close(fn(finite, mask, dim=0), fn(finite.T.contiguous(), mask.T.contiguous()).T)
    for case in CASES:
        helpers.assert_reads_only_what_counts(fn, case, ("rewards", "action_mask"))
        helpers.assert_gradient(fn, case, ("rewards", "action_mask"), into="rewards")
    helpers.assert_refuses(fn, logits, mask[:1], says="(1, 3)")


def check_whiten(fn: Callable) -> None:
    """Mean 0 and variance 1 over everything that counts, by its count; 1e-8 inside the root."""
    names = ("rewards", "action_mask")
    for case in CASES:
        x, mask = (case[name] for name in names)
        entries = x[mask].numpy()
        expected = torch.zeros_like(x)
        expected[mask] = torch.from_numpy((entries - np.mean(entries)) / np.sqrt(np.var(entries) + 1e-8))
        assert_close(call(fn, case, names), expected)
        helpers.assert_reads_only_what_counts(fn, case, names)
        if mask.sum() > 1:
            helpers.assert_gradient(fn, case, names, into="rewards")
    # one choice: nothing to compare it with
    assert_close(fn(floats([5, 9]), bools("x.")), floats([0, 0]))
    # variance 1e-8, so the root is sqrt(2e-8), and 1e-4 / sqrt(2e-8) = 1 / sqrt(2)
    assert_close(fn(floats([3 + 1e-4, 3 - 1e-4]), bools("xx")).round(decimals=6), floats([0.707107, -0.707107]))
    helpers.assert_refuses(fn, floats([1, 2], [3, 4]), bools("x", "."), says="(2, 1)")


# Alignment


def check_actions_of(fn: Callable) -> None:
    """Every token but the first was chosen by somebody."""
    assert_close(fn(torch.tensor([[5, 6, 7]])), torch.tensor([[6, 7]]))


def check_acting_states(fn: Callable) -> None:
    """Nothing is chosen in the last state; whatever comes behind the states is untouched."""
    logits = torch.arange(12.0).reshape(1, 3, 4)
    assert_close(fn(logits), torch.arange(8.0).reshape(1, 2, 4))
    assert_close(fn(logits[..., 0]), floats([0, 4]).float())


def check_action_log_probs(fn: Callable) -> None:
    """torch's distribution in each state, asked for the next token; the last state is asked for nothing."""
    generator = torch.Generator().manual_seed(5)
    for rows, states, vocab in ((1, 2, 3), (3, 5, 4), (4, 4, 4)):
        logits = torch.randn(rows, states, vocab, generator=generator, dtype=torch.float64).requires_grad_()
        tokens = torch.randint(vocab, (rows, states), generator=generator)
        found = fn(logits, tokens)
        one_by_one = [
            [float(Categorical(logits=logits[b, t].detach()).log_prob(tokens[b, t + 1])) for t in range(states - 1)]
            for b in range(rows)
        ]
        assert_close(found.detach(), floats(*one_by_one))
        weighted = found * torch.arange(1.0, found.numel() + 1, dtype=torch.float64).reshape(found.shape)
        into = helpers.derivative(weighted, logits)
        assert_close(into[:, -1], torch.zeros_like(into[:, -1]))
        assert torch.autograd.gradcheck(lambda x, tokens=tokens: fn(x, tokens), (logits,), raise_exception=False)
        loud = torch.cat([logits[:, :-1] + 1000, logits[:, -1:] * NAN], dim=1)  # a constant changes no distribution
        assert_close(fn(loud.detach(), tokens), found.detach())


def check_values_before(fn: Callable) -> None:
    """Choice t is made in state t."""
    assert_close(fn(floats([5, 6, 7])), floats([5, 6]))


def check_values_after(fn: Callable) -> None:
    """Choice t leads to state t+1."""
    assert_close(fn(floats([5, 6, 7])), floats([6, 7]))


def check_action_mask_from_lengths(fn: Callable) -> None:
    """Drawn as letters: choice t counts where token t+1 is `r`, a token of the response, its EOS included."""
    for texts in (["pr"], ["pprrr..", "pr.....", "pppprr.", "prrrrrr"], ["ppr", "prr"]):
        expected = bools(*("".join("x" if letter == "r" else "." for letter in text[1:]) for text in texts))
        prompts = torch.tensor([text.count("p") for text in texts])
        sequences = prompts + torch.tensor([text.count("r") for text in texts])
        assert_close(fn(prompts, sequences, len(texts[0])), expected)
    two = torch.tensor([2, 2])
    helpers.assert_refuses(fn, torch.tensor([2, 0]), two + 1, 5, says="[2, 0]")  # an empty prompt
    helpers.assert_refuses(fn, two, torch.tensor([3, 2]), 5, says="[3, 2]")  # an empty response
    helpers.assert_refuses(fn, two, torch.tensor([3, 1]), 5, says="[3, 1]")  # shorter than its prompt
    helpers.assert_refuses(fn, two, torch.tensor([3, 6]), 5, says="6 tokens does not fit a row of 5")


def check_another_follows(fn: Callable) -> None:
    """True at every choice but the last, also where a row is full or has no choice."""
    assert_close(fn(bools(".xxx.", "..xxx", "x....", "xxxxx", ".....")),
                 bools(".xx..", "..xx.", ".....", "xxxx.", "....."))  # fmt: skip


def check_is_last(fn: Callable) -> None:
    """True at the last choice alone."""
    assert_close(fn(bools(".xxx.", "..xxx", "x....", "xxxxx", ".....")),
                 bools("...x.", "....x", "x....", "....x", "....."))  # fmt: skip


def check_check_one_wider(fn: Callable) -> None:
    """Accepts T against T-1 alone, and says both shapes."""
    for rows, states in ((2, 5), (1, 2), (3, 1)):
        fn(torch.zeros(rows, states), torch.zeros(rows, states - 1))
    wrong = [((2, 5), (2, 5)), ((2, 2), (2, 2)), ((2, 1), (2, 1)), ((2, 4), (2, 5)), ((3, 5), (2, 4)),
             ((2, 5), (2, 3)), ((2, 5), (2, 1)), ((2, 5), (1, 4))]  # fmt: skip
    for per_state, per_action in wrong:
        for shape in (per_state, per_action):
            helpers.assert_refuses(fn, torch.zeros(per_state), torch.zeros(per_action), says=str(shape))


def check_check_same_actions(fn: Callable) -> None:
    """Looks at every tensor, at rows as well as columns, and refuses what would broadcast."""
    good = torch.zeros(2, 3)
    fn(good, good > 0, good)
    for wrong in ((2, 1), (1, 3), (2, 4), (3, 3)):
        for position in range(3):
            tensors = [good, good, good]
            tensors[position] = torch.zeros(wrong)
            helpers.assert_refuses(fn, *tensors, says=str(wrong))
            helpers.assert_refuses(fn, *tensors, says=str((2, 3)))


# From scores to rewards


def check_replace_score_without_eos(fn: Callable) -> None:
    """Replaced, not lowered, and only where the text did not end."""
    scores, has_eos = torch.tensor([3.0, -2.0, NAN]), torch.tensor([True, False, False])
    assert_close(fn(scores, has_eos, score_without_eos=-1.0), torch.tensor([3.0, -1.0, -1.0]))
    assert_close(fn(scores, has_eos, score_without_eos=0.5), torch.tensor([3.0, 0.5, 0.5]))


def check_place_score(fn: Callable) -> None:
    """At the last choice and nowhere else; a row without a choice is paid nothing."""
    mask = bools(".xxx.", "..xxx", "x....", ".....")
    paid = floats([0, 0, 0, 2, 0], [0, 0, 0, 0, 3], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0])
    assert_close(fn(floats(2, 3, 4, 5), mask), paid)
    for case in CASES:
        helpers.assert_reads_only_what_counts(fn, case, ("scores", "action_mask"))


def check_penalise_kl(fn: Callable) -> None:
    """Each choice pays for its own KL; padding pays nothing."""
    names = ("placed_scores", "kl_per_token", "action_mask")
    assert_close(fn(floats([0, 0, 5, 9]), floats([7, 2, -4, 7]), bools(".xx."), kl_coef=0.5), floats([0, -1, 5 + 2, 0]))
    for case in CASES:
        assert_close(call(fn, case, names, kl_coef=0.1), call(helpers.penalise_kl_spec, case, names, kl_coef=0.1))
        helpers.assert_reads_only_what_counts(fn, case, names, kl_coef=0.1)
    helpers.assert_refuses_mixed_widths(fn, names, kl_coef=0.1)


# Advantages


def check_td_errors(fn: Callable) -> None:
    """By hand and against the loop; the value after the last choice is never read."""
    names = ("values", "rewards", "action_mask")
    # states worth 4, 8, 6; rewards 1, 0, 10; gamma 1/2: 1 + 4 - 4, 0 + 3 - 8, 10 + 0 - 6
    by_hand = fn(floats([99, 4, 8, 6, 77]), floats([50, 1, 0, 10]), bools(".xxx"), gamma=0.5)
    assert_close(by_hand, floats([0, 1, -5, 4]))
    for case in CASES:
        for gamma, _ in GAMMA_LAM:
            assert_close(call(fn, case, names, gamma=gamma), call(helpers.td_errors_spec, case, names, gamma=gamma))
        helpers.assert_reads_only_what_counts(fn, case, names, gamma=0.9)
        helpers.assert_gradient(fn, case, names, into="values", gamma=0.9)
    helpers.assert_refuses_mixed_widths(fn, names, gamma=0.9)


def check_gae(fn: Callable) -> None:
    """By hand, against the double sum, and at both ends of lam."""
    names = ("values", "rewards", "action_mask")
    # TD errors 1, -5, 4 as in `check_td_errors`; gamma * lam = 1/4: A = 4, -5 + 4/4, 1 - 4/4
    by_hand = fn(floats([99, 4, 8, 6, 77]), floats([50, 1, 0, 10]), bools(".xxx"), gamma=0.5, lam=0.5)
    assert_close(by_hand, floats([0, 0, -4, 4]))
    for case in CASES:
        values, rewards, mask = (case[name] for name in names)
        for gamma, lam in GAMMA_LAM:
            assert_close(call(fn, case, names, gamma=gamma, lam=lam),
                         call(helpers.gae_spec, case, names, gamma=gamma, lam=lam))  # fmt: skip
        to_go = helpers.reward_to_go_spec(rewards, mask, gamma=0.9)
        assert_close(fn(values, rewards, mask, gamma=0.9, lam=1.0), torch.where(mask, to_go - values[:, :-1], 0.0))
        helpers.assert_reads_only_what_counts(fn, case, names, gamma=0.9, lam=0.8)
        helpers.assert_gradient(fn, case, names, into="rewards", gamma=0.9, lam=0.8)
    helpers.assert_refuses_mixed_widths(fn, names, gamma=0.9, lam=0.8)


def check_returns(fn: Callable) -> None:
    """Advantage plus value; with lam = 1 that is the reward to go, and the critic drops out."""
    names = ("advantages", "values", "action_mask")
    assert_close(fn(floats([9, 1, -5, 4]), floats([99, 4, 8, 6, 77]), bools(".xxx")), floats([0, 5, 3, 10]))
    for case in CASES:
        values, rewards, mask = (case[name] for name in ("values", "rewards", "action_mask"))
        advantages = helpers.gae_spec(values, rewards, mask, gamma=0.9, lam=1.0)
        assert_close(fn(advantages, values, mask), helpers.reward_to_go_spec(rewards, mask, gamma=0.9))
        helpers.assert_reads_only_what_counts(fn, case, names)
    helpers.assert_refuses_mixed_widths(fn, names)


# KL


def _pairs_of_distributions() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(2, 1, 6, generator=generator, dtype=torch.float64).log_softmax(-1)) for _ in range(5)]


def _check_unbiased(fn: Callable) -> None:
    """The expectation under p, taken exactly over a vocabulary of 6."""
    for log_p, log_q in _pairs_of_distributions():
        expectation = (log_p.exp() * fn(log_p, log_q)).sum(-1)
        assert_close(expectation, kl_divergence(Categorical(logits=log_p), Categorical(logits=log_q)))


def check_kl_k1(fn: Callable) -> None:
    """p = 1/2, q = 1/4: log 2 nats; unbiased, so its sign must stay."""
    assert_close(fn(floats([0.5]).log(), floats([0.25]).log()), floats([math.log(2)]))
    _check_unbiased(fn)


def check_kl_k2(fn: Callable) -> None:
    """p = 1/2, q = 1/4: (log 2)^2 / 2; the same both ways."""
    log_p, log_q = floats([0.5, 0.25, 0.5]).log(), floats([0.25, 0.5, 0.5]).log()
    assert_close(fn(log_p, log_q), floats([math.log(2) ** 2 / 2, math.log(2) ** 2 / 2, 0]))


def check_kl_k3(fn: Callable) -> None:
    """p = 1/2, q = 1/4: 1/2 - 1 + log 2; unbiased, never negative, 0 only where p = q."""
    log_p, log_q = floats([0.5, 0.25, 0.5]).log(), floats([0.25, 0.5, 0.5]).log()
    assert_close(fn(log_p, log_q), floats([-1 / 2 + math.log(2), 1 - math.log(2), 0]))
    _check_unbiased(fn)
    for log_p, log_q in _pairs_of_distributions():
        assert (fn(log_p, log_q) > 0).all(), "k3 is positive where p and q differ"


def check_kl_exact(fn: Callable) -> None:
    """torch.distributions' KL, from logits; 0 log 0 is 0, and infinite where q cannot do what p does."""
    for log_p, log_q in _pairs_of_distributions():
        expected = kl_divergence(Categorical(logits=log_p), Categorical(logits=log_q))
        assert_close(fn(log_p + 3.0, log_q - 2.0), expected)  # logits, not log-probabilities
        assert_close(fn(log_p.expand(2, 3, 6), log_q.expand(2, 3, 6)), expected.expand(2, 3))
    one_sided = floats([0, -INF]).requires_grad_()
    into_itself = fn(one_sided, one_sided.detach())
    assert_close(into_itself.detach(), floats(0))
    assert_close(helpers.derivative(into_itself, one_sided), floats([0, 0]))
    assert_close(fn(one_sided.detach(), floats([0, 0])), floats(math.log(2)))
    assert_close(fn(floats([0, 0]), one_sided.detach()), floats(INF))


# Losses


def check_sft_loss(fn: Callable) -> None:
    """F.cross_entropy with ignore_index, loss and gradient into the logits."""
    names = ("log_probs", "action_mask")
    for case in CASES:
        mask = case["action_mask"]
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(*mask.shape, 5, generator=generator, dtype=torch.float64).requires_grad_()
        targets = torch.randint(5, mask.shape, generator=generator)
        log_probs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        ours = fn(log_probs, mask)
        theirs = torch.nn.functional.cross_entropy(
            logits.movedim(-1, 1), targets.masked_fill(~mask, -100), reduction="none", ignore_index=-100
        )
        assert_close(ours.detach(), theirs.detach())
        assert_close(helpers.derivative(ours, logits), helpers.derivative(theirs, logits))
        helpers.assert_reads_only_what_counts(fn, case, names)
        helpers.assert_gradient(fn, case, names, into="log_probs")
    helpers.assert_refuses_mixed_widths(fn, names)


def check_preference_loss(fn: Callable) -> None:
    """sigmoid(log 3) = 3/4; ln 2 at equal scores; only the difference counts; finite far out; one term a pair."""
    chosen, rejected = floats(math.log(3), 0, 1.5, -1000, 1000), floats(0, math.log(3), 1.5, 0, 0)
    expected = floats(math.log(4 / 3), math.log(4), math.log(2), 1000, 0)
    assert_close(fn(chosen, rejected), expected)
    assert_close(fn(chosen + 7, rejected + 7), expected)
    case = {"chosen": chosen[:3], "rejected": rejected[:3]}
    for into in case:
        helpers.assert_gradient(fn, case, ("chosen", "rejected"), into=into)


def check_log_ratio(fn: Callable) -> None:
    """Current minus old, 0 off the mask, and safe to exponentiate."""
    names = ("log_probs", "old_log_probs", "action_mask")
    assert_close(fn(floats([-1, -2, -5]), floats([-3, -1, 0]), bools("xx.")), floats([2, -1, 0]))
    for case in CASES:
        helpers.assert_reads_only_what_counts(fn, case, names)
        helpers.assert_gradient(lambda *args: fn(*args).exp(), case, names, into="log_probs")
    helpers.assert_refuses_mixed_widths(fn, names)


def check_policy_loss(fn: Callable) -> None:
    """All six cases by hand, against the loop, and at ratio 1 the gradient of REINFORCE."""
    names = ("log_probs", "old_log_probs", "advantages", "action_mask")
    # ratio 1/2, 1, 2 with advantage +1: only too high is cut; with -1: only too low is cut. The band is of ratios: 1.21
    # is above it though log 1.21 = 0.19 < 0.2, and 0.81 is not below it though log 0.81 = -0.21 < -0.2
    log_ratios, advantages = floats([0.5, 1, 2, 0.5, 1, 2, 1.21, 0.81]).log(), floats([1, 1, 1, -1, -1, -1, 1, -1])
    by_hand = fn(log_ratios - 3, torch.full_like(log_ratios, -3), advantages, bools("xxxxxxxx"), clip=CLIP)
    assert_close(by_hand, floats([-0.5, -1, -1.2, 0.8, 1, 2, -1.2, 0.81]))
    for case in CASES:
        assert_close(call(fn, case, names, clip=CLIP), call(helpers.policy_loss_spec, case, names, clip=CLIP))
        helpers.assert_reads_only_what_counts(fn, case, names, clip=CLIP)
        helpers.assert_gradient(fn, case, names, into="log_probs", clip=CLIP)
        on_policy = case | {"old_log_probs": case["log_probs"]}
        reinforce = helpers.gradient(
            lambda log_probs, advantages, mask: torch.where(mask, -advantages * log_probs, 0.0),
            case, ("log_probs", "advantages", "action_mask"), into="log_probs",
        )  # fmt: skip
        assert_close(helpers.gradient(fn, on_policy, names, into="log_probs", clip=CLIP), reinforce)
    helpers.assert_refuses_mixed_widths(fn, names, clip=CLIP)


def check_value_loss(fn: Callable) -> None:
    """By hand and against the loop; the last value is never read nor trained."""
    names = ("values", "old_values", "returns", "action_mask")
    # old value 0, return 1, clip 0.2. Value 0.1: 0.9^2/2. Value 0.6 is read as 0.2: 0.8^2/2. Value -1: 2^2/2
    by_hand = fn(floats([0.1, 0.6, -1, 88]), floats([0, 0, 0, 99]), floats([1, 1, 1]), bools("xxx"), clip=CLIP)
    assert_close(by_hand, floats([0.405, 0.32, 2]))
    for case in CASES:
        assert_close(call(fn, case, names, clip=CLIP), call(helpers.value_loss_spec, case, names, clip=CLIP))
        helpers.assert_reads_only_what_counts(fn, case, names, clip=CLIP)
        helpers.assert_gradient(fn, case, names, into="values", clip=CLIP)
    helpers.assert_refuses_mixed_widths(fn, names, clip=CLIP)


def check_entropy(fn: Callable) -> None:
    """torch.distributions' entropy, from logits, at every place; ln V if uniform; -inf adds nothing and no NaN."""
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(fn(logits), Categorical(logits=logits).entropy())
    assert_close(fn(floats([3, 3, 3, 3])), floats(math.log(4)))
    cut = floats([0, 0, -INF]).requires_grad_()
    assert_close(fn(cut).detach(), floats(math.log(2)))
    assert_close(helpers.derivative(fn(cut), cut), floats([0, 0, 0]))  # uniform over two: a maximum
    helpers.assert_gradient(fn, {"logits": logits}, ("logits",), into="logits")


def check_combine_losses(fn: Callable) -> None:
    """Entropy is a bonus, so it is subtracted."""
    policy, value, entropy = torch.tensor(3.0), torch.tensor(5.0), torch.tensor(7.0)
    assert_close(fn(policy, value, entropy, value_coef=0.5, entropy_coef=0.25), torch.tensor(3 + 2.5 - 1.75))


# Diagnostics


def check_approx_kl(fn: Callable) -> None:
    """KL(old || current): ratio 2 gives 2 - 1 - log 2; 0 off the mask."""
    names = ("log_probs", "old_log_probs", "action_mask")
    by_hand = fn(floats([2, 0.5, 1, 9]).log() - 4, floats([0, 0, 0, 0]) - 4, bools("xxx."))
    assert_close(by_hand, floats([1 - math.log(2), -0.5 + math.log(2), 0, 0]))
    for case in CASES:
        assert_close(call(fn, case, names), call(helpers.approx_kl_spec, case, names))
        helpers.assert_reads_only_what_counts(fn, case, names)
    helpers.assert_refuses_mixed_widths(fn, names)


def check_clip_fraction(fn: Callable) -> None:
    """1 exactly where the clipping takes the gradient away, which half of the ratios outside the band escape."""
    names = ("log_probs", "old_log_probs", "advantages", "action_mask")
    # as in `check_policy_loss`, and an advantage of 0, which has no gradient to lose
    log_ratios = floats([0.5, 1, 2, 0.5, 1, 2, 1.21, 0.81, 2]).log()
    advantages = floats([1, 1, 1, -1, -1, -1, 1, -1, 0])
    by_hand = fn(log_ratios, torch.zeros_like(log_ratios), advantages, bools("xxxxxxxxx"), clip=CLIP)
    assert_close(by_hand, floats([0, 0, 1, 1, 0, 0, 1, 0, 0]))
    for case in CASES:
        assert_close(call(fn, case, names, clip=CLIP), call(helpers.clip_fraction_spec, case, names, clip=CLIP))
        helpers.assert_reads_only_what_counts(fn, case, names, clip=CLIP)
    helpers.assert_refuses_mixed_widths(fn, names, clip=CLIP)


def check_step_zero_gaps(fn: Callable) -> None:
    """By hand and against loops over the rows; the worst action decides two of them, and no term cancels another."""
    names = ("log_probs", "old_log_probs", "ref_log_probs", "rewards", "action_mask")  # rewards: any numbers
    # old - ref is 1 and -2 where it counts; ratios 2 and 1/4, so the errors are 1 and 3/4; sampler off by -3 and 1
    by_hand = fn(floats([math.log(2), -math.log(4), 9]), floats([0, 0, 5]), floats([-1, 2, 7]),
                 floats([-3, 1, 8]), bools("xx."))  # fmt: skip
    expected = dict(kl_before_first_update=1.5, ratio_error_before_first_update=1.0, sampler_forward_gap=3.0)
    for found, wanted in [(by_hand, expected), *((call(fn, c, names), call(helpers.step_zero_spec, c, names))
                                                 for c in CASES)]:  # fmt: skip
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_close(found[name], torch.tensor(value, dtype=torch.float64))
    for name in expected:
        for case in CASES:
            helpers.assert_reads_only_what_counts(lambda *args, of=name: fn(*args)[of], case, names)
        helpers.assert_refuses_mixed_widths(lambda *args, of=name: fn(*args)[of], names)


def check_explained_variance(fn: Callable) -> None:
    """scikit-learn's score of the counted entries; 1 if perfect, even shifted; 0 if constant; NaN if R is constant."""
    names = ("values", "returns", "action_mask")
    for case in CASES[1:]:
        values, targets, mask = (case[name] for name in names)
        expected = explained_variance_score(targets[mask], values[:, :-1][mask])
        assert_close(call(fn, case, names), torch.tensor(expected, dtype=torch.float64))
        helpers.assert_reads_only_what_counts(fn, case, names)
    targets, mask = floats([1, 4, 2, 99]), bools("xxx.")
    for values, expected in ((floats([1, 4, 2, 50, 60]), 1.0), (floats([6, 9, 7, 50, 60]), 1.0),
                             (floats([3, 3, 3, 50, 60]), 0.0)):  # fmt: skip
        assert_close(fn(values, targets, mask), torch.tensor(expected, dtype=torch.float64))
    assert fn(floats([1, 4, 2, 50, 60]), floats([2, 2, 2, 99]), mask).isnan(), "no variance to explain"
    helpers.assert_refuses_mixed_widths(fn, names)


# Records


def example_rollout() -> Rollout:
    """Three rows of eight tokens, every entry of every field different."""
    case = CASES[1]
    random_fields = ("values", "old_log_probs", "ref_log_probs", "scores", "action_mask", "has_eos")
    lengths = {name: case[name] for name in ("prompt_lengths", "sequence_lengths")}
    return Rollout(
        tokens=torch.arange(case["values"].numel()).reshape(case["values"].shape),
        sampler_log_probs=case["log_probs"], old_entropies=case["rewards"],
        **lengths, **{name: case[name] for name in random_fields},
    )  # fmt: skip


def assert_same_record(actual, expected) -> None:
    assert type(actual) is type(expected), f"{type(actual).__name__} instead of {type(expected).__name__}"
    for field in fields(expected):
        assert_close(getattr(actual, field.name), getattr(expected, field.name))


def check_select(fn: Callable) -> None:
    """Every field by the same rows, in the order asked for; rows may repeat; the original stays as it was."""
    rollout, index = example_rollout(), torch.tensor([2, 0, 2])
    rows = Rollout(**{f.name: torch.stack([getattr(rollout, f.name)[i] for i in (2, 0, 2)]) for f in fields(rollout)})
    assert_same_record(fn(rollout, index), rows)
    assert_same_record(rollout, example_rollout())
    try:
        rollout.scores = rollout.scores + 1
    except FrozenInstanceError:
        return
    raise AssertionError("a record must be frozen")


def check_trim(fn: Callable) -> None:
    """State-indexed fields to `states`, action-indexed ones to one less, [B] ones as they are; for every record."""
    rollout = example_rollout()
    states = {"tokens", "values"}
    per_row = {"prompt_lengths", "sequence_lengths", "has_eos", "scores"}
    cut = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    cut = {name: x if name in per_row else x[:, : 7 if name in states else 6] for name, x in cut.items()}
    assert_same_record(fn(rollout, 7), Rollout(**cut))
    assert_same_record(fn(rollout, 9), rollout)
    texts = {f.name: getattr(rollout, f.name) for f in fields(Texts)}
    assert_same_record(fn(Texts(**texts), 7), Texts(**texts | {"tokens": rollout.tokens[:, :7]}))
    targets = Targets(advantages=rollout.old_log_probs, returns=rollout.ref_log_probs)
    assert_same_record(fn(targets, 7), Targets(targets.advantages[:, :6], targets.returns[:, :6]))
