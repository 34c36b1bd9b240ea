"""An RL run with its workers, evaluations, panels and progress bar: what `rl.train.train` is handed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensordict import TensorDict

from experiments.evaluate import record
from gvcot.chain import Chain
from gvcot.config import flatten, to_dict
from gvcot.data.images import to_uint8
from gvcot.data.pairs.bad_log import EVAL_FILE, BadLog
from gvcot.data.show import drawn_sheet
from gvcot.errors import ConfigError, closest
from gvcot.model.pretrained import load_tokenizer
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker, read_metrics
from gvcot.types import EditSample
from rewards import mix
from rewards.registry import build_rewards
from rl import cluster
from rl.alarms import Alarms
from rl.collect import Collector, Inline, Overlapped, RewardWorker
from rl.config import RLConfig
from rl.probes import Evaluation
from rl.scoring import TrainingPrompts, evaluation_set, provides
from rl.train import train
from rl.worker import PolicyWorker
from rollout.tensors import table

PANEL_PROMPTS = 4
"""Prompts on a panel of training rollouts, with two of their chains each."""


def execute(config: RLConfig, run: RunDir, tracker: Tracker, model: Path) -> None:
    """Start workers, train (or go on), export the averaged policy to `run/final`.

    Args:
        model: checkpoint folder to start from.

    Raises:
        ConfigError, ResourceError, CheckpointError, RewardError: see the parts.
    """
    options, scoring = config.cluster, config.reward_workers
    chain = Chain(config.chain, load_tokenizer(model), has_vit=True)
    rewards = build_rewards(config.rewards, provides(chain, config.data.pairs))
    phases = [phase.name for phase in chain.phases]
    for phase in config.advantage.phase_weights:
        if phase not in phases:
            raise ConfigError(
                f"advantage.phase_weights: this chain has no phase {phase!r}; {closest(phase, phases)}"
            )
    cluster.start(
        options.num_workers,
        options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
        address=options.address,
        num_nodes=options.num_nodes,
        other_cpus=scoring.num_workers * scoring.cpus_per_worker,
        other_gpus=scoring.num_workers * scoring.gpus_per_worker,
        object_store_mb=object_store_mb(config, len(phases)),
    )
    try:
        policy = cluster.worker_group(
            PolicyWorker,
            options.num_workers,
            config,
            num_nodes=options.num_nodes,
            cpus_per_worker=options.cpus_per_worker,
            use_gpu=options.gpus_per_worker > 0,
        )
        policy.load(str(model.resolve()))
        newest = run.latest_checkpoint()
        if newest is not None:
            policy.restore(str(newest.path.resolve()))
        tracker.layout(layout(config, phases))
        evaluator = PolicyEvaluator(config, policy, run, tracker)
        with progress_bar() as bar:
            watcher = Watcher(config, run, tracker, bar, start=run.resume_step)
            reaches = mix.reaches(rewards, config.rewards, phases)
            collect = collector(config, policy, model)
            train(config, policy, collect, reaches, phases, run, tracker, evaluator, watcher)
        account = {"config": to_dict(config), "metrics": evaluator.latest}
        policy.export(str((run.path / "final").resolve()), account)
        tracker.hparams(flatten(to_dict(config)), evaluator.latest)
    finally:
        cluster.stop()


def object_store_mb(config: RLConfig, num_phases: int) -> int:
    """Shared memory for two steps' drawn images, which is nearly all that travels, as far as there is some;
    what does not fit goes through the disk."""
    images = 2 * config.prompts_per_step * config.group_size * num_phases
    wanted = images * 3 * config.data.size**2 * 4 >> 20
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free >> 20 if shared.is_dir() else 0
    return max(300, min(wanted, int(0.8 * free)))


def collector(config: RLConfig, policy: cluster.WorkerGroup, model: Path) -> Collector:
    """Rolls out and scores as configured."""
    options = config.reward_workers
    if not options.num_workers:
        return Inline(policy)
    scorers = cluster.ActorPool(
        RewardWorker,
        options.num_workers,
        config,
        cpus=options.cpus_per_worker,
        gpus=options.gpus_per_worker,
    )
    scorers.call_all("load", str(model.resolve()))
    return Overlapped(policy, scorers, options.chunks)


class PolicyEvaluator:
    """Evaluates the averaged policy on all workers; called with the step."""

    def __init__(self, config: RLConfig, policy: cluster.WorkerGroup, run: RunDir, tracker: Tracker) -> None:
        self._config, self._policy, self._run, self._tracker = config, policy, run, tracker
        held_out = evaluation_set(config)
        self._indices = held_out.indices(config.eval.num_samples)
        self._samples = [held_out.sample(index) for index in self._indices]
        BadLog(run.path, EVAL_FILE).count(held_out.bad)
        self.latest: dict[str, float] = {}

    def __call__(self, step: int) -> dict[str, float]:
        num, workers = len(self._samples), self._config.cluster.num_workers
        index = torch.tensor(self._indices)[torch.arange(num + -num % workers).clamp_max(num - 1)]
        rows = self._policy.evaluate(TensorDict({"index": index}, batch_size=[len(index)]))[:num]
        result = Evaluation(values=table(rows, "values"), images=table(rows, "images"))
        rewards = list(self._config.rewards)
        name = self._config.eval.name
        self.latest = record(self._run.path, self._tracker, name, step, result, self._samples, rewards)
        return self.latest


class Watcher:
    """Progress bar, panels, rollout tables and alarms of training steps."""

    def __init__(self, config: RLConfig, run: RunDir, tracker: Tracker, bar: Progress, start: int) -> None:
        self._config, self._run, self._tracker, self._bar = config, run, tracker, bar
        self._task = bar.add_task("RL", total=config.steps, completed=start)
        self._first = start
        self._samples = TrainingPrompts(config.data)
        self._bad = BadLog(run.path)
        self._alarms = Alarms(config.active_alarms())
        self.ended = False
        for line in read_metrics(run.path):  # of a run that goes on
            rings = self._alarms.update(line["step"], line)
            self.ended |= line["step"] == start and any(ring.name in config.stop_on for ring in rings)
        if self.ended:
            bar.console.print(
                f"the run was ended at step {start} by an alarm of stop_on; to go on, take it out of there"
            )

    def stepped(self, step: int, chains: TensorDict, scores: TensorDict, metrics: dict[str, float]) -> bool:
        """After each step: its chains, their scores and its logged scalars. True if an alarm of `stop_on`
        rings."""
        shown = "  ".join(f"{name} {metrics[f'reward/{name}']:.3f}" for name in self._config.rewards)
        self._bar.update(self._task, completed=step, description=shown)
        if self._config.panel_every and step % self._config.panel_every == 0:
            samples = self._samples(chains["index"])
            self._panel(step, chains, samples)
            self._table(step, scores, samples)
        if self._config.data.pairs is not None:
            self._samples(chains["index"])  # as the workers do, so that what they pass over is known here
            bad = self._bad.count(self._samples.bad)
            self._tracker.log(step, bad)
            metrics = metrics | bad
        return self._watch(step, metrics)

    def evaluated(self, step: int, metrics: dict[str, float]) -> bool:
        """After each evaluation. True if an alarm of `stop_on` rings."""
        return self._watch(step, metrics)

    def _watch(self, step: int, metrics: dict[str, float]) -> bool:
        before = self._alarms.ringing()
        rings = self._alarms.update(step, metrics)
        if step == self._first + 1:
            for name in self._alarms.unseen():
                own = self._config.alarms.get(name)
                if own is not None:
                    self._bar.console.print(
                        f"[yellow]alarm {escape(name)} watches {escape(own.metric)}, "
                        "which has not been logged yet"
                    )
        changed = {k: v for k, v in self._alarms.ringing().items() if v != before.get(k, 0.0)}
        if changed:
            self._tracker.log(step, changed)
        for ring in rings:
            self._bar.console.print(f"[bold red]alarm[/] {escape(str(ring))}")
        stopping = [ring for ring in rings if ring.name in self._config.stop_on]
        if stopping:
            self._bar.console.print(f"training ends at step {step}: stop_on names {stopping[0].name}")
        return bool(stopping)

    def _panel(self, step: int, chains: TensorDict, samples: list[EditSample]) -> None:
        group = self._config.group_size
        rows = [
            p * group + g for p in range(min(PANEL_PROMPTS, self._config.prompts_per_step)) for g in (0, 1)
        ]
        images = {name: to_uint8(image[rows]) for name, image in table(chains, "images").items()}
        sheet = drawn_sheet([samples[i] for i in rows], images)
        self._tracker.images(step, "rollout/chains", np.asarray(sheet))

    def _table(self, step: int, scores: TensorDict, samples: list[EditSample]) -> None:
        """`rollouts/step_<N>.parquet`: one row per chain."""
        folder = self._run.path / "rollouts"
        folder.mkdir(exist_ok=True)
        columns: dict[str, list[object]] = {
            "sample": [s.sample_id for s in samples],
            "instruction": [s.instruction for s in samples],
        }
        for name in self._config.rewards:
            valid = scores[f"valid/{name}"].tolist()
            raw = scores[f"raw/{name}"].tolist()
            columns[name] = [r if v else None for r, v in zip(raw, valid, strict=True)]
        pq.write_table(pa.table(columns), folder / f"step_{step}.parquet")


def progress_bar() -> Progress:
    """Steps done, rewards of the latest one, elapsed time and ETA."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )


def layout(config: RLConfig, phases: list[str]) -> dict[str, dict[str, list[str]]]:
    """TensorBoard's custom-scalars page: what one looks at first."""
    rewards = list(config.rewards)
    return {
        "rewards": {
            "training rollouts": [f"reward/{name}$" for name in rewards],
            f"evaluation on {config.eval.name}": [f"eval/{name}$" for name in rewards],
            "groups without a signal": [f"reward_zero_std/{name}$" for name in rewards],
        },
        "policy": {
            "clip fraction": [f"policy/{p}/clip_fraction_(high|low)$" for p in phases],
            "KL to the sampling policy": [f"policy/{p}/kl_old$" for p in phases],
            "rollout-replay gap": [f"rollout/{p}/logprob_gap$" for p in phases],
        },
        "hacking watch": {
            "reward of the unedited source": [f"canary/unedited/{name}$" for name in rewards],
            "painted / true area": ["canary/area_ratio$"],
            "overlay colour in the edit": ["canary/overlay_leak$"],
            "edit after another's reasoning": ["eval/probe/shuffled_x_cot/.*"],
        },
    }
