"""The profiler. Times come from a clock that the test turns, so every number is exact on a busy machine, too."""

from __future__ import annotations

import contextlib
import inspect
import json
import mmap
import re
import sys
import textwrap
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib.algorithms import ppo
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.course.short_runs import short_run
from rlhf_lib.engine import profiler, sampling
from rlhf_lib.engine.profiler import Profile, memory, profiled, region, watched, watching
from tests.tiny import tiny_llama

SMALL = PPOConfig(updates=2, batch_size=8, epochs=1, response_length=4)


class Clock:
    """ns that pass only when the test says so."""

    def __init__(self):
        self.now = 1_000  # not 0: a start that is taken for 0 shows

    def __call__(self) -> int:
        return self.now

    def tick(self, ns: int) -> None:
        self.now += ns


@pytest.fixture
def clock():
    return Clock()


def numbers(profile: Profile, thread: int = 0) -> dict[str, tuple[int, int, int]]:
    """Calls, total and self time by path."""
    found, path = {}, []
    for depth, entry in profile.tree()[thread].walk():
        path[depth:] = [entry.label]
        found["/".join(path[1:]) or path[0]] = (entry.calls, entry.total, entry.self_time)
    return found


def one(profile: Profile, label: str) -> SimpleNamespace:
    (entry,) = [entry for tree in profile.tree() for entry in tree.find(label)]
    return entry


# ------------------------------------------------------------------------------------------------- nesting, repetition


def test_nested_and_repeated_calls(clock):
    """Rejects self time that holds the children's, a second call that replaces the first, and one name that is one
    node wherever it is called from.
    """
    with Profile(clock=clock) as profile:
        clock.tick(1)
        for _ in range(2):
            with region("outer"):
                clock.tick(10)
                with region("inner"):
                    clock.tick(100)
        with region("inner"):
            clock.tick(1000)
    assert numbers(profile) == {
        "all": (1, 1221, 1), "outer": (2, 220, 20), "outer/inner": (2, 200, 200), "inner": (1, 1000, 1000),
    }  # fmt: skip
    assert one(profile, "outer").share == 220 / 1221


def test_recursion_goes_on_in_one_node(clock):
    """Rejects a total that counts the inner call again (7 + 6 + ... here), and a tree as deep as the recursion."""

    @profiled
    def count(n):
        clock.tick(1)
        return n and 1 + count(n - 1)

    with Profile(clock=clock) as profile:
        assert count(6) == 6
    assert numbers(profile) == {"all": (1, 7, 0), "test_profiler.count": (7, 7, 7)}


def test_recursion_through_others(clock):
    """Rejects an ancestor's node that is only found in the parent: even - odd - even would come twice."""

    @profiled
    def even(n):
        clock.tick(1)
        return odd(n - 1) if n else True

    @profiled
    def odd(n):
        clock.tick(10)
        return even(n - 1) if n else False

    with Profile(clock=clock) as profile:
        assert even(4)
    assert numbers(profile) == {
        "all": (1, 23, 0), "test_profiler.even": (3, 23, 3), "test_profiler.even/test_profiler.odd": (2, 22, 20),
    }  # fmt: skip


def test_an_exception_leaves_the_stack_as_it_was(clock):
    """Rejects a frame that stays: what comes after would hang below it, and its time would run on."""

    @profiled
    def fails():
        clock.tick(1)
        raise KeyError("as planned")

    with Profile(clock=clock) as profile:
        for _ in range(2):
            with pytest.raises(KeyError), region("around"):
                fails()
        with region("after"):
            clock.tick(5)
    assert numbers(profile) == {
        "all": (1, 7, 0), "around": (2, 2, 0), "around/test_profiler.fails": (2, 2, 2), "after": (1, 5, 5),
    }  # fmt: skip


PROGRAMS = st.recursive(
    st.one_of(st.integers(1, 9), st.just("fail"), st.sampled_from([0, 1]).map(lambda which: ("next", which))),
    lambda inside: st.tuples(st.sampled_from("abc"), st.lists(inside, max_size=4)),
    max_leaves=25,
)


