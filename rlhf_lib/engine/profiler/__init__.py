"""Where the time and the memory of a run go, as a tree of calls; nothing is recorded, or costs, unless one asks.

Three lines profile one PPO update of the tiny world, without an edit of the library:

    from rlhf_lib.algorithms import parts, ppo
    from rlhf_lib.course.short_runs import short_run
    from rlhf_lib.engine.profiler import Profile, watched, watching

    with Profile() as profile, watching(ppo.collect, ppo.token_rewards, ppo.ppo_loss, ppo.update, ppo.measure):
        next(short_run(watched(parts.Parts())))
    print(profile)  # in a notebook: `profile` alone, as a table

Own code is marked with the decorator `profiled` or with `region("name")`. `save_json` and `save_trace` write the tree,
and every call on a line of time for chrome://tracing or https://ui.perfetto.dev.

How a decorator keeps track of calls that nest, repeat, recurse and stop half-way
    It keeps no state of its own. Each thread has one explicit stack of frames and one tree of nodes, a node being a
    name under its parent. A clock reading at every entry and exit credits the time since the last one to the frame that
    was on top: self time is a sum of intervals that cannot overlap, so that it is never negative and never counted
    twice, and a parent needs no arithmetic about its children.
    recursion    a name that is open already, directly or through others, goes on in the node it has: calls and self
                 time add up there, and the total runs once, from the outermost entry to its exit
    exceptions   leave by the same door; the frame is popped
    generators   a frame is taken off the stack at `yield`, with the regions that its body has open, and put back at
                 the next advance under whoever advances it; the time in between is somebody else's
    threads      each its own stack and tree. Coroutines interleave on one stack and are refused

What time means
    The clock is the host's, `time.perf_counter_ns`. CUDA runs behind it: a kernel's time falls on whoever waits for it.
    `Profile(synchronize=torch.cuda.synchronize)` waits at every entry and exit, which makes the shares right and the
    run slower, since launches no longer overlap.

What memory means: see `memory.py`. `Profile(memory=["tensors", "rss"])` or `["cuda"]`; by default none is read.

What it costs: `benchmarks/profiler_overhead.py`. Far below 1 % of an update, with `rss`, too; `tensors` is for memory.

What was run: everything on a CPU, in Python 3.11 and torch 2.13. The CUDA meter and the waiting have only been tried
against stand-ins that behave as documented by torch, not on a GPU.
"""

from .functions import profiled, region, watched, watching
from .recording import Profile

__all__ = ["Profile", "profiled", "region", "watched", "watching"]
