"""The memory budget against what torch really keeps and really holds: nothing in it is fitted."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    LlamaConfig,
)

from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.course.memory_peaks import MAKES_A_MASK, measure, plan_of, random_run
from rlhf_lib.engine import models
from rlhf_lib.engine.memory_budget import GIB, ModelShape, Plan, estimate, operations
from rlhf_lib.engine.memory_budget.operations import Pass
from rlhf_lib.engine.precision import in_precision

without_a_mask = pytest.mark.skipif(MAKES_A_MASK, reason="Transformers makes a mask")
SMALL = dict(vocab_size=131, hidden_size=24, num_hidden_layers=2, num_attention_heads=4)


def llama(**changes) -> LlamaConfig:
    return LlamaConfig(**{**SMALL, "intermediate_size": 52, "num_key_value_heads": 4, **changes})


def neox(**changes) -> GPTNeoXConfig:
    return GPTNeoXConfig(**{**SMALL, "intermediate_size": 52, **changes})


CONFIGS = {
    "llama": llama(),
    "tied": llama(tie_word_embeddings=True),
    "shared keys": llama(num_key_value_heads=2),
    "wide heads": llama(head_dim=10),
    "neox": neox(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights(name):
    """Rejects a count without a bias, a norm, a tied head, or with heads as wide as width / heads."""
    shape = ModelShape.of(CONFIGS[name])
    CONFIGS[name].num_labels = 1
    for count, kind in ((shape.policy, AutoModelForCausalLM), (shape.scorer, AutoModelForSequenceClassification)):
        assert count == sum(weight.numel() for weight in kind.from_config(CONFIGS[name]).parameters())


def saved_bytes(model: torch.nn.Module, tokens: torch.Tensor, autocast: bool) -> int:
    """Of the storages that autograd keeps, each once, the weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        model(input_ids=tokens, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


@without_a_mask
@pytest.mark.parametrize("numbers", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("name", CONFIGS)
def test_kept_for_backward_to_the_byte(name, numbers):
    """Rejects a tensor that is forgotten or counted twice, and a number of the wrong width."""
    rows, states = 3, 7
    model = AutoModel.from_config(CONFIGS[name]).to(torch.bfloat16 if numbers == "bfloat16" else torch.float32)
    run = Pass(
        shape=ModelShape.of(CONFIGS[name]), rows=rows, states=states, actions=0,
        number=2 if numbers == "bfloat16" else 4, inner=4 if numbers == "float32" else 2,
    )  # fmt: skip
    layers = [operations.layer(run) for _ in range(run.shape.layers)]
    counted = [operations.embedding(run), *itertools.chain(*layers), operations.final_norm(run)]
    tokens = torch.randint(3, 131, (rows, states))
    assert sum(operation.keeps for operation in counted) == saved_bytes(model, tokens, numbers == "autocast")


SETTINGS = PPOConfig(updates=2, batch_size=8, micro_batch_size=4, epochs=1, response_length=10, learning_rate=1e-4)
MIDDLE = dict(vocab_size=600, hidden_size=64, intermediate_size=160)
WIDE = dict(vocab_size=150_000, hidden_size=16)
UPDATES = {  # what is special, config, settings, tokens of a prompt
    "several micro-batches": (llama(**MIDDLE), SETTINGS, 30),
    "one micro-batch": (llama(**MIDDLE), replace(SETTINGS, micro_batch_size=8), 30),
    "two minibatches": (llama(**MIDDLE), replace(SETTINGS, minibatches=2), 30),
    "long rows": (llama(**MIDDLE), replace(SETTINGS, batch_size=4, micro_batch_size=1), 300),
    "shared keys": (llama(**MIDDLE, num_key_value_heads=1), SETTINGS, 60),
    "logits in blocks": (llama(**WIDE), SETTINGS, 10),
    "tied, in blocks": (llama(**WIDE, tie_word_embeddings=True), SETTINGS, 10),
    "tied, one block": (llama(**{**MIDDLE, "vocab_size": 50_000}, tie_word_embeddings=True), SETTINGS, 10),
    "entropy bonus": (llama(**{**MIDDLE, "vocab_size": 9_000}), replace(SETTINGS, entropy_coef=0.01), 10),
    "unread skipped": (llama(**{**MIDDLE, "num_hidden_layers": 1}), replace(SETTINGS, skip_unread=True), 60),
    "neox": (neox(**MIDDLE), SETTINGS, 30),
}  # fmt: skip


@without_a_mask
@pytest.mark.parametrize("what", UPDATES)
def test_an_update_to_the_percent(what):
    """Rejects gradients or moments that are forgotten, a head's or a block's gradient that is counted once too few,
    Adam's two roots, a cache without the model's own inputs, and logits counted for rows instead of actions.
    """
    config, settings, prompt = UPDATES[what]
    found = measure(random_run(config, settings, prompt=prompt))
    budget = estimate(plan_of(config, settings, prompt=prompt, found=found))
    for phase in budget.phases:
        assert phase.total == pytest.approx(found.phases[phase.name], rel=0.03), phase
    assert budget.peak == pytest.approx(found.peak, rel=0.01)


@without_a_mask
@pytest.mark.parametrize("config", [llama(**MIDDLE), neox(**MIDDLE)], ids=["llama", "neox"])
@pytest.mark.parametrize("prompt", [10, 200])
def test_an_update_under_autocast_to_the_percent(config, prompt):
    """Rejects a cache, or a head, counted in numbers that it has not got."""
    found = measure(random_run(config, SETTINGS, prompt=prompt, prepare=partial(in_precision, precision="bfloat16")))
    budget = estimate(plan_of(config, SETTINGS, prompt=prompt, found=found, autocast="bfloat16"))
    for phase in [phase for phase in budget.phases if phase.name != "scoring"]:  # the reward model here is in float32
        assert phase.total == pytest.approx(found.phases[phase.name], rel=0.05), phase


DEEP = llama(**MIDDLE | {"num_hidden_layers": 6})
THRIFTY = {  # what is special, what is done to policy and critic, what the plan calls it
    "checkpointing": (models.run_layers_again, dict(gradient_checkpointing=True)),
    "top layers": (partial(models.train_top_layers, layers=2), dict(trainable_layers=2)),
    "no layer": (partial(models.train_top_layers, layers=0), dict(trainable_layers=0)),
    "both": (
        lambda model: models.run_layers_again(models.train_top_layers(model, 3)),
        dict(trainable_layers=3, gradient_checkpointing=True),
    ),
}


@without_a_mask
@pytest.mark.parametrize("config", [DEEP, neox(**MIDDLE | {"num_hidden_layers": 6})], ids=["llama", "neox"])
@pytest.mark.parametrize("what", THRIFTY)
def test_thrifty_models_to_the_percent(what, config):
    """Rejects frozen layers that keep, layers made again that keep all or make nothing, and moments of what rests."""
    prepare, fields = THRIFTY[what]
    found = measure(random_run(config, SETTINGS, prompt=60, prepare=prepare))
    budget = estimate(plan_of(config, SETTINGS, prompt=60, found=found, **fields))
    for phase in budget.phases:
        assert phase.total == pytest.approx(found.phases[phase.name], rel=0.03), phase


ONE_BILLION = ModelShape(
    layers=16, width=2048, heads=32, kv_heads=8, head_width=64, feed_forward=8192, vocabulary=128_256, tied=True
)
PLAN = Plan(policy=ONE_BILLION, batch=64, micro_batch=8, prompt=512, response=53, device="cuda")


def test_what_takes_less():
    """Rejects a setting that does nothing, or makes more of it."""
    peak = estimate(PLAN).peak
    for change in (
        dict(micro_batch=4),
        dict(dtype="bfloat16"),
        dict(trainable_layers=2),
        dict(gradient_checkpointing=True),
        dict(skip_unread=True),
        dict(moments=0),
        dict(prompt=256),
    ):
        assert estimate(replace(PLAN, **change)).peak < peak, change
    shared = replace(PLAN, trainable_layers=2, shared_trunk=True)
    assert estimate(shared).peak < estimate(replace(shared, shared_trunk=False)).peak


def test_blocks_of_logits_are_larger_on_a_gpu(monkeypatch):
    """Rejects one size for both, another in the budget than in the pass, and one that tests cannot make smaller."""
    peaks = [estimate(replace(PLAN, device=device)).phases[1].total for device in ("cpu", "cuda")]
    assert peaks[0] < peaks[1] < peaks[0] + 2 * GIB
    assert models.logits_at_once("cpu") == models.LOGITS_AT_ONCE == 2**22 < models.logits_at_once("cuda") == 2**26
    monkeypatch.setattr(models, "LOGITS_AT_ONCE", 2**26)
    assert estimate(replace(PLAN, device="cpu")).phases[1].total == peaks[1]


def test_weights_by_hand():
    """Rejects a count of another unit, and moments of what does not train. 1,235,814,400 is the model card's number."""
    assert ONE_BILLION.policy == 1_235_814_400
    held = estimate(PLAN).phases[-1].rows
    assert held["policy"] == 4 * 1_235_814_400
    assert held["Adam's moments"] == 2 * 4 * (2 * 1_235_814_400 + 2048)
    resting = estimate(replace(PLAN, trainable_layers=0)).phases[-1].rows
    assert resting["Adam's moments"] == 2 * 4 * (2048 + 2048 + 2048)  # two final norms and the critic's head


def test_a_table_to_read():
    """Rejects a table whose sums are not those of its lines, and one that does not say where the peak is."""
    budget = estimate(PLAN)
    assert budget.peak == max(phase.total for phase in budget.phases) == sum(budget.highest.rows.values())
    assert budget.fits(budget.peak) and not budget.fits(budget.peak - 1) and not budget.fits(15 * GIB)
    assert f"highest in {budget.phase}" in str(budget)
    assert f"{budget.peak / 2**20:,.1f}" in budget._repr_html_()


@pytest.mark.parametrize(
    "wrong",
    [dict(batch=0), dict(dtype="float8"), dict(autocast="int8"), dict(device="tpu"), dict(trainable_layers=17)],
)
def test_plans_that_cannot_be(wrong):
    """Rejects a plan that is counted as if it were another."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(PLAN, **wrong)


def test_a_model_whose_operations_are_not_known():
    """Rejects a guess."""
    with pytest.raises(ValueError, match="gpt2"):
        ModelShape.of(type("Config", (), {"model_type": "gpt2"}))