class Machine:
    """Runs a random program, and adds up by hand: each ns goes to the innermost label, and once to each open one."""

    def __init__(self):
        self.clock, self.stack, self.total, self.self_time = Clock(), [], Counter(), Counter()
        self.generators = [self.generator(which) for which in "xy"]
        self.asleep = [["Machine.generator"], ["Machine.generator"]]

    def tick(self, ns: int) -> None:
        self.clock.tick(ns)
        self.self_time[self.stack[-1] if self.stack else "all"] += ns
        for label in {"all", *self.stack}:
            self.total[label] += ns

    @profiled
    def generator(self, name):
        for ns in range(1, 100):
            self.tick(ns)
            with self.labelled(name):
                self.tick(ns)
                try:
                    yield
                finally:  # closing it takes time, too
                    self.tick(ns)

    @contextlib.contextmanager
    def labelled(self, label):
        with region(label):
            self.stack.append(label)
            try:
                yield
            finally:
                self.stack.pop()

    def run(self, step) -> None:
        if isinstance(step, int):
            self.tick(step)
        elif step == "fail":
            raise ZeroDivisionError
        elif step[0] == "next":
            self.advance(step[1])
        else:
            with contextlib.suppress(ZeroDivisionError), self.labelled(step[0]):
                for inner in step[1]:
                    self.run(inner)

    def advance(self, which: int, how=next) -> None:
        depth = len(self.stack)
        self.stack.extend(self.asleep[which])
        how(self.generators[which])
        self.asleep[which] = self.stack[depth:]
        del self.stack[depth:]

    def close(self) -> None:
        for which in (0, 1):
            self.advance(which, type(self.generators[which]).close)


@given(st.lists(PROGRAMS, max_size=6))
def test_any_program_adds_up(program):
    """Against a count by hand, for random programs of calls, recursion, failures and two generators that sleep within
    a region. Rejects time counted while a generator sleeps, a region that is lost at `yield`, negative self times.
    """
    machine = Machine()
    with Profile(clock=machine.clock) as profile:
        for step in program:
            with contextlib.suppress(ZeroDivisionError):
                machine.run(step)
        machine.close()
    total, self_time = Counter(), Counter()
    (tree,) = profile.tree()
    for _, entry in tree.walk():
        assert entry.self_time >= 0
        total[entry.label.removeprefix("test_profiler.")] += entry.total
        self_time[entry.label.removeprefix("test_profiler.")] += entry.self_time
    assert +self_time == +machine.self_time
    assert +total == +machine.total
    assert sum(self_time.values()) == tree.total


# ---------------------------------------------------------------------------------------------------------- generators


def test_a_generator_is_timed_while_it_runs(clock):
    """Rejects time between the items, and items that belong to whoever made the generator, not to who asks for them."""

    @profiled
    def numbers_of():
        for n in (1, 2):
            clock.tick(n)
            yield n

    with Profile(clock=clock) as profile:
        made = numbers_of()
        clock.tick(100)
        with region("first"):
            assert next(made) == 1
        clock.tick(100)
        with region("rest"):
            assert list(made) == [2]
    label = "test_profiler.numbers_of"
    assert numbers(profile) == {
        "all": (1, 203, 200), "first": (1, 1, 0), f"first/{label}": (1, 1, 1),
        "rest": (1, 2, 0), f"rest/{label}": (0, 2, 2),
    }  # fmt: skip
    assert [entry.slices for tree in profile.tree() for entry in tree.find(label)] == [2, 1]


def test_a_generator_behaves_as_before(clock):
    """Rejects a wrap that swallows what is sent, thrown or returned, or that keeps the body from cleaning up."""
    seen = []

    @profiled
    def echo():
        try:
            received = None
            while received != "stop":
                try:
                    received = yield received
                except KeyError as error:
                    received = f"caught {error.args[0]}"
            return "returned"
        finally:
            seen.append("cleaned up")

    def outer():
        seen.append((yield from echo()))

    with Profile(clock=clock):
        talk = outer()
        assert [next(talk), talk.send("a"), talk.throw(KeyError("b"))] == [None, "a", "caught b"]
        with pytest.raises(StopIteration):
            talk.send("stop")
        closed = echo()
        next(closed)
        closed.close()
        with pytest.raises(StopIteration):
            next(closed)
    assert seen == ["cleaned up", "returned", "cleaned up"]
    assert inspect.isgeneratorfunction(inspect.unwrap(echo))


