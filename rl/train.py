"""The loop of group-relative RL.

Legend: P prompts per step, G chains per prompt, B = P * G, K phases, R reward components.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from gvcot import seeds
from gvcot.errors import RewardError
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker
from rewards import mix
from rl.advantage import Advantages, group_advantage, masked_mean_std
from rl.cluster import WorkerGroup
from rl.collect import Collector
from rl.config import AdvantageConfig, RLConfig
from rl.credit import best_of_group, route, routing, totals, whiten_phases, without_upstream
from rl.metrics import step_metrics

Evaluate = Callable[[int], dict[str, float]]
"""step -> metrics of the averaged policy; logs its own panels."""


OnStep = Callable[[int, TensorDict, TensorDict, dict[str, float]], bool]
"""(step, chains, their scores, the step's scalars) -> whether training should end."""


def train(
    config: RLConfig,
    policy: WorkerGroup,
    collect: Collector,
    reaches: list[str],
    phases: list[str],
    run: RunDir,
    tracker: Tracker,
    evaluate: Evaluate,
    on_step: OnStep,
) -> int:
    """Train to `config.steps` (or `config.max_seconds`) and return the last step.

    Args:
        policy: workers that are loaded, or restored where the run is resumed.
        collect: rolls out and scores.
        reaches: per component, the last phase whose randomness can change it.
        phases: names of the chain's phases.
        run: where checkpoints go; it says where to resume.
        tracker: where metrics go.
        evaluate: called before, between and after.
        on_step: called after each step (progress, panels, alarms); may end training.

    Raises:
        RewardError: too many scores are missing, or rollout and replay disagree.
    """
    step = run.resume_step
    if step == 0:
        tracker.log(0, evaluate(0))
    spent = 0.0
    while step < config.steps and (config.max_seconds is None or spent < config.max_seconds):
        clock = Clock()
        chains, scores, seconds = collect(prompts(config, step))
        clock.lap("collect")
        advantage, credit = credited(config, scores, chains["position"], step, reaches, phases)
        updates = policy.update(advantage_rows(chains, advantage))
        clock.lap("update")
        step += 1
        metrics = step_metrics(config, scores, credit, updates, phases)
        if config.objective == "reverse_window":
            check_gap(config, metrics, phases)
        if step % config.save_every == 0 or step == config.steps:
            save(run, policy, step)
        clock.lap("save")
        spent += clock.total
        tracker.log(step, metrics | seconds | clock.metrics())
        if on_step(step, chains, scores, metrics):
            break
        if config.eval.every and step % config.eval.every == 0 and step < config.steps:
            tracker.log(step, evaluate(step))
    save(run, policy, step)
    tracker.log(step, evaluate(step))
    return step


def prompts(config: RLConfig, step: int) -> TensorDict:
    """P rows: the next scenes of the stream."""
    position = torch.arange(config.prompts_per_step)
    return TensorDict(
        {
            "index": step * config.prompts_per_step + position,
            "position": position,
            "step": torch.full_like(position, step),
        },
        batch_size=[len(position)],
    )


def credited(
    config: RLConfig, scores: TensorDict, group_B: Tensor, step: int, reaches: list[str], phases: list[str]
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Scores -> ((advantage_BK, kept_BK), statistics per component).

    Raises:
        RewardError: more than `max_missing_share` of a component's scores are missing.
    """
    raw_BR, valid_BR, applies_BR = score_table(config, scores)
    mean_R, std_R = masked_mean_std(raw_BR.double(), valid_BR)
    statistics = {
        "mean": mean_R.float(),
        "std": std_R.float(),
        "missing_fraction": mix.missing_share(valid_BR, applies_BR),
    }
    if config.shuffle_rewards:
        order_B = shuffle_within_groups(group_B, seeds.generator(config.seed, "shuffle", step))
        raw_BR, valid_BR = raw_BR[order_B], valid_BR[order_B]
    raw_BR, valid_BR, shut_BR = mix.gated(raw_BR, valid_BR, config.rewards)
    (advantage_BK, kept_BK), more = phase_advantages(config, raw_BR, valid_BR, group_B, reaches, phases)
    if config.objective == "rejection":
        kept_BK = best_of_group(advantage_BK, kept_BK, group_B)
    weights_K = torch.tensor([config.advantage.phase_weights.get(phase, 1.0) for phase in phases])
    return (advantage_BK * weights_K, kept_BK), statistics | more | {"shut_fraction": shut_BR.float().mean(0)}


def score_table(config: RLConfig, scores: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """The components' scores as raw_BR (0 where missing), valid_BR and applies_BR, in the recipe's order.

    Raises:
        RewardError: more than `max_missing_share` of a component's scores are missing.
    """
    raw_BR, valid_BR, applies_BR = (
        torch.stack([scores[f"{what}/{name}"] for name in config.rewards], 1)
        for what in ("raw", "valid", "applies")
    )
    valid_BR = valid_BR & raw_BR.isfinite() & applies_BR
    mix.check_missing(valid_BR, applies_BR, list(config.rewards), config.max_missing_share)
    return raw_BR.where(valid_BR, 0.0), valid_BR, applies_BR


def phase_advantages(
    config: RLConfig, raw_BR: Tensor, valid_BR: Tensor, group_B: Tensor, reaches: list[str], phases: list[str]
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Scores as they count -> ((advantage_BK, kept_BK), "overall" and "zero_std_fraction")."""
    options, weights_R = config.advantage, mix.weights(config.rewards)
    mean = mix.geometric_mean if options.normalize == "geometric_mean" else mix.overall
    parts = centred(options, raw_BR, valid_BR, group_B)
    if options.normalize == "component":
        scored = parts.advantage_BR, parts.kept_BR
        advantage_BK, kept_BK = route(*scored, weights_R, reaches, phases, options.credit)
    else:
        routes_RK = routing(reaches, phases, options.credit)
        sums = totals(raw_BR, valid_BR, group_B, weights_R, routes_RK, mean)
        advantage_BK, kept_BK, _ = centred(options, *sums, group_B)
    if options.baseline == "upstream":
        advantage_BK = without_upstream(
            advantage_BK, kept_BK, parts.advantage_BR, parts.kept_BR, reaches, phases
        )
    if options.whiten:
        advantage_BK = whiten_phases(advantage_BK, kept_BK)
    return (advantage_BK, kept_BK), {
        "overall": mean(raw_BR, valid_BR, weights_R).nanmean(),
        "zero_std_fraction": parts.zero_std_fraction_R,
    }


def centred(options: AdvantageConfig, raw_BR: Tensor, valid_BR: Tensor, group_B: Tensor) -> Advantages:
    """`group_advantage` as configured."""
    return group_advantage(
        raw_BR, valid_BR, group_B, std=options.std, std_floor=options.std_floor, clamp=options.clamp
    )


def advantage_rows(chains: TensorDict, routed: tuple[Tensor, Tensor]) -> TensorDict:
    """The chains as an update needs them: without images, with advantages and the global denominator."""
    advantage_BK, kept_BK = routed
    keys = chains.keys()  # a TensorDict itself iterates over its rows
    rows = chains.exclude(*(key for key in keys if str(key).startswith("images/")))
    rows["advantage"], rows["kept"] = advantage_BK, kept_BK
    rows["num_kept"] = kept_BK.sum().float().expand(len(rows)).contiguous()
    return rows


def shuffle_within_groups(group_B: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation of the rows that keeps every row in its group."""
    order_B = torch.randperm(len(group_B), generator=generator)
    by_group = order_B[torch.argsort(group_B[order_B], stable=True)]
    return by_group[torch.argsort(torch.argsort(group_B, stable=True), stable=True)]


def check_gap(config: RLConfig, metrics: dict[str, float], phases: list[str]) -> None:
    """Rollout and replay must agree, or the ratios mean nothing."""
    for phase in phases:
        gap = metrics[f"rollout/{phase}/logprob_gap"]
        if gap > config.max_logprob_gap:
            raise RewardError(
                f"rollout and replay disagree in {phase}: mean |difference of log-probs| is {gap:.2e}, at "
                f"most {config.max_logprob_gap:.0e} is allowed. Sampling and training don't compute the same "
                "model: check dtypes and conditions, or raise max_logprob_gap if the precision explains it"
            )


def save(run: RunDir, policy: WorkerGroup, step: int) -> None:
    """Write a checkpoint aside and make it the newest."""
    with run.save_checkpoint(step) as folder:
        policy.save(str(folder), step)


class Clock:
    """Seconds of the parts of one step."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a part."""
        now = time.monotonic()
        self._laps[name] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds from the start to the last lap."""
        return self._last - self._start

    def metrics(self) -> dict[str, float]:
        """ "time/<part>" and "time/step", in seconds."""
        return {f"time/{name}": seconds for name, seconds in self._laps.items()} | {"time/step": self.total}
