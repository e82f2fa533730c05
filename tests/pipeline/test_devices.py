"""A whole run on another device: everything that should be there is there, and the texts are those of the CPU."""

from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from rlhf_lib.engine import hardware
from rlhf_lib.engine.run_folder import read_lines
from rlhf_lib.pipeline import pipeline
from rlhf_lib.pipeline import run as run_module
from rlhf_lib.pipeline.pipeline import run_pipeline
from tests.elsewhere import DEVICE, Elsewhere, MadeFromNumbers, SecondDevice, here
from tests.pipeline.runs import small_run
from tests.pipeline.test_engine import without_the_last_step
from tests.pipeline.test_pipeline import OUTPUTS, content

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
EAGER = "engine.attention=eager"  # PyTorch's kernels of the CPU are not those of a device without a driver


def back(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: here(tensor) for name, tensor in tensors.items()}


def on_the_cpu(model: PreTrainedModel) -> PreTrainedModel:
    """Another one with the same weights: those of a trunk that all models share must stay where they are."""
    other = type(model)(model.config)
    other.load_state_dict(back(model.state_dict()))
    return other


@pytest.fixture
def second_device(monkeypatch):
    """Runs go there, and what they write comes back."""
    save_file, save_pretrained = safetensors.torch.save_file, PreTrainedModel.save_pretrained
    monkeypatch.setattr(run_module, "device_of", lambda settings: DEVICE)
    monkeypatch.setattr(pipeline, "refuse_impossible", lambda settings: None)
    monkeypatch.setattr(safetensors.torch, "save_file", lambda tensors, *rest: save_file(back(tensors), *rest))
    monkeypatch.setattr(
        PreTrainedModel, "save_pretrained",
        lambda model, to, state_dict: save_pretrained(on_the_cpu(model), to, state_dict=back(state_dict)),
    )  # fmt: skip
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # there is none for this device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # nor may older Transformers switch it off
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # or tied weights would part on the way, as on no GPU
    with MadeFromNumbers(), SecondDevice() as device:
        yield device
    torch.__future__.set_swap_module_params_on_conversion(swapped)


@pytest.mark.parametrize("changes", [(), ("world.trainable_layers=2",), ("ppo.skip_unread=true",)])
def test_five_stages_elsewhere(second_device, tmp_path, changes):
    """Rejects one tensor, anywhere, that is made on the CPU and meets one of the model's; and a run that stays here.

    Without a driver every operation gives the bits of the CPU, so that a run there is the run here.
    """
    changes = (EAGER, *changes)
    run_pipeline(small_run(tmp_path / "there", *changes, checkpoint_seconds=0))
    assert second_device.operations > 10_000
    assert isinstance(small_run(tmp_path / "there", *changes).policy("sft").base_model.norm.weight, Elsewhere)


def test_the_same_texts_and_a_resume(second_device, tmp_path):
    """Rejects randomness that is drawn on the device, and a checkpoint that comes back to the CPU."""
    out = tmp_path / "there"
    run_pipeline(small_run(out, EAGER, checkpoint_seconds=0))
    before = content(out, OUTPUTS)
    resumed = without_the_last_step(out, tmp_path / "resumed", "ppo")
    run_pipeline(small_run(resumed, EAGER, resume=True))
    assert content(resumed, OUTPUTS) == before


@pytest.mark.parametrize(
    "changes", [(), ("world.trainable_layers=2",), ("ppo.samples_per_prompt=2", "ppo.minibatches=2")]
)
def test_five_stages_of_lean_elsewhere(second_device, tmp_path, monkeypatch, changes):
    """Rejects a list of states, places or prefixes that is made on the CPU in the lean pass or its decoder.

    Without fused AdamW, and without blocks of logits that are made again: both ask a driver.
    """
    plainly = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, *, fused, **rest: plainly(groups, **rest))
    run_pipeline(small_run(tmp_path / "there", "ppo.lean=true", *changes))
    assert second_device.operations > 10_000


def test_the_second_device_refuses_what_a_gpu_refuses():
    """Rejects a second device on which anything goes: then the tests above would show nothing."""
    with MadeFromNumbers(), SecondDevice():
        there, on_the_cpu = torch.ones(3, device=DEVICE), torch.ones(3)
        assert (there + 1).device == (there * on_the_cpu[0]).device == there[torch.tensor([0, 2])].device == DEVICE
        for wrong in (
            lambda: there + on_the_cpu,
            lambda: torch.where(on_the_cpu > 0, there, 0),
            lambda: on_the_cpu[there > 0],
        ):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()


# ------------------------------------------------------------------------------------------------ which device it is


@pytest.mark.parametrize(
    ("gpus", "name", "environment", "device"),
    [
        (0, "auto", {}, "cpu"),
        (0, "cpu", {}, "cpu"),
        (1, "auto", {}, "cuda:0"),
        (1, "cpu", {}, "cpu"),
        (1, "auto", {"ACCELERATE_USE_CPU": "true"}, "cpu"),
        (1, "cuda", {"ACCELERATE_USE_CPU": "true"}, "cuda:0"),
        (4, "cuda", {"LOCAL_RANK": "3", "RANK": "7"}, "cuda:3"),
    ],
)
def test_which_device(monkeypatch, gpus, name, environment, device):
    """Rejects processes that all take the first GPU, or one by their number among all machines."""
    pretend(monkeypatch, gpus, environment)
    assert str(hardware.device_of(name)) == device


@pytest.mark.parametrize(
    ("gpus", "environment", "says"), [(0, {}, "sees no GPU here"), (2, {"LOCAL_RANK": "2"}, "no GPU, there are 2")]
)
def test_no_gpu_for_this_process(monkeypatch, gpus, environment, says):
    """Rejects two processes on one GPU, and a CPU in the place of the GPU that was asked for."""
    pretend(monkeypatch, gpus, environment)
    with pytest.raises(ValueError, match=says):
        hardware.device_of("cuda")


def pretend(monkeypatch, gpus: int, environment: dict[str, str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name in ("ACCELERATE_USE_CPU", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


# ---------------------------------------------------------------------------------------------------- on a real one


@GPU
@pytest.mark.parametrize("changes", [(), ("engine.precision=float16",), ("ppo.lean=true",)])
def test_five_stages_on_a_gpu(tmp_path, changes):
    """Rejects what only a real device refuses; the first texts are those of the CPU, up to a rare token."""
    run_pipeline(small_run(tmp_path / "gpu", "engine.device=cuda", *changes))
    run_pipeline(small_run(tmp_path / "cpu"), ["sft", "preferences"])
    rows = [read_lines(tmp_path / name / "preferences.jsonl") for name in ("gpu", "cpu")]
    same = [a == b for one, other in zip(*rows, strict=True) for a, b in zip(one["summaries"], other["summaries"])]
    assert sum(same) > 0.8 * len(same)
