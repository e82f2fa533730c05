"""Lesson 10: scores that never hold all logits, and what a layer and a model hold in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...engine import memory_budget, models
from ...engine.memory_budget import ModelShape
from ..exercise import Case, Exercise, Twin

PREAMBLE = """
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_lib.engine.memory_budget import ModelShape
from rlhf_lib.engine.models import Actions, PerChoice, States
"""
FLOAT32 = 4  # bytes


class Entropy:
    """-sum p log p, as the cases pass it; it says its name where a case is shown."""

    def __call__(self, logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def __repr__(self) -> str:
        return "entropy"


# ------------------------------------------------------------------------------------------------ what is right


@torch.no_grad()
def score_in_blocks_specification(
    head: nn.Module, states: Tensor, actions: Tensor, *, temperature: float, rows: int, entropy: Callable
) -> tuple[Tensor, Tensor]:
    """One state at a time, whatever a block is."""
    log_probs, entropies = [], []
    for state, action in zip(states, actions.tolist(), strict=True):
        logits = head(state[None]).double() / temperature
        largest = float(logits.max())
        total = math.log(sum(math.exp(logit - largest) for logit in logits[0].tolist())) + largest
        log_probs.append(float(logits[0, action]) - total)
        entropies.append(entropy(logits)[0])
    return torch.tensor(log_probs, dtype=torch.float64), torch.stack(entropies)


def layer_bytes_specification(shape: ModelShape, *, rows: int, states: int) -> int:
    """Every tensor by name, as numbers of one token."""
    width, queries, inner = shape.width, shape.heads * shape.head_width, shape.feed_forward
    keys = shape.kv_heads * shape.head_width
    of_a_token = {
        "input of the norm": width, "root of its mean square": 1, "normalised": width, "times the weight": width,
        "queries": queries, "keys": keys, "values": keys, "sum of each head": shape.heads, "result": queries,
        "input of the second norm": width, "its root": 1, "its normalised": width, "its result": width,
        "gate": inner, "silu of it": inner, "up": inner, "product": inner,
    }  # fmt: skip
    return sum(FLOAT32 for _ in range(rows * states) for _ in range(sum(of_a_token.values())))


def held_bytes_specification(trainable: int, frozen: int, *, number: int, moments: int) -> dict[str, int]:
    """Weight by weight."""
    held = {"weights": 0, "gradients": 0, "moments": 0}
    for trains in [True] * trainable + [False] * frozen:
        held["weights"] += number
        if trains:
            held["gradients"] += number
            for _ in range(moments):
                held["moments"] += number
    return held


# ------------------------------------------------------------------------------------------------ what is tried


def _head(width: int, vocabulary: int, seed: int) -> nn.Linear:
    head = nn.Linear(width, vocabulary, bias=False, dtype=torch.float64)
    noise = torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(noise)
    return head


def _score_case(
    label: str, count: int, *, rows: int, temperature: float = 0.7, width: int = 2, vocabulary: int = 5,
    gradients: tuple[str, ...] = ("head", "states"), alive: tuple[int, int] | None = None,
) -> Case:  # fmt: skip
    generator = torch.Generator().manual_seed(count)
    return Case(
        label,
        dict(
            head=_head(width, vocabulary, seed=count),
            states=torch.randn(count, width, generator=generator, dtype=torch.float64),
            actions=torch.randint(vocabulary, (count,), generator=generator),
            temperature=temperature, rows=rows, entropy=Entropy(),
        ),
        gradients, tolerance=1e-5, alive=alive,
    )  # fmt: skip


def _in_bfloat16() -> Case:
    """Logits that bfloat16 holds exactly: what differs is what happens to them afterwards."""
    head = nn.Linear(2, 4, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.0, 1.5], [2.0, -0.5]]))
    states = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [2.0, 1.0]], dtype=torch.bfloat16)
    arguments = dict(head=head, states=states, actions=torch.tensor([1, 0, 3]), temperature=0.7, rows=2)
    return Case("a head in bfloat16", arguments | {"entropy": Entropy()}, tolerance=1e-5)


def _score_cases() -> list[Case]:
    return [
        _score_case("one state", 1, rows=3),
        _score_case("two states, one block", 2, rows=2),
        _score_case("two full blocks", 4, rows=2),
        _score_case("a last block that is not full", 5, rows=2),
        _score_case("blocks of one state", 3, rows=1, temperature=1.5),
        _score_case("states of a frozen trunk: only the head learns", 3, rows=2, gradients=("head",)),
        _in_bfloat16(),
        _score_case("a block has 800 logits, all states together 51,200", 128, rows=2, vocabulary=400, gradients=(),
                    alive=(60_000, 200_000)),
    ]  # fmt: skip


SMALL = dict(layers=3, width=6, heads=2, feed_forward=10, vocabulary=50)
SHAPES = {
    "one token": (ModelShape(**SMALL), 1, 1),
    "one row": (ModelShape(**SMALL), 1, 5),
    "some rows": (ModelShape(**SMALL), 3, 4),
    "four heads of queries for each of keys": (ModelShape(**{**SMALL, "width": 8, "heads": 4}, kv_heads=1), 2, 3),
    "heads wider than width / heads": (ModelShape(**SMALL, head_width=5), 2, 3),
    "more layers: still one of them": (ModelShape(**{**SMALL, "layers": 7}), 2, 2),
}


def _layer_cases() -> list[Case]:
    return [Case(label, dict(shape=shape, rows=rows, states=states)) for label, (shape, rows, states) in SHAPES.items()]


def _held_cases() -> list[Case]:
    kinds = {
        "all trains, Adam, float32": (5, 0, 4, 2),
        "nothing trains: a reference": (0, 7, 4, 2),
        "a frozen trunk": (3, 11, 4, 2),
        "a frozen trunk in bfloat16": (3, 11, 2, 2),
        "plain SGD": (5, 2, 4, 0),
        "SGD with momentum": (5, 2, 4, 1),
    }
    return [
        Case(label, dict(trainable=trainable, frozen=frozen, number=number, moments=moments))
        for label, (trainable, frozen, number, moments) in kinds.items()
    ]


# ------------------------------------------------------------------------------------------------ what goes wrong


def _scored(head, states, actions, temperature, entropy, cast=Tensor.float):
    logits = cast(head(states)) / temperature
    return logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1), entropy(logits)


def _joined(blocks) -> tuple[Tensor, Tensor]:
    return tuple(torch.cat(column) for column in zip(*blocks, strict=True))


def _in_blocks(score: Callable, states: Tensor, actions: Tensor, rows: int, *, reentrant: bool = False):
    return _joined(
        checkpoint(score, *block, use_reentrant=reentrant)
        for block in zip(states.split(rows), actions.split(rows), strict=True)
    )


def _all_at_once(head, states, actions, *, temperature, rows, entropy):
    return _scored(head, states, actions, temperature, entropy)


def _blocks_that_stay(head, states, actions, *, temperature, rows, entropy):
    pairs = zip(states.split(rows), actions.split(rows), strict=True)
    return _joined(_scored(head, *pair, temperature, entropy) for pair in pairs)


def _without_gradient(head, states, actions, *, temperature, rows, entropy):
    with torch.no_grad():
        return _blocks_that_stay(head, states, actions, temperature=temperature, rows=rows, entropy=entropy)


def _reentrant(head, states, actions, *, temperature, rows, entropy):
    def score(states, actions):
        return _scored(head, states, actions, temperature, entropy)

    return _in_blocks(score, states, actions, rows, reentrant=True)


def _no_temperature(head, states, actions, *, temperature, rows, entropy):
    return _in_blocks(lambda s, a: _scored(head, s, a, 1.0, entropy), states, actions, rows)


def _times_temperature(head, states, actions, *, temperature, rows, entropy):
    return _in_blocks(lambda s, a: _scored(head, s, a, 1 / temperature, entropy), states, actions, rows)


def _entropy_without_temperature(head, states, actions, *, temperature, rows, entropy):
    def score(states, actions):
        return _scored(head, states, actions, temperature, entropy)[0], entropy(head(states).float())

    return _in_blocks(score, states, actions, rows)


def _own_precision(head, states, actions, *, temperature, rows, entropy):
    def score(states, actions):
        return _scored(head, states, actions, temperature, entropy, cast=lambda logits: logits)

    return _in_blocks(score, states, actions, rows)


def _full_blocks_only(head, states, actions, *, temperature, rows, entropy):
    kept = max(rows, len(states) // rows * rows)
    return _in_blocks(lambda s, a: _scored(head, s, a, temperature, entropy), states[:kept], actions[:kept], rows)


def _head_without_gradient(head, states, actions, *, temperature, rows, entropy):
    weight = head.weight.detach()
    return _in_blocks(lambda s, a: _scored(lambda x: x @ weight.T, s, a, temperature, entropy), states, actions, rows)


def _means_of_blocks(head, states, actions, *, temperature, rows, entropy):
    def score(states, actions):
        return tuple(column.mean()[None] for column in _scored(head, states, actions, temperature, entropy))

    return _in_blocks(score, states, actions, rows)


SCORE_TWINS = (
    Twin("you make the logits of all states at once: with a vocabulary of 128,256 that is 0.5 MiB a state",
         _all_at_once,
         "https://github.com/callummcdougall/ARENA_3.0/pull/351: exact KL over the vocabulary ate the memory"),
    Twin("you go in blocks, but autograd keeps the log-softmax of each: until backward they are all there again",
         _blocks_that_stay,
         "the write-up, Scaling - Memory: both models' logits for the whole batch are there at the same time"),
    Twin("you switched gradients off to save memory: these scores cannot train anybody", _without_gradient),
    Twin("your checkpoint is the re-entrant one: if no input wants a gradient, it gives the head none either",
         _reentrant,
         "PyTorch's warning 'None of the inputs have requires_grad=True', as with a frozen trunk"),
    Twin("you left the temperature out: the policy is softmax(logits / temperature)", _no_temperature,
         "sampling at T = 0.6, scoring at T = 1: https://github.com/natolambert/rlhf-book/issues/489"),
    Twin("you multiplied by the temperature", _times_temperature),
    Twin("your entropies are those at temperature 1", _entropy_without_temperature),
    Twin("you scored in the head's own precision: log-softmax wants float32", _own_precision,
         "https://github.com/huggingface/transformers/issues/31267: generation and forward differ in bf16"),
    Twin("you drop the last block where it is not full", _full_blocks_only),
    Twin("the head gets no gradient: you used its weight without its history", _head_without_gradient),
    Twin("you average each block: return a number for every state", _means_of_blocks,
         "means of means, as in https://github.com/verl-project/verl/pull/906"),
)  # fmt: skip


def _layer(shape: ModelShape, rows: int, states: int, **changes: int) -> int:
    """The right sum, less or more of what a mistake forgets or adds; counts of one token."""
    tokens = rows * states
    right = 6 * shape.width + 2 + 2 * shape.queries + 2 * shape.keys + shape.heads + 4 * shape.feed_forward
    return FLOAT32 * tokens * (right + sum(changes.values()))


def _layer_twin(says: str, change: Callable[[ModelShape, int, int], int], seen_in: str = "") -> Twin:
    return Twin(
        says, lambda shape, *, rows, states: _layer(shape, rows, states, by=change(shape, rows, states)), seen_in
    )


LAYER_TWINS = (
    Twin("you counted numbers, not bytes", lambda shape, *, rows, states: _layer(shape, rows, states) // FLOAT32),
    Twin("you counted one row", lambda shape, *, rows, states: _layer(shape, 1, states)),
    Twin("you counted all layers: one was asked for",
         lambda shape, *, rows, states: shape.layers * _layer(shape, rows, states)),
    _layer_twin("you keep the attention's weights: the fused kernel makes no [rows, heads, states, states]",
                lambda shape, rows, states: shape.heads * states - shape.heads,
                "the term 5 a s / h of Korthikanti et al. 2022, eq. 1, before recomputing"),
    _layer_twin("you gave keys and values as many heads as the queries have",
                lambda shape, rows, states: 2 * (shape.queries - shape.keys)),
    _layer_twin("you took the queries to be as wide as the stream: a head may be wider than width / heads",
                lambda shape, rows, states: 2 * (shape.width - shape.queries) + 2 * (
                    shape.width * shape.kv_heads // shape.heads - shape.keys)),
    _layer_twin("you forgot the gate before its silu, whose derivative reads it",
                lambda shape, rows, states: -shape.feed_forward),
    _layer_twin("you forgot that a product keeps both its factors: silu(gate) as well as up",
                lambda shape, rows, states: -2 * shape.feed_forward),
    _layer_twin("you forgot the normalised states: the norm's own weight is multiplied with them",
                lambda shape, rows, states: -2 * shape.width),
    _layer_twin("you keep queries and keys before their rotation as well: cos and sin want no gradient, so nobody "
                "reads them", lambda shape, rows, states: shape.queries + shape.keys),
    _layer_twin("you keep the results of the two sums of the stream as well: their derivative reads nothing, and the "
                "norms have them already", lambda shape, rows, states: 2 * shape.width),
    _layer_twin("you forgot the small ones: a root for each norm and token, a sum for each head",
                lambda shape, rows, states: -2 - shape.heads),
)  # fmt: skip


def _held_twin(says: str, weights: Callable, gradients: Callable, moments: Callable, seen_in: str = "") -> Twin:
    """Each from (trainable, frozen, number, moments) to bytes."""

    def answer(trainable: int, frozen: int, *, number: int, moments: int) -> dict[str, int]:
        given = trainable, frozen, number, moments
        return {"weights": weights(*given), "gradients": gradients(*given), "moments": of_moments(*given)}

    of_moments = moments
    return Twin(says, answer, seen_in)


def _weights(trainable, frozen, number, moments):
    return (trainable + frozen) * number


def _gradients(trainable, frozen, number, moments):
    return trainable * number


def _moments(trainable, frozen, number, moments):
    return trainable * moments * number


HELD_TWINS = (
    _held_twin("you gave frozen weights a gradient", _weights, lambda t, f, n, m: (t + f) * n, _moments,
               "a reference model whose weights still require gradients; the write-up: load with .eval, "
               "requires_grad(False) and no_grad"),
    _held_twin("you gave frozen weights moments", _weights, _gradients, lambda t, f, n, m: (t + f) * m * n,
               "an optimiser made from model.parameters(), frozen ones included, holds no state for those without "
               "gradient; with a decay or a stray gradient it does"),
    _held_twin("you forgot the weights that do not train: they are there all the same", lambda t, f, n, m: t * n,
               _gradients, _moments),
    _held_twin("you gave every weight one moment: Adam keeps two, SGD none", _weights, _gradients,
               lambda t, f, n, m: t * n),
    _held_twin("you counted numbers, not bytes", lambda t, f, n, m: t + f, lambda t, f, n, m: t,
               lambda t, f, n, m: t * m),
    _held_twin("you took every number to be of four bytes", lambda t, f, n, m: (t + f) * 4, lambda t, f, n, m: t * 4,
               lambda t, f, n, m: t * m * 4),
    _held_twin("your moments have four bytes whatever the weights have: torch's Adam keeps them in the weights' dtype",
               _weights, _gradients, lambda t, f, n, m: t * m * 4,
               "what DeepSpeed and Accelerate do under mixed precision, where weights have a float32 copy"),
    _held_twin("you forgot the gradients", _weights, lambda t, f, n, m: 0, _moments),
)  # fmt: skip

EXERCISES = (
    Exercise(
        lesson="10_memory_and_speed",
        library=memory_budget.held_bytes,
        specification=held_bytes_specification,
        cases=_held_cases,
        twins=HELD_TWINS,
        hints=(
            "Three questions about one weight: is it there? Does it get a gradient? Does the optimiser keep something "
            "for it?",
            "All weights are there. Only those that train have a gradient, and `moments` further numbers of the same "
            "size.",
            "Times `number` each: all weights; the trainable ones; the trainable ones `moments` times.",
        ),
        difficulty=1,
        importance=4,
        minutes=5,
    ),
    Exercise(
        lesson="10_memory_and_speed",
        library=memory_budget.layer_bytes,
        specification=layer_bytes_specification,
        cases=_layer_cases,
        twins=LAYER_TWINS,
        hints=(
            "Go through the layer operation by operation and ask what its derivative reads. The lesson's table has "
            "every line.",
            "Count the numbers of one token: states of the stream's width, queries, keys and values, the feed-forward "
            "part. Then tokens, then bytes.",
            "Each norm keeps its input, its normalised form and one root, and hands on what the next product keeps. "
            "The attention keeps four tensors and a number for each head. The gated part keeps four.",
        ),
        difficulty=4,
        importance=3,
        minutes=20,
    ),
    Exercise(
        lesson="10_memory_and_speed",
        library=models.score_in_blocks,
        specification=score_in_blocks_specification,
        cases=_score_cases,
        twins=SCORE_TWINS,
        hints=(
            "Write the score of one block as a function of its states and actions. What does autograd keep of it, and "
            "how do you tell it not to?",
            "`torch.utils.checkpoint.checkpoint` keeps a function's inputs, and runs it again in backward. Read its "
            "documentation on `use_reentrant`.",
            "Split states and actions into blocks of `rows`, score each through a checkpoint that is not re-entrant, "
            "join what comes out. The logits become float32 before they are divided.",
        ),
        difficulty=4,
        importance=4,
        minutes=20,
    ),
)
