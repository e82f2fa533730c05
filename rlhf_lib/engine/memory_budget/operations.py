"""What each operation of a model keeps for its backward pass, and what comes and goes while it runs.

Autograd keeps what an operation's derivative reads: a product keeps both factors if both want a gradient, a matrix
product its input (the weight is there anyway), a sum nothing, an activation function its input, a log-softmax its
result. A tensor that two operations read is kept once. For N tokens, with D numbers in a state, H in its queries, K in
its keys and in its values, F in its feed-forward part, one layer of a Llama keeps, in float32,

    norm: x rsqrt(mean x^2)       x, its normalised form, the root           2 N D + N
    to queries, keys, values      their input                                  N D
    rotation                      nothing: cos and sin want no gradient
    attention, fused              q, k, v, the result, a sum for each head   2 N H + 2 N K + N heads
    output projection             the attention's result, kept already
    second norm                   as the first                               2 N D + N
    to gate and up                their input                                  N D
    silu(gate) up                 gate, silu(gate), up                       3 N F
    down projection               the product                                  N F

and one of GPT-NeoX

    two LayerNorms of one x       x once, mean and deviation of each           N D + 4 N
    to queries, keys, values      their input                                  N D
    rotation                      nothing
    attention, fused              q, k; v as a part of all three; result     6 N D + N heads
    output projection             the result, token by token                   N D
    to feed-forward, gelu, back   two inputs of a product, one of gelu         N D + 2 N F

`tests/engine/test_memory_budget.py` holds every line against what torch saves, to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from .shape import ModelShape

FLOAT32, DOUBLE, INTEGER = 4, 8, 8  # bytes
EMBEDDING, LOGITS = "embedding", "logits"


class Operation(NamedTuple):
    """Bytes; `weights` alone is a count."""

    name: str
    keeps: int = 0  # until its backward has run, beyond what an operation below it keeps
    alone: int = 0  # alive in the model while it runs, where nothing is kept
    returning: int = 0  # comes and goes while its backward runs: gradients of its results and inputs
    weights: int = 0  # each gets a gradient


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Some rows on their way through a model."""

    shape: ModelShape
    rows: int
    states: int  # of a row, padding included
    actions: int  # of all rows: where something was chosen
    number: int = FLOAT32  # bytes of a weight, of its gradient, and of a state between layers
    inner: int = FLOAT32  # bytes of what matrix products read; less than `number` under autocast
    masked: bool = False  # attention gets a mask, as under left padding
    cached: bool = False  # keys and values go into a cache, which is counted elsewhere
    fused: bool = True  # attention in one kernel, which makes no [rows, heads, states, states]

    @property
    def tokens(self) -> int:
        return self.rows * self.states

    @property
    def stream(self) -> int:
        """Of what runs from layer to layer."""
        return self.tokens * self.shape.width * self.number

    @property
    def queries(self) -> int:
        return self.tokens * self.shape.queries * self.inner

    @property
    def keys(self) -> int:
        """Also of the values."""
        return self.tokens * self.shape.keys * self.inner

    @property
    def hidden(self) -> int:
        """Of what the feed-forward part holds inside."""
        return self.tokens * self.shape.feed_forward * self.inner

    @property
    def angles(self) -> int:
        """Of cosine and sine for every state, or under left padding for every token."""
        return 2 * (self.tokens if self.masked else self.states) * self.shape.rotated * self.number

    def inputs(self, products: int) -> int:
        """Of what this many matrix products of one input keep: autocast makes each a copy of its own."""
        return self.tokens * self.shape.width * self.inner * (products if self.inner < self.number else 1)

    def copies(self, weights: int) -> int:
        """Of weights in the numbers of autocast, which are kept, too."""
        return weights * self.inner if self.inner < self.number else 0


def embedding(run: Pass, *, also_head: bool = False) -> Operation:
    """`also_head`: its gradient is added to that of the head, and the sum is a tensor of its own."""
    total = run.shape.embedding * run.number if also_head else 0
    return Operation(
        EMBEDDING, INTEGER * run.tokens + run.angles, run.stream, max(run.stream, total), run.shape.embedding
    )


def layer(run: Pass, *, mlp: Pass | None = None) -> list[Operation]:
    """The operations of one layer as they run; `mlp`: where its feed-forward part runs, if not everywhere."""
    operations = (_llama if run.shape.family == "llama" else _neox)(run, mlp or run)
    if mlp is not None:
        back = 2 * INTEGER * mlp.tokens  # the places of what was picked
        operations.append(Operation("put back", keeps=back, alone=3 * run.stream, returning=2 * run.stream))
    return operations


def layer_bytes(shape: ModelShape, *, rows: int, states: int) -> int:
    """Bytes that one layer of a Llama keeps from its forward pass for its backward pass, in float32.

    rows, states  of the batch on its way through, padding included
    returns       what autograd keeps, each tensor once; no weights, which are there anyway. The attention is fused:
                  it keeps queries, keys, values, its result, and one number for each head and token
    """
    return sum(operation.keeps for operation in layer(Pass(shape=shape, rows=rows, states=states, actions=0)))


def final_norm(run: Pass) -> Operation:
    return _norm("final norm", run)