def test_a_generator_that_began_before_the_profile(clock):
    """Rejects a run whose second update cannot be profiled because its first one was not, and a late resumption that
    still reports to a profile that has ended.
    """

    @profiled
    def run():
        while True:
            with region("step"):
                clock.tick(5)
                yield

    going = run()
    next(going)
    profiles = []
    for _ in range(2):
        with Profile(clock=clock) as profile:
            next(going)
        profiles.append(profile)
        next(going)
    for profile in profiles:
        assert numbers(profile)["test_profiler.run"] == (0, 5, 0)
        assert numbers(profile)["test_profiler.run/step"] == (1, 5, 5)


def test_a_region_that_is_left_too_late(clock):
    """Rejects a silent tree of overlapping stretches, and a stack that is broken afterwards."""

    def unmarked():
        with region("asleep"):
            yield

    with Profile(clock=clock) as profile:
        sleeper = unmarked()
        next(sleeper)
        with pytest.raises(RuntimeError, match="'asleep' ended inside"), region("awake"):
            clock.tick(1)
            sleeper.close()
        with region("later"), region("asleep"):
            clock.tick(2)
    assert numbers(profile)["later"] == (1, 2, 0)
    assert numbers(profile)["later/asleep"] == (1, 2, 2)


def test_coroutines_are_refused():
    """Rejects a tree in which the awaited time of one task is another's."""

    async def task(): ...

    async def items():
        yield

    for function in (task, items):
        with pytest.raises(TypeError, match="coroutine"):
            profiled(function)


# ------------------------------------------------------------------------------------------------------------- threads


def in_turns(*scripts):
    """Run functions in threads of their own; each yields where the next one gets its turn."""
    threads = []
    order = [threading.Semaphore(0) for _ in scripts]

    def work(mine, script):
        order[mine].acquire()
        try:
            for _ in script():
                order[(mine + 1) % len(order)].release()
                order[mine].acquire()
        finally:
            order[(mine + 1) % len(order)].release()

    for mine, script in enumerate(scripts):
        threads.append(threading.Thread(target=work, args=(mine, script), name=f"worker {mine}"))
        threads[-1].start()
    order[0].release()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_threads_have_stacks_of_their_own(clock):
    """Rejects one stack for all: b would hang below a, and a could not be left while b is open."""

    def first():
        frame = profile.enter("a")
        clock.tick(1)
        yield
        clock.tick(100)
        profile.leave(frame)
        yield

    def second():
        clock.tick(10)
        with region("b"), region("c"):
            yield
            clock.tick(1000)

    with Profile(clock=clock) as profile:
        in_turns(first, second)
    assert [tree.label for tree in profile.tree()] == ["all", "thread worker 0", "thread worker 1"]
    assert numbers(profile, 1)["a"] == (1, 111, 111)
    assert {path: n for path, n in numbers(profile, 2).items() if path in "b/c"} == {
        "b": (1, 1100, 0), "b/c": (1, 1100, 1100),
    }  # fmt: skip
    assert numbers(profile) == {"all": (1, 1111, 1111)}


def test_what_another_thread_has_open_ends_with_the_profile(clock):
    """Rejects a total longer than the profile, and a child longer than a parent whose time is not in yet."""
    opened, ended = threading.Event(), threading.Event()

    def work():
        with region("open"):
            with region("done"):
                clock.tick(3)
            opened.set()
            ended.wait(60)

    thread = threading.Thread(target=work)
    with Profile(clock=clock) as profile:
        thread.start()
        opened.wait(60)
        clock.tick(4)
        during = numbers(profile, 1)
    clock.tick(1000)
    after = numbers(profile, 1)
    ended.set()
    thread.join()
    assert during == after == numbers(profile, 1)
    assert during["open"] == (1, 7, 4) and during["open/done"] == (1, 3, 3)


# ------------------------------------------------------------------------------------------------------- off, on, alone


def test_nothing_happens_without_a_profile(clock):
    """Rejects a profile that goes on listening, and an argument or a name that the mark changes."""

    @profiled
    def add(first, *, second=1):
        """Sum."""
        clock.tick(1)
        return first + second

    with Profile(clock=clock) as profile:
        pass
    with region("unheard"):
        assert add(1, second=2) == 3
    assert numbers(profile) == {"all": (1, 0, 0)}
    assert (add.__name__, add.__doc__, profiled(add) is add) == ("add", "Sum.", True)


