"""The five stages of RLHF. Each reads what earlier ones left in a folder and can run alone from another run's output.

sft           base model, reference summaries     -> sft/
preferences   sft/                                -> preferences.jsonl, held_out_preferences.jsonl
reward_model  sft/, preferences                   -> reward_model/
ppo           sft/, reward_model/                 -> policy/, value/
evaluation    sft/, policy/                       -> samples.jsonl
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

from torch import nn

from ..algorithms import ppo, reward_model, sft
from ..algorithms.reward_model import Comparisons
from ..algorithms.step_zero import LIMITS
from ..engine import models
from ..engine.run_folder import read_lines
from .errors import SettingsError
from .evaluation import compare_policies
from .run import Run
from .scales import scale_of
from .texts import PromptStream, reference_texts


def run_sft(run: Run) -> dict:
    """Imitate the reference summaries, starting from the world's base model."""
    config, world = run.settings.sft, run.world
    state = sft.new_state(run.base(), config)

    def steps(done: int) -> Iterator[dict]:
        state.step = done
        batches = (
            run.placed(reference_texts(world, world.posts("sft", config.batch_size, start=step * config.batch_size)))
            for step in range(done, config.steps)
        )
        return sft.train_sft(state, batches, config, run.parts)

    run.train("sft", {"policy": state.model}, state.optimizer, steps, config.steps)
    run.save("sft", state.model)
    return {}


def run_preferences(run: Run) -> dict:
    """Get pairs of summaries of one post, of which one was preferred: from readers here, or from the world's data."""
    scale_of(run.settings).collect_preferences(run)
    return {}


def run_reward_model(run: Run) -> dict:
    """Fit the preferences, starting from the SFT policy; then centre the scores on the reference summaries."""
    config, world, seed = run.settings.reward_model, run.world, run.settings.seed
    scorer = run.ready(models.scorer_from_policy(run.policy("sft"), seed=seed))
    state = reward_model.new_state(scorer, config)
    preferences = scale_of(run.settings).load_preferences(run)

    def steps(done: int) -> Iterator[dict]:
        state.step = done
        batches = _read_ahead(scorer, map(run.placed, preferences.batches(config, seed=seed, start=done)))
        return reward_model.train_reward_model(state, batches, config, run.parts)

    run.train("reward_model", {"scorer": scorer}, state.optimizer, steps, config.steps)
    references = run.placed(reference_texts(world, world.posts("sft", run.settings.evaluation.posts)))
    reward_model.centre(scorer, references, micro_batch_size=run.settings.ppo.micro_batch_size, parts=run.parts)
    run.save("reward_model", scorer)
    return {**preferences.accuracy(scorer), "pairs": preferences.pairs}


def _read_ahead(scorer: nn.Module, batches: Iterable[Comparisons]) -> Iterator[Comparisons]:
    for batch in batches:
        models.read_ahead(scorer, batch.texts)
        yield batch


def run_ppo(run: Run) -> dict:
    """Train the SFT policy against the reward model; the critic starts from the reward model's weights."""
    config = run.settings.ppo
    prompts = PromptStream(
        run.world, "ppo",
        batch_size=config.batch_size, updates=config.updates, samples_per_prompt=config.samples_per_prompt,
    )  # fmt: skip
    state = ppo_state(run, judge=prompts.judge)
    run.share_out(state.reference, state.reward_model)

    def steps(done: int) -> Iterator[dict]:
        state.update = done
        return ppo.train_ppo(state, map(run.placed, prompts.batches(start=done)), config, run.parts)

    run.train("ppo", {"policy": state.policy, "critic": state.critic}, state.optimizer, steps, config.updates)
    run.save("policy", state.policy)
    run.save("value", state.critic)
    updates = [row for row in read_lines(run.out / "metrics.jsonl") if row["stage"] == "ppo"]
    step_zero = {name: updates[0][name] for name in LIMITS if name in updates[0]}  # an older log has fewer of them
    return {**step_zero, "kl_per_sequence": updates[-1]["kl_per_sequence"]}


def ppo_state(run: Run, **rest) -> ppo.PPOState:
    """The four models of PPO before the first update, each with weights of its own."""
    scorer = run.scorer("reward_model")
    tokenizer = run.world.tokenizer
    policy = run.policy("sft")
    policy.sampled_at_once = run.settings.world.sampled_at_once
    models_of_ppo = policy, copy.deepcopy(scorer), scorer
    tokens = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    try:
        return ppo.new_state(
            *models_of_ppo, run.settings.ppo, run.parts, seed=run.settings.seed, **tokens, **rest
        )  # fmt: skip
    except ValueError as error:  # a setting that does not go with these models
        raise SettingsError(str(error)) from None


def run_evaluation(run: Run) -> dict:
    """Judge SFT policy, PPO policy and reference summaries on the same held-out posts."""
    numbers, rows = compare_policies(run, scale_of(run.settings).judge)
    run.out.write_lines("samples.jsonl", rows)
    return numbers


STAGES = {
    "sft": run_sft,
    "preferences": run_preferences,
    "reward_model": run_reward_model,
    "ppo": run_ppo,
    "evaluation": run_evaluation,
}
