"""What takes an update's time besides arithmetic, and what compiling and attention kernels really bring, measured.

    python -m benchmarks.speed               # prints; `--record` writes what lesson 10 shows

One thread; processor time, but on the wall for files and compilers. Seconds depend on the machine: what lesson 10 says
about them is a ratio, and which side of it is larger.
Where something cannot be had (a C++ compiler, for torch.compile) the record says so instead of a number.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "rlhf_lib" / "course" / "recorded" / "10_speed.json"
IMPORTS = ("numpy", "torch", "transformers", "transformers.models.llama.modeling_llama", "rlhf_lib.cli")
SHAPE = dict(
    vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=2048,
)  # fmt: skip


def seconds(*functions: Callable[[], object], repeats: int = 5) -> list[float]:
    """Of each the least processor time of some calls, in turns, after one that warms up: others at work only add."""
    for function in functions:
        function()
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, times in zip(functions, taken, strict=True):
            started = time.process_time()
            function()
            times.append(time.process_time() - started)
    return list(map(min, taken))


def wall(function: Callable[[], object], repeats: int = 3) -> float:
    """The least time on the wall: for files, compilers and other processes."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return min(taken)


def model(**changes: object) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).eval()


def forward_and_backward(policy: torch.nn.Module, rows: int, states: int) -> Callable[[], None]:
    from rlhf_lib.engine.models import hidden_states

    tokens = torch.randint(3, 4096, (rows, states))

    def run() -> None:
        hidden_states(policy, tokens).sum().backward()
        policy.zero_grad(set_to_none=True)

    return run


def start_up() -> dict[str, float]:
    """Processor seconds of a process that imports this alone."""
    code = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"

    def once(name: str) -> float:
        command = [sys.executable, "-c", code.format(name)]
        return float(subprocess.run(command, cwd=ROOT, text=True, check=True, stdout=subprocess.PIPE).stdout)

    return {name: min(once(name) for _ in range(3)) for name in IMPORTS}


def attention() -> list[dict[str, float]]:
    """Seconds and peak bytes of forward and backward with the fused kernel and with open attention, by length."""
    from rlhf_lib.engine.attention import with_open_attention

    found = []
    for states in (64, 256, 1024):
        runs = [forward_and_backward(policy, 2, states) for policy in (model(), with_open_attention(model()))]
        taken, peaks = seconds(*runs, repeats=3), map(peak_bytes, runs)
        names = [f"{name} {what}" for what in ("seconds", "bytes") for name in ("fused", "open")]
        found.append({"states": states} | dict(zip(names, [*taken, *peaks], strict=True)))
    return found


def peak_bytes(run: Callable[[], object]) -> int:
    """Of tensors alive at once, above what was there before."""
    from rlhf_lib.engine.profiler import Profile

    with Profile(memory=["tensors"]) as profile:
        run()
    return profile.tree()[0].memory["tensors"].peak - profile.first_levels[0]


def compiling() -> dict[str, object]:
    """Seconds of a forward and backward pass as it is and compiled; and on the wall the calls that compile."""
    if not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        return {"refused": "no C++ compiler: torch.compile raises InvalidCxxCompiler on a CPU"}
    policy, rows, states = model(), 8, 64
    quick = model()
    quick.model = torch.compile(quick.model)
    plain, compiled = (forward_and_backward(one, rows, states) for one in (policy, quick))
    found = {"first call": wall(compiled, 1)}
    found |= dict(zip(("plain", "compiled"), seconds(plain, compiled), strict=True))
    return found | {"first call at another length": wall(forward_and_backward(quick, rows, states + 1), 1)}


def without_a_compiler() -> str:
    """What torch.compile says where no C++ compiler can be found."""
    code = (
        "import torch\n"
        "try:\n    torch.compile(torch.sin)(torch.ones(3)); print('it compiled')\n"
        "except Exception as error:\n    print(type(getattr(error, 'inner_exception', error)).__name__)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": folder}
        done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "it fails"


