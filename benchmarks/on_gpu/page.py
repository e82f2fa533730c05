"""docs/gpu.md from the record: no number on that page is typed by anybody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .parts import PARTS

GIB = 2**30
NEVER = "**never run on a GPU**"
HEAD = """# On a GPU: what was run, and what was not

    python -m benchmarks.on_gpu --record     # one GPU, 25 minutes; needs no network
    python -m benchmarks.on_gpu --small      # every part on small shapes, for a CPU

This page and its numbers are written by the first command from what it measures (`docs/gpu.json`).
"""
MEANING = """## What the numbers mean

- Models are random, in the shapes of Llama-3.2-1B, SmolLM2-135M and Pythia-410M; policy, critic, reference and reward
  model each have their own weights, but where only top layers train: these rest on one frozen trunk. Prompts have 512
  tokens, responses 53, four epochs of one optimiser step each. The first update is not counted.
- Weights, moments and losses are float32; products within the models' bodies are in the precision named (autocast), the
  head's in float32. How float32 is multiplied is PyTorch's default and stands with each run ("highest": no TF32).
- *Sampling* is writing the responses; *scoring* the forward passes of four models; *training* all optimiser steps with
  their forward and backward passes. The clock waits for the GPU at every phase.
- *Of the matrix rate*: counted operations of matrix products (`rlhf_lib/engine/arithmetic.py`), by the seconds, by what
  one product of two 8192 x 8192 matrices of the same precision reached on the spot.
- *Budget* is what `rlhf_lib/engine/memory_budget` says of live tensors before anything runs; *allocated* what PyTorch's
  allocator had handed out at the highest moment, *reserved* what it held. The micro-batch is the largest (halved from
  the batch) whose budget is within 88 % of the memory; beside TRL it is the one that TRL can bear.
