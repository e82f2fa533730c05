"""Passes in two threads: what passes in turn make, whatever happens in one of them."""

import copy
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlhf_lib.algorithms.ppo import train_ppo
from rlhf_lib.engine import lean, lean_layers, models
from rlhf_lib.engine.frozen_trunk import FrozenTrunk
from rlhf_lib.engine.side_by_side import side_by_side, worth_it
from rlhf_lib.maths.masking import mask_from_lengths
from tests.algorithms.tiny_world import CONFIG, new_state, prompt_batches
from tests.tiny import PAD, ragged_texts, tiny_llama, weights_of

LEAN = replace(CONFIG, lean=True, minibatches=1)
CLOSE = dict(rtol=1e-4, atol=1e-5)
CPU = torch.device("cpu")
TEXTS = ragged_texts()
REAL = mask_from_lengths(TEXTS.sequence_lengths, TEXTS.tokens.shape[1])


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads_of_bodies(monkeypatch):
    """Of each body's passes, forward and backward: in which thread, and how many it may use itself."""
    found, finish = {}, lean_layers.finish

    def noted(layer, states, attended):
        here = lambda *_: found.setdefault(layer, set()).add((threading.get_ident(), torch.get_num_threads()))  # noqa: E731
        here()
        made = finish(layer, states, attended)
        if made.requires_grad:
            made.register_hook(here)
        return made

    monkeypatch.setattr(lean_layers, "finish", noted)
    return found


def trained(config=LEAN):
    state = new_state(config)
    metrics = list(train_ppo(state, prompt_batches(2), config))
    return metrics, weights_of(state.policy), weights_of(state.critic), state


def test_a_run_in_two_threads_is_the_run_in_one(threads_of_bodies):
    """Rejects gradients lost or counted twice on the way back, states given to another model, and two runs that differ
    because two threads came to what they share in another order. Forward and back, all layers have a thread of one.
    """
    first, again = trained(), trained()
    passes = dict(threads_of_bodies)
    torch.set_num_threads(1)
    alone = trained()
    assert first[0] == again[0]
    for name, weight in {**first[1], **first[2]}.items():
        assert weight.equal({**again[1], **again[2]}[name])
    for found, expected in zip(first[0], alone[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)
    for found, expected in zip(first[1:3], alone[1:3], strict=True):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, **CLOSE)
    for state in (first[-1], again[-1]):
        here, beside = (
            set.union(*(passes[layer] for layer in model.base_model.layers)) for model in (state.policy, state.critic)
        )
        assert (threading.get_ident(), 1) in here and len(here) <= 2  # step zero asks the policy alone
        assert len(beside) == 1 and beside.isdisjoint(here) and next(iter(beside))[1] == 1


def test_what_was_read_ahead_is_for_one_question():
    """Rejects states of other texts, states handed out twice, and a model that stays changed."""
    policy, critic = tiny_llama(), tiny_llama(seed=1)
    others = TEXTS.tokens.flip(0)
    ask = [(policy, others), (policy, TEXTS.tokens), (critic, TEXTS.tokens), (policy, TEXTS.tokens)]
    with lean.only_what_is_read(REAL, policy, critic):
        expected = [models.hidden_states(*asked) for asked in ask]
    with lean.sparing(TEXTS.tokens, (REAL, (policy, critic)), lean=True, skip_unread=False):
        found = [models.hidden_states(*asked) for asked in ask]
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found[1] is not found[3]
    assert not {"forward", "lean"} & {*vars(policy.base_model), *vars(critic.base_model)}


def slowly(made, make):
    """`make`, noted in `made` and slow, so that another thread comes while it is made."""

    def noted(*of):
        made.append(of)
        time.sleep(0.05)
        return make(*of)

    return noted


@pytest.mark.parametrize("what", ["find_places", "each_once"])
def test_what_two_threads_share_is_made_once(monkeypatch, what):
    """Rejects places that two threads find, each for itself, or derive something from at the same time."""
    made = []
    monkeypatch.setattr(lean, what, slowly(made, getattr(lean, what)))
    policy, critic = tiny_llama(), tiny_llama(seed=1)
    with lean.sparing(TEXTS.tokens, (REAL, (policy, critic)), lean=True, skip_unread=False):
        pass
    assert len(made) == 1