def test_one_profile_at_a_time(clock):
    """Rejects two that each get half of the calls, and a crash that leaves the first one listening for ever."""
    with pytest.raises(ZeroDivisionError), Profile(clock=clock) as first:
        with pytest.raises(RuntimeError, match="one profile at a time"), Profile():
            pass
        raise ZeroDivisionError
    with pytest.raises(RuntimeError), first:
        pass
    with Profile(clock=clock) as second, region("heard"):
        pass
    assert "heard" in numbers(second) and "heard" not in numbers(first)


def test_a_report_in_the_middle(clock):
    """Rejects a report that lacks what is in progress, and one that changes the recording."""
    with Profile(clock=clock) as profile, region("outer"):
        clock.tick(1)
        with region("inner"):
            clock.tick(10)
            assert numbers(profile) == {"all": (1, 11, 0), "outer": (1, 11, 1), "outer/inner": (1, 10, 10)}
        clock.tick(100)
    assert numbers(profile) == {"all": (1, 111, 0), "outer": (1, 111, 101), "outer/inner": (1, 10, 10)}


def test_the_device_is_waited_for_before_the_clock_is_read(clock):
    """Rejects a kernel's time with whoever comes next: a stand-in for a device whose work takes time only when waited
    for. Without waiting, the launch seems free.
    """
    queue = []

    def wait():
        while queue:
            clock.tick(queue.pop())

    def run(**settings):
        with Profile(clock=clock, **settings) as profile:
            with region("launch"):
                queue.append(70)
            with region("read"):
                wait()
        return numbers(profile)["launch"][1], numbers(profile)["read"][1]

    assert run(synchronize=wait) == (70, 0)
    assert run() == (0, 70)


# ----------------------------------------------------------------------------------------------- without an edit: watch


def test_three_lines_profile_an_update():
    """The example of the docstring, run as it stands. Rejects a wrap that misses the verbs or the parts, or hangs them
    in the wrong place, and one that stays after.
    """
    example = textwrap.dedent(re.search(r"\n\n(    from .*?print.*?)\n\n", profiler.__doc__, re.DOTALL)[1])
    before, told = ppo.collect, []
    exec(example, {"print": told.append})
    paths = numbers(told[0])
    for path, calls in {
        "ppo.collect": 1, "ppo.collect/sampling.sample": 1, "ppo.collect/models.score_actions": 2, "ppo.update": 2,
        "ppo.update/ppo.ppo_loss/models.state_values": 2, "ppo.token_rewards/kl.kl_k1": 1, "advantages.gae": 1,
    }.items():  # fmt: skip
        assert paths[path][0] == calls, path
    assert ppo.collect is before and Parts().gae.__module__.endswith("advantages")
    assert "ppo.collect" in str(told[0])


def test_a_profile_changes_no_number():
    """Rejects an instrument that draws random numbers, drops a gradient or changes an order."""
    with Profile(memory=["tensors", "rss"]), watching(ppo.collect, ppo.ppo_loss, ppo.update):
        seen = next(short_run(watched(Parts()), SMALL))
    assert seen == next(short_run(Parts(), SMALL))
    assert watched(Parts()).fingerprint() == Parts().fingerprint()


def test_watching_reaches_every_name_and_methods(clock):
    """Rejects a wrap of the defining module only (a module that imported the name keeps the old one), and a class."""

    def probe():
        return sampling.sample, sys.modules[__name__].tiny_llama, sampling.Decoder.feed

    before = probe()
    with watching(*before):
        during = probe()
    assert probe() == before
    assert [function.__wrapped__ for function in during] == list(before) and not set(during) & set(before)
    with pytest.raises(ZeroDivisionError), watching(*before):
        raise ZeroDivisionError
    assert probe() == before


def test_watching_says_what_it_cannot_reach():
    """Rejects silence about a function that no name leads to: a report that lacks it looks as if it cost nothing."""
    with pytest.raises(ValueError, match=r"test_profiler\.lost"), watching(lambda: None, lost := _local()):
        pass
    assert lost.__name__ == "lost"
    with pytest.warns(UserWarning, match="sampling.sample"), Profile(), watching(sampling.sample):
        pass


def _local():
    def lost(): ...

    return lost


# -------------------------------------------------------------------------------------------------------------- memory


class Tank:
    """A meter whose level the test turns; it remembers the highest, as torch's allocator does."""

    names = ("tank",)

    def __init__(self):
        self.level = self.highest = 0

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def read(self) -> list[tuple[int, int]]:
        read = (self.level, self.highest)
        self.highest = self.level
        return [read]

    def add(self, amount: int) -> None:
        self.level += amount
        self.highest = max(self.highest, self.level)