def checkpointing() -> dict[str, float]:
    """Seconds of forward and backward, layers kept and layers that run again."""
    from rlhf_lib.engine.models import run_layers_again

    runs = forward_and_backward(model(), 8, 256), forward_and_backward(run_layers_again(model()), 8, 256)
    return dict(zip(("kept", "again"), seconds(*runs), strict=True))


def input_and_output() -> dict[str, float]:
    """On the wall: saving (to the disk, not only to its cache) and loading a model's weights and Adam's moments; and
    making token ids of texts, against reading the ids.
    """
    from safetensors.torch import load_file, save_file

    from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR

    policy, world = model(), TinyTLDR(0)
    held = {f"{kind}.{name}": weight.detach().clone() for kind in ("weight", "first", "second")
            for name, weight in policy.named_parameters()}  # fmt: skip
    posts = world.posts("ppo", 2000)
    rows = world.encode_prompts(posts)
    flat = {
        "ids": torch.tensor([token for row in rows for token in row]),
        "lengths": torch.tensor(list(map(len, rows))),
    }
    with tempfile.TemporaryDirectory() as folder:
        path, ids = Path(folder) / "checkpoint.safetensors", Path(folder) / "ids.safetensors"
        save_file(flat, ids)

        def save() -> None:
            save_file(held, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())

        return {
            "bytes": sum(tensor.nbytes for tensor in held.values()),
            "save": wall(save),
            "load": wall(lambda: [tensor.clone() for tensor in load_file(path).values()]),
            "tokenise": wall(lambda: world.encode_prompts(posts)),
            "read ids": wall(lambda: [tensor.clone() for tensor in load_file(ids).values()]),
        }


def writing() -> dict[str, float]:
    """Sampling 24 tokens for 16 rows against one forward pass over the same texts, and one pass with gradients."""
    from rlhf_lib.engine.models import hidden_states
    from rlhf_lib.engine.sampling import sample, uniforms

    policy, prompts, lengths = model(), torch.randint(3, 4096, (16, 48)), torch.full((16,), 48)
    tokens, draws = torch.randint(3, 4096, (16, 72)), uniforms("speed", rows=16, steps=24)

    def write() -> None:
        sample(policy, prompts, lengths, draws, temperature=0.7, eos_token_id=4097, pad_token_id=0)

    @torch.no_grad()
    def look() -> None:
        hidden_states(policy, tokens)

    return dict(
        zip(("write", "look", "train"), seconds(write, look, forward_and_backward(policy, 16, 72)), strict=True)
    )


def fragmentation() -> list[list]:
    """Of a fresh process: what was done, MiB of tensors, and MiB that the process has grown by."""
    code = """
import json, psutil, torch
def grown():
    return psutil.Process().memory_info().rss / 2**20
torch.ones(16_384)
start, blocks = grown(), [torch.ones(16_384) for _ in range(2_000)]
rows = [["2,000 of 64 KiB", 125.0, grown() - start]]
del blocks[::2]
rows.append(["every second freed", 62.5, grown() - start])
large = torch.ones(60 * 2**18)
rows.append(["and one of 60 MiB made", 122.5, grown() - start])
del blocks, large
rows.append(["all freed", 0.0, grown() - start])
print(json.dumps(rows))
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


PARTS = {
    "imports": start_up, "attention": attention, "compile": compiling, "without a compiler": without_a_compiler,
    "checkpointing": checkpointing, "input and output": input_and_output, "writing": writing,
    "fragmentation": fragmentation,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable; the record keeps the rest")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RECORD.read_text(encoding="utf-8")) if arguments.only and RECORD.exists() else {}
    found["torch"] = torch.__version__
    for name in arguments.only or PARTS:
        found[name] = PARTS[name]()
        print(name, json.dumps(found[name], indent=1), flush=True)
    if arguments.record:
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