def policy_head(run: Pass, *, at_once: int, entropy: bool, trains: bool = True) -> list[Operation]:
    """Logits and log-softmax of the states that act, in blocks of `at_once` numbers.

    With more than one block backward makes each block's logits again, only what they are made of is kept, and the
    head's gradients of earlier blocks wait: what a new one is added to, and the sum, are tensors of their own.
    entropy  its log-softmax, exp and product are read as well
    trains   the head gets a gradient
    """
    shape, block = run.shape, min(run.actions, max(1, at_once // run.shape.vocabulary))
    logits = block * shape.vocabulary * FLOAT32
    halves = block * shape.vocabulary * run.inner if run.inner < FLOAT32 else 0  # the head's own, before float32
    chosen = run.actions * shape.width * run.inner + run.copies(shape.embedding)
    kept = logits + (3 * logits + logits // FLOAT32 if entropy else 0)
    again = block < run.actions
    waiting = shape.embedding * run.number if again and trains else 0
    alone = chosen + halves + (5 if entropy else 2) * logits
    return [
        Operation("states that act", 2 * INTEGER * run.actions, run.stream + chosen, 2 * run.stream),
        Operation(LOGITS, chosen, alone, max(logits + halves + waiting, 2 * waiting), shape.embedding if trains else 0),
        Operation("log-softmax", 0 if again else kept, alone, 2 * logits + (kept + waiting if again else 0)),
    ]


def scorer_head(run: Pass) -> Operation:
    """One number in every state."""
    return Operation("score", run.stream, run.stream, run.stream, run.shape.width)


def _norm(name: str, run: Pass, *, kept: bool = False) -> Operation:
    """kept: its input is kept already, by another norm of the same."""
    if run.shape.family == "llama":  # made of single operations: in float32, but for the last product
        keeps = run.tokens * (run.shape.width + 1) * FLOAT32 + run.stream
    else:
        keeps = (0 if kept else run.stream) + 2 * run.tokens * run.number
    return Operation(name, keeps, 3 * run.stream, 4 * run.stream, run.shape.norm)


def _project(run: Pass) -> Operation:
    """To queries, keys and values."""
    weights = run.shape.width * (run.shape.queries + 2 * run.shape.keys)
    products, biases = (3, 0) if run.shape.family == "llama" else (1, run.shape.queries + 2 * run.shape.keys)
    made = run.queries + 2 * run.keys
    return Operation("to queries, keys, values", run.inputs(products) + run.copies(weights), 2 * run.stream + made,
                     3 * run.stream + made, weights + biases)  # fmt: skip


def _attend(run: Pass, *, whole: bool) -> list[Operation]:
    """From queries, keys and values to what is added to the stream; `whole`: values are a part of all three."""
    shape = run.shape
    made = run.queries + (0 if run.cached else 2 * run.keys)
    square = run.rows * shape.heads * run.states**2 * run.inner
    look = run.rows * run.states**2 * (1 + run.inner) if run.masked else 0  # the mask, and as numbers to be added
    spread = 2 * run.queries if run.masked and shape.kv_heads < shape.heads else 0  # a copy for every query head
    sums = run.tokens * shape.heads * FLOAT32
    kept = 2 * run.queries + (4 if whole else 2) * run.keys + (sums if run.fused else 2 * square)
    ordered = run.queries if whole else 0  # the result, head by head, is copied token by token
    scratch = 0 if run.fused else 2 * square
    weights = shape.queries * shape.width
    biases = 0 if shape.family == "llama" else shape.width
    return [
        Operation("rotation", 0, 2 * run.stream + made + 3 * run.queries, run.stream + 4 * run.queries + 2 * run.keys),
        Operation("attention", kept, 2 * run.stream + made + run.queries + look + spread + scratch,
                  run.stream + 2 * run.queries + 2 * run.keys + scratch),
        Operation("output projection", ordered + run.copies(weights), 3 * run.stream + run.queries,
                  run.stream + run.queries, weights + biases),
    ]  # fmt: skip


def _llama(run: Pass, mlp: Pass) -> list[Operation]:
    inner = run.shape.width * run.shape.feed_forward
    return [
        _norm("norm", run),
        _project(run),
        *_attend(run, whole=False),
        _norm("second norm", run),
        Operation("to gate and up", mlp.inputs(2) + mlp.copies(2 * inner), 3 * run.stream + 2 * mlp.hidden,
                  3 * run.stream + mlp.hidden, 2 * inner),
        Operation("silu(gate) up", 3 * mlp.hidden, 3 * run.stream + 3 * mlp.hidden, run.stream + 3 * mlp.hidden),
        Operation("down projection", mlp.hidden + mlp.copies(inner), 4 * run.stream + mlp.hidden,
                  run.stream + mlp.hidden, inner),
    ]  # fmt: skip


def _neox(run: Pass, mlp: Pass) -> list[Operation]:
    inner = run.shape.width * run.shape.feed_forward
    return [
        _norm("norm", run),
        _project(run),
        *_attend(run, whole=True),
        _norm("second norm", run, kept=True),
        Operation("to feed-forward", mlp.inputs(1) + mlp.copies(inner), 3 * run.stream + mlp.hidden,
                  3 * run.stream + mlp.hidden, inner + run.shape.feed_forward),
        Operation("gelu", mlp.hidden, 3 * run.stream + 2 * mlp.hidden, 2 * run.stream + 2 * mlp.hidden),
        Operation("back from feed-forward", mlp.hidden + mlp.copies(inner), 4 * run.stream + mlp.hidden,
                  2 * run.stream + mlp.hidden, inner + run.shape.width),
    ]  # fmt: skip


def at_rest(operations: list[Operation]) -> list[Operation]:
    """The same, frozen, and below all that trains: nothing is kept, nothing comes back."""
    return [operation._replace(keeps=0, returning=0, weights=0) for operation in operations]


def where_it_acts(run: Pass) -> Pass:
    """The same with one state for each action: where `skip_unread` lets the last feed-forward part run."""
    return replace(run, rows=run.actions, states=1)