def tank_of(profile: Profile, label: str) -> tuple[int, int]:
    found = one(profile, label).memory["tank"]
    return found.peak, found.growth


def test_peaks_go_up_to_the_parents_and_not_sideways(clock):
    """Rejects a peak that the inner call's reading takes from the outer one, a sibling that inherits the peak before
    it, growth that is counted at each level of a recursion, and a leak that is not reported.
    """
    tank = Tank()
    tank.add(1)

    @profiled
    def leak(depth):
        tank.add(1)
        return depth and leak(depth - 1)

    with Profile(clock=clock, memory=[tank]) as profile, region("outer"):
        tank.add(100)
        tank.add(-50)
        with region("high"):
            tank.add(1000)
            tank.add(-1000)
        with region("low"):
            tank.add(3)
        tank.add(-3)
        leak(4)
    assert tank_of(profile, "high") == (1051, 0)
    assert tank_of(profile, "low") == (54, 3)
    assert tank_of(profile, "outer") == (1051, 55)
    assert tank_of(profile, "test_profiler.leak") == (56, 5)
    assert tank_of(profile, "all") == (1051, 55)


def test_two_threads_share_the_memory(clock):
    """Rejects a reading by one thread that resets the peak which another one's call has seen."""
    tank = Tank()

    def first():
        with region("a"):
            tank.add(100)
            tank.add(-100)
            yield

    def second():
        with region("b"):
            tank.add(7)
        yield

    with Profile(clock=clock, memory=[tank]) as profile:
        in_turns(first, second)
    assert (tank_of(profile, "a"), tank_of(profile, "b")) == ((100, 7), (7, 7))


def measured(run) -> tuple[int, int]:
    """Peak above the start, and growth, of live tensors in bytes."""
    with Profile(memory=["tensors"]) as profile:
        kept = run()
    found = profile.tree()[0].memory["tensors"]
    del kept
    return found.peak - profile.first_levels[0], found.growth


def test_tensors_are_counted_to_the_byte():
    """Rejects views counted again, a storage that stays after its tensor, a resized one at its old size, and what was
    freed counted together with what came in its place.
    """

    def views():
        kept = torch.zeros(100)
        return kept.view(10, 10)[2:].t(), kept

    def replaced():
        for _ in range(5):
            torch.ones(100).mul_(2)

    def overlapping():
        first = torch.zeros(100)
        second = first + 1
        del first
        return second * 2

    def resized():
        return torch.zeros(10).resize_(100)

    assert measured(views) == (400, 400)
    assert measured(replaced) == (400, 0)
    assert measured(overlapping) == (800, 400)
    assert measured(resized) == (400, 400)


def test_tensors_from_before_are_known():
    """Rejects a level that sinks below zero, or stays, when something from before is freed; gradients too."""
    weight = torch.zeros(1000, requires_grad=True)
    weight.sum().backward()  # torch makes the gradient; nothing in Python has asked for it yet
    held = [torch.zeros(500)]

    def free():
        weight.t()
        weight.grad = None
        held.clear()

    assert measured(free) == (0, -6000)


def test_the_peak_of_tensors_is_that_of_the_call():
    """Rejects a peak that is never taken back, so that a small call after a large one looks as large."""
    with Profile(memory=["tensors"]) as profile:
        with region("large"):
            torch.zeros(100_000)
        with region("small"):
            torch.zeros(10)
    peaks = {name: one(profile, name).memory["tensors"].peak for name in ("large", "small")}
    assert peaks["large"] - peaks["small"] == 4 * (100_000 - 10)


def test_tensors_of_a_backward_pass():
    """Rejects a counter that Python's names feed: what only autograd holds (40 kB an exp here) has none."""

    def chain():
        x = torch.zeros(10_000, requires_grad=True)
        with region("forward"):
            y = x.exp().exp().exp().sum()
        with region("backward"):
            y.backward()
        return x

    with Profile(memory=["tensors"]) as profile:
        chain()
    assert one(profile, "forward").memory["tensors"].growth == 3 * 40_000 + 4
    assert one(profile, "backward").memory["tensors"].growth == -3 * 40_000 + 40_000