def test_a_trunk_reads_each_text_for_one_thread():
    """Rejects a trunk's memory that two threads fill at the same time, models that read other states among them."""
    trunk = FrozenTrunk(trainable_layers=1, pad_token_id=PAD)
    policy, scorer = (trunk.adopt(tiny_llama()) for _ in range(2))
    runs = []
    trunk.body.layers[0].register_forward_hook(lambda *_: runs.append(time.sleep(0.02)))
    reading = (REAL, [policy]), (REAL & (TEXTS.tokens > 5), [scorer])
    with lean.sparing(TEXTS.tokens, *reading, lean=True, skip_unread=False):
        pass
    assert len(runs) == len({tuple(row) for row in trunk.rows(TEXTS.tokens)})


def squared(weight, made_in=None):
    if made_in is not None:
        made_in.append((threading.get_ident(), torch.is_grad_enabled()))
    return weight.square()


@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_where_they_are_asked_for(enabled):
    """Rejects a thread that makes gradients because nobody told it not to, and one that makes none."""
    weights, made_in = [torch.tensor(number, requires_grad=True) for number in (2.0, 3.0)], []
    with torch.set_grad_enabled(enabled):
        results = side_by_side([partial(squared, weight, made_in) for weight in weights])
    assert [float(result.detach()) for result in results] == [4, 9]
    assert [result.requires_grad for result in results] == [enabled] * 2
    assert len(set(made_in)) == 2 and {grad for _, grad in made_in} == {enabled}


def test_the_order_of_results_and_who_learns():
    """Rejects results of one model taken for another's, and gradients sent to a model that learns nothing."""
    learning, frozen = [torch.tensor(number, requires_grad=True) for number in (2.0, 3.0)], torch.tensor(5.0)
    results = side_by_side([partial(squared, weight) for weight in (learning[0], frozen, learning[1])])
    assert [float(result.detach()) for result in results] == [4, 25, 9] and not results[1].requires_grad
    (results[0] + 10 * results[2]).backward()
    assert [float(weight.grad) for weight in learning] == [4, 60]


def fails(message):
    raise ArithmeticError(message)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_of_them(failing):
    """Rejects an error that is lost, a thread that goes on behind it, and one thread for good from then on."""
    ended = threading.Event()
    slow = lambda: ended.wait(0.2) or ended.set()  # noqa: E731
    tasks = [slow, slow]
    tasks[failing] = partial(fails, "of one")
    with pytest.raises(ArithmeticError, match="of one"):
        side_by_side(tasks)
    assert ended.is_set() and torch.get_num_threads() == 2
    assert [float(made) for made in side_by_side([lambda: torch.ones(()), lambda: torch.zeros(())])] == [1, 0]


def test_an_error_on_the_way_back():
    """Rejects a backward pass that goes on with the gradients of one model alone."""
    bad, good = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    bad.register_hook(lambda grad: fails("on the way back"))
    results = side_by_side([partial(squared, good), partial(squared, bad)])
    with pytest.raises(ArithmeticError, match="on the way back"):
        sum(results).backward()
    assert torch.get_num_threads() == 2


def test_nothing_escapes_who_counts_operations():
    """Rejects operations in a thread of which a counter knows nothing, and a second thread where there is one core."""
    counts = []
    of = (tiny_llama(), tiny_llama(seed=1))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with FlopCounterMode(display=False) as counter:
            assert not worth_it(CPU)
            with lean.sparing(TEXTS.tokens, (REAL, of), lean=True, skip_unread=False):
                sum(models.hidden_states(model, TEXTS.tokens).sum() for model in of).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    assert worth_it(CPU) and not worth_it(torch.device("cuda"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert not worth_it(CPU)
    torch.set_num_threads(1)
    assert not worth_it(CPU)


def test_one_body_in_two_places():
    """Rejects two threads in one model: a reference that is the policy itself is read in turn."""
    policy = tiny_llama()
    twin = copy.copy(policy)
    with lean.sparing(TEXTS.tokens, (REAL, (policy, twin)), lean=True, skip_unread=False):
        one, other = (models.hidden_states(model, TEXTS.tokens) for model in (policy, twin))
        assert one.grad_fn.name() == other.grad_fn.name() != "_JoinedBackward"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_a_thread_of_its_own():
    """Rejects a child that waits for ever for a thread which only its parent has."""
    ask = [lambda: torch.ones(()), lambda: torch.zeros(())]
    side_by_side(ask)
    if (child := os.fork()) == 0:
        signal.alarm(20)
        os._exit(0 if len(side_by_side(ask)) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