- As on a T4: PyTorch may hold 15 GiB, and products are in float16, never bfloat16. A real T4 is several times slower.
"""


def write(results: dict[str, dict[str, dict]]) -> str:
    gpu, cpu = results["gpu"], results["cpu"]
    sections = [
        HEAD, state(gpu), whole_run(gpu), updates(gpu), beside_trl(gpu), writing(gpu), MEANING, exercised(cpu),
    ]  # fmt: skip
    return "\n".join(section.strip() + "\n" for section in sections if section)


def state(gpu: dict[str, dict]) -> str:
    """Which parts have run, where, when and by which command."""
    ran = [found for found in gpu.values() if found["state"] == "ran"]
    missing = [name for name in PARTS if gpu.get(name, {}).get("state") != "ran"]
    lines = [f"Of {len(PARTS)} parts, {len(ran)} were run on a GPU."]
    for source in dict.fromkeys(map(source_of, ran)):
        lines.append(f"- {source}")
    if missing:
        lines += ["", f"Never run on a GPU, or not to the end: {'; '.join(missing)}."]
    troubles = [f"- {name}: {found['state']}, {found['why']}" for name, found in gpu.items() if "why" in found]
    return "\n".join([*lines, *([""] if troubles else []), *troubles])


def source_of(found: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['date']}, {found['device']}: `{found['command']}` ({versions}; float32 products: "
        f"{found['float32_products']})"
    )


def whole_run(gpu: dict[str, dict]) -> str:
    (name,) = of_kind("whole run")
    found = gpu.get(name, {})
    if found.get("state") != "ran":
        return f"## The tiny world's whole run\n\n{NEVER}"
    stages = [[stage, f"{seconds:.1f}"] for stage, seconds in found["stages"].items()]
    gold = f"Gold score: SFT {found['gold']['sft']:.2f}, PPO {found['gold']['ppo']:.2f}."
    return "## The tiny world's whole run\n\n" + table(["stage", "seconds"], stages) + f"\n\n{gold}"


def updates(gpu: dict[str, dict]) -> str:
    columns = [
        "PPO updates", "micro-batch", "sampling, s", "scoring, s", "training, s", "update, s",
        "tokens written a second", "tokens of texts a second", "of the matrix rate", "budget, GiB", "allocated, GiB",
        "off by", "reserved, GiB",
    ]  # fmt: skip
    rows = [[name, *update_row(gpu.get(name))] for name in of_kind("updates")]
    return "## Updates\n\n" + table(columns, rows)


def update_row(found: dict | None) -> list[str]:
    if not found or found["state"] != "ran":
        return [never(found)]
    seconds, rates = found["seconds"], found["tokens_per_second"]
    predicted, allocated = (max(found[key].values()) for key in ("predicted", "peaks"))
    share = found["fraction_of_rate"]
    return [
        str(found["work"]["micro_batch"]), *(f"{seconds[phase]:.2f}" for phase in ("sampling", "scoring", "training")),
        f"{seconds['update']:.2f}", f"{rates['written']:,.0f}", f"{rates['of an update']:,.0f}",
        f"{share['update']:.0%} of {found['matrix_rate'] / 1e12:.0f} TFLOP/s" if share else "",
        f"{predicted / GIB:.2f}", f"{allocated / GIB:.2f}", f"{predicted / allocated - 1:+.1%}",
        f"{found['reserved'] / GIB:.2f}" if found["reserved"] else "",
    ]  # fmt: skip


def beside_trl(gpu: dict[str, dict]) -> str:
    columns = ["the same work", "ours, s", "TRL, s", "ratio", "ours, GiB", "TRL, GiB", "ratio"]
    rows = []
    for theirs in of_kind("TRL"):
        shape = theirs.partition(", ")[2]
        pair = gpu.get(f"beside TRL, {shape}"), gpu.get(theirs)
        rows.append([shape, *(pair_row(*pair) if all(map(has_run, pair)) else [NEVER])])
    return "## Beside TRL 1.12.0\n\n" + table(columns, rows)


def pair_row(ours: dict, theirs: dict) -> list[str]:
    row = []
    for scale, values in (
        (1, [found["seconds"]["update"] for found in (ours, theirs)]),
        (GIB, [max(found["peaks"].values()) for found in (ours, theirs)]),
    ):
        row += [*(f"{value / scale:.2f}" for value in values), f"{values[0] / values[1]:.2f}"]
    return row


def writing(gpu: dict[str, dict]) -> str:
    """Seconds of each way, and the share of an update that writing has if it is done so."""
    columns = ["53 tokens for 64 prompts", "way", "seconds", "first call", "tokens as the first way's", "of an update"]
    rows = []
    for name in of_kind("decoding"):
        update = gpu.get(UPDATES_OF[name])
        if not has_run(gpu.get(name)):
            rows.append([name, NEVER])
            continue
        for way, found in gpu[name]["ways"].items():
            rows.append([name, way, *way_row(found, update if has_run(update) else None)])
    return "## Writing\n\n" + table(columns, rows)


UPDATES_OF = {
    "writing, SmolLM2-135M's shape": "SmolLM2-135M's shape",
    "writing, 1B Llama": "1B Llama, batch 64",
}


def way_row(found: dict, update: dict | None) -> list[str]:
    if "failed" in found:
        return [found["failed"]]
    share = ""
    if update:
        rest = update["seconds"]["update"] - update["seconds"]["sampling"]
        share = f"{found['seconds'] / (found['seconds'] + rest):.0%}"
    return [f"{found['seconds']:.2f}", f"{found['first_call']:.1f}", f"{found['equal_tokens']:.1%}", share]


def exercised(cpu: dict[str, dict]) -> str:
    """That every part runs at all, on small shapes: of these, no number would say anything about a GPU."""
    rows = [[name, state_of(cpu.get(name)), (cpu.get(name) or {}).get("date", "")] for name in PARTS]
    sources = "\n".join(f"- {source}" for source in dict.fromkeys(source_of(f) for f in cpu.values() if has_run(f)))
    return f"## Tried on a CPU, in small shapes\n\n{table(['part', 'result', 'date'], rows)}\n\n{sources}"


def state_of(found: dict | None) -> str:
    if found is None:
        return "never"
    return found["state"] + (f": {found['why']}" if "why" in found else "")


def never(found: dict | None) -> str:
    return NEVER if found is None else f"{found['state']}: {found['why']}"


def has_run(found: dict | None) -> bool:
    return found is not None and found["state"] == "ran"


def of_kind(kind: str) -> list[str]:
    return [name for name, part in PARTS.items() if part.kind == kind]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; short rows are filled up. The first column is text, the others numbers."""
    filled = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    marks = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, marks, *filled])