def training_step():
    model, tokens = tiny_llama(), torch.arange(160).view(8, 20) % 30
    optimizer = torch.optim.Adam(model.parameters())
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def test_the_peak_of_tensors_is_that_of_torchs_allocator(tmp_path):
    """Against the allocations that torch.profiler logs, for a step of Adam on a small Llama. Rejects operations that
    the counter does not see (inside a backward pass, an optimiser, a fused kernel): within 0.1 %, for scratch memory.
    """
    training_step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as reference:
        training_step()
    reference.export_chrome_trace(str(tmp_path / "torch.json"))
    events = json.loads((tmp_path / "torch.json").read_text(encoding="utf-8"))["traceEvents"]
    allocations = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    level = peak = 0
    for _, change in allocations:
        level += change
        peak = max(peak, level)
    assert peak > 500_000
    assert measured(training_step)[0] == pytest.approx(peak, rel=1e-3)


def test_rss_grows_with_what_is_touched():
    """Rejects a unit other than bytes, and a meter that knows torch's memory only. New pages are asked of the system:
    malloc would give what it has.
    """
    with mmap.mmap(-1, 2**26) as pages, Profile(memory=["rss"]) as profile, region("fill"):
        pages.write(b"x" * 2**26)
    grown = one(profile, "fill").memory["rss"]
    assert all(reading.time >= profile.began for reading in profile.readings)
    assert 2**25 < grown.growth < 2**27 and grown.peak > grown.growth


