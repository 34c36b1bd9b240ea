"""The loop of group-relative RL.

Legend: P prompts per step, G chains per prompt, B = P * G, K phases, R reward components.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from gvcot import seeds
from gvcot.errors import RewardError
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker, read_metrics
from rewards import mix
from rl.advantage import Advantages, group_advantage, masked_mean_std
from rl.cluster import WorkerGroup
from rl.collect import Collector
from rl.config import AdvantageConfig, RLConfig
from rl.credit import best_of_group, route, routing, totals, whiten_phases, without_upstream
from rl.metrics import step_metrics
from rollout.tensors import table

Evaluate = Callable[[int], dict[str, float]]
"""step -> metrics of the averaged policy; logs its own panels."""


class Observer(Protocol):
    """Sees what is logged, and may end training."""

    ended: bool
    """Whether it ended the run that is resumed."""

    def stepped(self, step: int, chains: TensorDict, scores: TensorDict, metrics: dict[str, float]) -> bool:
        """After a step: its chains, their scores and its logged scalars. True to end training."""
        ...

    def evaluated(self, step: int, metrics: dict[str, float]) -> bool:
        """After an evaluation. True to end training."""
        ...


def train(
    config: RLConfig,
    policy: WorkerGroup,
    collect: Collector,
    reaches: list[str],
    phases: list[str],
    run: RunDir,
    tracker: Tracker,
    evaluate: Evaluate,
    observer: Observer,
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
        observer: progress, panels and alarms; may end training.

    Raises:
        RewardError: too many scores are missing (what was trained until then is saved), or rollout and replay
            disagree.
    """
    step = saved = run.resume_step
    evaluated: int | None = None

    def evaluation() -> bool:
        nonlocal evaluated
        metrics, evaluated = evaluate(step), step
        tracker.log(step, metrics)
        return observer.evaluated(step, metrics)

    ended = observer.ended or (step == 0 and evaluation())
    spent = 0.0
    while not ended and step < config.steps and (config.max_seconds is None or spent < config.max_seconds):
        clock = Clock()
        chains, scores, seconds = collect(prompts(config, step))
        clock.lap("collect")
        try:
            advantage, credit = credited(config, scores, chains["position"], step, reaches, phases)
        except RewardError:
            tracker.log(step + 1, missing_metrics(config, scores))
            if saved < step:
                save(run, policy, step)
            raise
        updates = policy.update(advantage_rows(chains, advantage))
        clock.lap("update")
        step += 1
        metrics = step_metrics(config, scores, credit, updates, phases)
        if config.objective == "reverse_window":
            check_gap(config, metrics, phases)
        if step % config.save_every == 0 or step == config.steps:
            save(run, policy, step)
            saved = step
        clock.lap("save")
        spent += clock.total
        metrics |= seconds | clock.metrics()
        tracker.log(step, metrics)
        ended = observer.stepped(step, chains, scores, metrics)
        if not ended and config.eval.every and step % config.eval.every == 0 and step < config.steps:
            ended = evaluation()
    save(run, policy, step)
    if evaluated != step:
        if step == run.resume_step and _is_evaluated(run, step):
            evaluate(step)  # a run that had ended: for its result, and known to log and alarms already
        else:
            evaluation()
    return step


def _is_evaluated(run: RunDir, step: int) -> bool:
    lines = (line for line in read_metrics(run.path) if line["step"] == step)
    return any(name.startswith("eval/") for line in lines for name in line)


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
    """Scores -> ((advantage_BK, kept_BK), statistics per component, NaN where it has no score).

    Raises:
        RewardError: more than `max_missing_share` of the scores of a component that counts are missing.
    """
    raw_BR, valid_BR, applies_BR = score_table(config, scores)
    mix.check_missing(
        valid_BR,
        applies_BR,
        list(config.rewards),
        config.max_missing_share,
        optimised=mix.optimised(config.rewards),
        reasons={name: missing_reasons(scores, name) for name in config.rewards},
    )
    mean_R, std_R = masked_mean_std(raw_BR.double(), valid_BR)
    some_R = valid_BR.any(0)
    statistics = {
        "mean": mean_R.float().where(some_R, torch.nan),
        "std": std_R.float().where(some_R, torch.nan),
        "missing_fraction": mix.missing_share(valid_BR, applies_BR),
    }
    parts = table(scores, "part")
    if config.shuffle_rewards:
        order_B = shuffle_within_groups(group_B, seeds.generator(config.seed, "shuffle", step))
        raw_BR, valid_BR = raw_BR[order_B], valid_BR[order_B]
        parts = {name: value_B[order_B] for name, value_B in parts.items()}
    raw_BR, valid_BR, shut_BR = mix.gated(raw_BR, valid_BR, config.rewards, parts)
    (advantage_BK, kept_BK), more = phase_advantages(config, raw_BR, valid_BR, group_B, reaches, phases)
    if config.objective == "rejection":
        kept_BK = best_of_group(advantage_BK, kept_BK, group_B)
    weights_K = torch.tensor([config.advantage.phase_weights.get(phase, 1.0) for phase in phases])
    return (advantage_BK * weights_K, kept_BK), statistics | more | {"shut_fraction": shut_BR.float().mean(0)}


def score_table(config: RLConfig, scores: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """The components' scores as raw_BR (0 where missing), valid_BR and applies_BR, in the recipe's order."""
    raw_BR, valid_BR, applies_BR = (
        torch.stack([scores[f"{what}/{name}"] for name in config.rewards], 1)
        for what in ("raw", "valid", "applies")
    )
    valid_BR = valid_BR & raw_BR.isfinite() & applies_BR
    return raw_BR.where(valid_BR, 0.0), valid_BR, applies_BR


def missing_metrics(config: RLConfig, scores: TensorDict) -> dict[str, float]:
    """What is logged of a step that isn't trained on: the share of missing scores, and why."""
    _, valid_BR, applies_BR = score_table(config, scores)
    shares_R = mix.missing_share(valid_BR, applies_BR).tolist()
    out = {f"reward_missing/{name}": share for name, share in zip(config.rewards, shares_R, strict=True)}
    for name in config.rewards:
        for kind, num in missing_reasons(scores, name).items():
            out[f"reward_part/{name}/missing_{kind}"] = num / len(scores)
    return out


def missing_reasons(scores: TensorDict, name: str) -> dict[str, int]:
    """How many scores of a component are missing for each reason that it gives."""
    start = f"{name}/missing_"
    counts = {
        part.removeprefix(start): int(value_B.nansum().item())
        for part, value_B in table(scores, "part").items()
        if part.startswith(start)
    }
    return {kind: num for kind, num in counts.items() if num}


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
        policy.save(str(folder.resolve()), step)


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
