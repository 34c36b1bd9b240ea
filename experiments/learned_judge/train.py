"""Training of the judge: draw scenes and edits, ask, step, log, save; at the end compare it with the truth.

The loss is the cross entropy of the digit that answers SC and the one that answers PQ, whose expectations are
the exact scores, and that of three hints (`hints`).

Legend: B scenes of a step, N their edits, Q expressions, C pieces of an image, F facts, M measures, V tokens
of the vocabulary, X the ten digits, H W pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.learned_judge.agreement import compare
from experiments.learned_judge.config import LearnedJudgeConfig
from experiments.learned_judge.data import Pairs, balance, load_pairs
from experiments.learned_judge.hints import Hints, facts, where_meant, where_point
from experiments.learned_judge.model import LearnedJudge, hidden, new_judge, scores_of
from experiments.learned_judge.packing import Asked, Packed
from experiments.learned_judge.tokenizer import make_tokenizer
from gvcot import checkpoint, seeds
from gvcot.config import to_dict
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker
from rewards.judge.measure import digit_probabilities
from sft.muon import Muon

BETAS = (0.9, 0.98)


@dataclass(kw_only=True, slots=True)
class State:
    """Everything that a resumed run needs."""

    judge: LearnedJudge
    hints: Hints
    optimizer: Muon
    step: int = 0

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Of the network and the hints' heads."""
        parts = {"network": self.judge.network, "hints": self.hints}
        return {
            f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The questions of one step and what is right."""

    packed: Packed
    before_BHW3: np.ndarray
    after_NHW3: np.ndarray

    digits_N2X: Tensor
    """The distributions to answer with."""

    meant_NC: Tensor
    expressions_QC: Tensor
    facts_NCF: Tensor
    measures_NM: Tensor
    """What the hints ask for."""


def train(config: LearnedJudgeConfig, run: RunDir, tracker: Tracker) -> dict[str, dict[str, float]]:
    """Train to the last step, save the judge in `run/final`, return its agreement with the truth.

    Raises:
        CheckpointError: no such policy, or the run's own checkpoint is unusable.
        RuntimeError: the loss is no longer finite.
    """
    torch.set_num_threads(config.threads)
    pairs, truth = load_pairs(config.data, show_progress), load_pairs(config.val, show_progress)
    state = new_state(config, pairs)
    restore(run, state)
    batches = Batches(config, pairs, state.judge)
    began, first = time.process_time(), state.step
    while state.step < config.steps:
        scalars = training_step(config, batches.batch(state.step), state)
        if state.step % config.log_every == 0 or state.step == config.steps:
            seconds = (time.process_time() - began) / (state.step - first)
            tracker.log(state.step, scalars | {"time/cpu_seconds_per_step": seconds})
        if state.step % config.save_every == 0 or state.step == config.steps:
            save(run, state)
    found = compare(scores_of(state.judge, truth), truth.scores_N2, truth.kind_N)
    tracker.log(
        state.step, {f"agreement/{on}/{name}": v for on, row in found.items() for name, v in row.items()}
    )
    state.judge.save(run.path / "final", {"config": to_dict(config), "agreement": found})
    return found


def new_state(config: LearnedJudgeConfig, pairs: Pairs) -> State:
    """Random weights and a fresh optimiser; the tokenizer is learned from the data's words."""
    words = [*pairs.instructions, *(text for pointers in pairs.pointers for text, _, _ in pointers)]
    tokenizer = make_tokenizer(words, config.network.vocab)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(config.seed, "init"))
        judge, hints = new_judge(config.network, tokenizer), Hints(config.network.width)
    groups = [*parameter_groups(judge.network, hints, config)]
    optimizer = Muon(groups, lr=config.lr, betas=BETAS, weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return State(judge=judge, hints=hints, optimizer=optimizer)


def parameter_groups(
    network: nn.Module, hints: Hints, config: LearnedJudgeConfig
) -> Iterator[dict[str, Any]]:
    """The matrices of decoder and ViT layers, and the rest."""
    named = dict(network.named_parameters())
    inner = {n for n, p in named.items() if p.ndim == 2 and (".layers." in n or ".blocks." in n)}
    yield {"params": [named[n] for n in named if n in inner], "lr": config.matrix_lr, "orthogonal": True}
    rest = [named[n] for n in named if n not in inner]
    yield {"params": [*rest, *hints.parameters()], "lr": config.lr, "orthogonal": False}


class Batches:
    """Scenes with some of their edits, as often as the balance of digits wants them."""

    def __init__(self, config: LearnedJudgeConfig, pairs: Pairs, judge: LearnedJudge) -> None:
        self._config, self._pairs, self._packer = config, pairs, judge.packer
        order_N = np.argsort(pairs.scene_N, kind="stable")
        starts = np.searchsorted(pairs.scene_N[order_N], np.arange(1, len(pairs.instructions)))
        self._edits = np.split(order_N, starts)
        self._share_N = balance(pairs)
        self._share_S = np.array([self._share_N[edits].sum() for edits in self._edits])
        self._share_S /= self._share_S.sum()

    def batch(self, step: int) -> Batch:
        """The batch of a step, a function of (seed, step) alone."""
        config, pairs = self._config, self._pairs
        rng = np.random.default_rng(seeds.derive(config.seed, "batch", step))
        scene_B = rng.choice(len(self._edits), config.scenes_per_step, replace=False, p=self._share_S)
        rows = [self._some_edits(scene, rng) for scene in scene_B]
        pointers = [self._some_pointers(scene, rng) for scene in scene_B]
        edit_N = np.concatenate(rows)
        scene_N = pairs.scene_N[edit_N]
        asked = [
            Asked(
                instruction=pairs.instructions[scene], num_edits=len(edits), expressions=[p[0] for p in found]
            )
            for scene, edits, found in zip(scene_B, rows, pointers, strict=True)
        ]
        side = self._packer.side
        points_Q2 = np.array([place for found in pointers for _, *place in found]).reshape(-1, 2)
        before_NHW3, after_NHW3 = pairs.before_SHW3[scene_N], pairs.after_NHW3[edit_N]
        scores_N2 = pairs.scores_N2[edit_N]
        digits = [[digit_probabilities(float(s), config.spread) for s in both] for both in scores_N2]
        return Batch(
            packed=self._packer(asked),
            before_BHW3=pairs.before_SHW3[scene_B],
            after_NHW3=after_NHW3,
            digits_N2X=torch.tensor(np.array(digits), dtype=torch.float32),
            meant_NC=where_meant(pairs.mask_SHW[scene_N], side),
            expressions_QC=where_point(points_Q2, side),
            facts_NCF=facts(before_NHW3, after_NHW3, side),
            measures_NM=torch.from_numpy(pairs.measures_NM[edit_N, :3]),
        )

    def _some_edits(self, scene: int, rng: np.random.Generator) -> np.ndarray:
        edits = self._edits[scene]
        share = self._share_N[edits]
        number = min(self._config.edits_per_scene, len(edits))
        return rng.choice(edits, number, replace=False, p=share / share.sum())

    def _some_pointers(self, scene: int, rng: np.random.Generator) -> list[tuple[str, int, int]]:
        known = self._pairs.pointers[scene]
        return [known[i] for i in rng.permutation(len(known))[: self._config.expressions_per_scene]]


def training_step(config: LearnedJudgeConfig, batch: Batch, state: State) -> dict[str, float]:
    """One optimiser step."""
    parts = losses(state.judge, state.hints, batch)
    loss = parts["sc"] + parts["pq"] + config.pointing_weight * parts["pointing"]
    loss = loss + config.seeing_weight * parts["seeing"] + config.measuring_weight * parts["measuring"]
    if not math.isfinite(loss.item()):
        raise RuntimeError(
            f"the loss became {loss.item()} at step {state.step}: lower lr (now {config.lr}) and matrix_lr "
            f"(now {config.matrix_lr}) and resume from the last checkpoint"
        )
    share = min(1.0, (state.step + 1) / config.warmup_steps) * (1 - state.step / config.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * share
    state.optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.parameters.values(), config.grad_clip)
    state.optimizer.step()
    state.step += 1
    scalars = {name: value.item() for name, value in parts.items()}
    scalars |= {"loss": loss.item(), "grad_norm": norm.item(), "lr": config.lr * share}
    return {f"learned_judge/{name}": value for name, value in scalars.items()}


def losses(judge: LearnedJudge, hints: Hints, batch: Batch) -> dict[str, Tensor]:
    """Each part of the loss, a mean over the step's edits.

    "sc" and "pq" are KL divergences of the answer from the digits' true distribution, 0 at best; a token that
    is no digit has a true probability of 0.
    """
    states = hidden(judge.network, batch.packed, batch.before_BHW3, batch.after_NHW3)
    logits_N2V = judge.network.lm_head(states[batch.packed.answer_N2])
    answered_N2X = logits_N2V.log_softmax(dim=-1)[..., judge.digit_ids]
    kl_N2 = F.kl_div(answered_N2X, batch.digits_N2X, reduction="none").sum(dim=-1)
    sc, pq = kl_N2.mean(dim=0)
    return {
        "sc": sc,
        "pq": pq,
        "pointing": hints.pointing(states, batch.packed, batch.meant_NC, batch.expressions_QC),
        "seeing": hints.seeing(states, batch.packed, batch.facts_NCF),
        "measuring": hints.measuring(states, batch.packed, batch.measures_NM),
    }


def save(run: RunDir, state: State) -> None:
    """Write the state aside, then make it the run's newest checkpoint."""
    slots = {
        name: dict(state.optimizer.state[p])
        for name, p in state.parameters.items()
        if p in state.optimizer.state
    }
    weights = {name: p.detach() for name, p in state.parameters.items()}
    with run.save_checkpoint(state.step) as folder:
        checkpoint.save_state(folder, {"weights": weights, "optimizer": slots}, {"step": state.step})


@torch.no_grad()
def restore(run: RunDir, state: State) -> None:
    """Continue from the run's newest checkpoint, if it has one."""
    newest = run.latest_checkpoint()
    if newest is None:
        return
    tensors, meta = checkpoint.load_state(newest.path)
    state.step = meta["step"]
    for name, parameter in state.parameters.items():
        parameter.copy_(tensors["weights"][name])
        if name in tensors["optimizer"]:
            state.optimizer.state[parameter] = tensors["optimizer"][name]


def show_progress(ready: int, wanted: int) -> None:
    """Say on one line of the terminal for how many scenes there are edits."""
    print(f"edits of scenes {ready}/{wanted}", end="\r", flush=True)