def test_the_cuda_meter_reads_torchs_counters(monkeypatch):
    """On a stand-in for the allocator. Rejects allocated and reserved mixed up, and peaks that are never reset. Only a
    GPU can tell whether torch's own counters are right.
    """
    state = dict(memory_allocated=10, max_memory_allocated=50, memory_reserved=20, max_memory_reserved=90)

    def reset():
        state.update(max_memory_allocated=state["memory_allocated"], max_memory_reserved=state["memory_reserved"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    for name in state:
        monkeypatch.setattr(torch.cuda, name, lambda name=name: state[name])
    with Profile(memory=["cuda"]) as profile, region("call"):
        state["memory_allocated"] = 15
        for name, reached in (("max_memory_allocated", 40), ("max_memory_reserved", 30)):
            state[name] = max(state[name], reached)
    found = one(profile, "call").memory
    assert (found["cuda allocated"].peak, found["cuda allocated"].growth) == (40, 5)
    assert (found["cuda reserved"].peak, found["cuda reserved"].growth) == (30, 0)


def test_meters_that_are_not_there(monkeypatch):
    """Rejects a table of zeros for a device that is missing, and a misspelt meter that is left out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA"), Profile(memory=["cuda"]):
        pass
    with pytest.raises(ValueError, match="'tensor'"):
        Profile(memory=["tensor"])
    with Profile(), region("the failed one does not listen"):
        pass


# ------------------------------------------------------------------------------------------------------ torch.profiler


def sandwich(function):
    """The function between two marks of torch's profiler, with ours in the middle."""
    marks, label = torch.profiler.record_function, function.__name__

    def inside(*arguments):
        with marks(f"inside {label}"):
            return function(*arguments)

    inside.__qualname__ = label

    def outside(*arguments):
        with marks(f"outside {label}"):
            return profiled(inside)(*arguments)

    return outside


def test_times_agree_with_torchs_profiler(monkeypatch):
    """One PPO update, recorded by both. Whatever the machine does meanwhile, our time of a region lies between that of
    a mark just inside it and one just around it; 1 % and 0.2 ms are for torch's conversion of processor ticks. Rejects
    wrong units, and children that are counted twice or left out.
    """
    monkeypatch.setattr(ppo, "collect", sandwich(ppo.collect))
    monkeypatch.setattr(ppo, "update", sandwich(ppo.update))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as reference, Profile() as profile:
        next(short_run(Parts(), SMALL))
    theirs = {event.name: event.time_range.elapsed_us() * 1e3 for event in reference.events()}
    for name in ("collect", "update"):
        ours = one(profile, f"test_profiler.{name}").total
        assert theirs[f"inside {name}"] * 0.99 - 2e5 <= ours <= theirs[f"outside {name}"] * 1.01 + 2e5
        assert ours > 1e6


def test_the_default_clock_counts_ns():
    """Rejects a clock in seconds, or one that stands still while the process sleeps."""
    with Profile() as profile, region("sleep"):
        time.sleep(0.02)
    assert one(profile, "sleep").total >= 20e6


# ------------------------------------------------------------------------------------------------------------- reports


@pytest.fixture
def recorded(clock):
    """Two threads, a nested call, memory, and a name that HTML would read."""
    tank = Tank()
    with Profile(clock=clock, memory=[tank]) as profile:
        clock.tick(1_000_000)
        with region("<b>outer</b>"):
            clock.tick(2_500_000)
            tank.add(3 * 2**20)
            with region("inner"):
                clock.tick(500_001)
                tank.add(-1)
        thread = threading.Thread(target=lambda: profile.leave(profile.enter("in a thread")), name="helper")
        thread.start()
        thread.join()
    return profile


def test_the_text(recorded):
    """Rejects columns that do not line up, a child that is not indented, units that are off by a thousand."""
    lines = str(recorded).splitlines()
    assert [line.split("  ")[0].strip() or line.strip().split("  ")[0] for line in lines] == [
        "calls", "all", "<b>outer</b>", "inner", "thread helper", "in a thread",
    ]  # fmt: skip
    assert re.split(r"  +", lines[2].strip()) == [
        "<b>outer</b>", "1", "3 ms", "2.5 ms", "75.0%", "3.00 MiB", "+3.00 MiB",
    ]  # fmt: skip
    assert lines[3].startswith("    inner  ") and lines[3].endswith("-1 B")
    assert len({len(line) for line in [*lines[:4], lines[5]]}) == 1
    assert str(Profile()) == "nothing recorded yet"


def test_the_html(recorded):
    """Rejects a name that becomes markup, and rows of unequal width."""
    page = recorded._repr_html_()
    assert "<b>outer" not in page and "&lt;b&gt;outer&lt;/b&gt;" in page
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    assert len(rows) == 6 and {len(re.findall(r"<t[hd]", row)) for row in rows} == {7}


def test_the_json(recorded, tmp_path):
    """Rejects rounded numbers, and a tree that is flattened."""
    recorded.save_json(tmp_path / "tree.json")
    saved = json.loads((tmp_path / "tree.json").read_text(encoding="utf-8"))
    (outer,) = saved["threads"][0]["children"]
    assert saved["wall"] == 4_000_001
    assert (outer["calls"], outer["total"], outer["self_time"]) == (1, 3_000_001, 2_500_000)
    assert outer["memory"] == {"tank": {"peak": 3 * 2**20, "growth": 3 * 2**20 - 1}}
    assert [child["label"] for child in outer["children"]] == ["inner"]


PHASES = {"M": {"args"}, "X": {"ts", "dur", "cat"}, "C": {"ts", "args"}}  # of the trace format; these are required


def test_the_chrome_trace(recorded, tmp_path):
    """Rejects what a viewer drops or draws wrongly: a missing field, ns for us, calls that overlap within a thread
    without nesting, threads on one line, counters that are not numbers.
    """
    recorded.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    for event in events:
        assert {"ph", "name", "pid", "tid"} | PHASES[event["ph"]] <= set(event)
        assert all(isinstance(event[key], int) for key in ("pid", "tid")) and isinstance(event["name"], str)
    calls = {event["name"]: event for event in events if event["ph"] == "X"}
    outer, inner, other = calls["<b>outer</b>"], calls["inner"], calls["in a thread"]
    assert (outer["ts"], outer["dur"]) == (1000.0, 3000.001)
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    assert other["tid"] != outer["tid"] == inner["tid"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[other["tid"]] == "helper"
    levels = [event["args"]["bytes"] for event in events if event["ph"] == "C"]
    assert max(levels) == 3 * 2**20 and levels[-1] == 3 * 2**20 - 1
    assert {event["ts"] for event in events if event["ph"] == "C"} == {1000.0, 3500.0, 4000.001}


def test_a_long_run_keeps_the_tree_and_says_what_the_trace_lacks(clock):
    """Rejects a list that grows for ever, and a trace that ends early without a word."""
    with Profile(clock=clock, keep=2) as profile:
        for _ in range(5):
            with region("step"):
                clock.tick(1)
    assert numbers(profile)["step"] == (5, 5, 5)
    assert len(profile.calls) == 2 and "lacks the last 3 calls" in str(profile)


def test_meters_have_the_names_that_the_docstring_gives():
    """Rejects a meter that nobody learns of."""
    assert set(memory.METERS) == set(re.findall(r"^(\w+)  +\w", memory.__doc__, re.MULTILINE))
