"""Trains the judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.learned_judge.config import LearnedJudgeConfig
from experiments.learned_judge.data import NUM_DIGITS, Pairs, balance
from experiments.learned_judge.hints import Hints, facts, where_meant, where_point
from experiments.learned_judge.model import hidden
from experiments.learned_judge.packing import Asked, Packer
from rewards.judge.measure import digit_probabilities
from sft.muon import Muon


class Batches:
    """Scenes with some of their edits, as often as the balance wants them."""

    def __init__(self, pairs: Pairs, config: LearnedJudgeConfig, allowed=None) -> None:
        self.pairs, self.config = pairs, config
        self._rng = np.random.default_rng(config.seed)
        share_N = balance(pairs)
        if allowed is not None: share_N = share_N * allowed
        num = len(pairs.instructions)
        order = np.argsort(pairs.scene_N, kind="stable")
        self._edits = np.split(order, np.searchsorted(pairs.scene_N[order], np.arange(1, num)))
        self._share = share_N
        self._scene_share = np.array([share_N[e].sum() for e in self._edits])
        self._scene_share /= self._scene_share.sum()

    def draw(self):
        c = self.config
        scenes = self._rng.choice(len(self._edits), c.scenes_per_step, p=self._scene_share, replace=False)
        rows = []
        for s in scenes:
            e = self._edits[s]; p = self._share[e]; n = min(c.edits_per_scene, (p > 0).sum())
            rows.append(self._rng.choice(e, n, replace=False, p=p / p.sum()))
        return scenes, rows


def parameter_groups(network, hints, config):
    named = [*network.named_parameters(), *hints.named_parameters()]
    matrices = [p for n, p in named if p.ndim == 2 and (".layers." in n or ".blocks." in n or ".merger." in n)]
    ids = {id(p) for p in matrices}
    rest = [p for n, p in named if id(p) not in ids]
    return [dict(params=matrices, lr=config.matrix_lr, orthogonal=True), dict(params=rest, lr=config.lr, orthogonal=False)]


def soft(scores: np.ndarray, spread: float) -> Tensor:
    return torch.tensor(np.stack([digit_probabilities(float(s), spread) for s in scores]), dtype=torch.float32)


def train(network, tokenizer, pairs, config: LearnedJudgeConfig, report: Callable | None = None, allowed=None):
    packer = Packer(tokenizer, config.network)
    digit_ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(d) for d in range(NUM_DIGITS)]))
    hints = Hints(config.network.width)
    groups = parameter_groups(network, hints, config)
    opt = Muon(groups, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    peaks = [g["lr"] for g in groups]
    batches = Batches(pairs, config, allowed)
    rng = np.random.default_rng(config.seed + 1)
    scores = pairs.scores_N2
    side = packer.side
    for step in range(config.steps):
        f = min(1, (step + 1) / config.warmup) * (1 - step / config.steps)
        for g, peak in zip(opt.param_groups, peaks): g["lr"] = peak * f
        scenes, rows = batches.draw()
        asked, points = [], []
        for s, r in zip(scenes, rows):
            pts = pairs.pointers[s]; chosen = [pts[i] for i in rng.permutation(len(pts))[: config.pointers]]
            asked.append(Asked(instruction=pairs.instructions[s], num_edits=len(r), expressions=[c[0] for c in chosen]))
            points += [c[1:] for c in chosen]
        packed = packer(asked)
        edit = np.concatenate(rows); scene = pairs.scene_N[edit]
        states = hidden(network, packed, pairs.before_SHW3[scenes], pairs.after_NHW3[edit])
        logits = network.lm_head(states[packed.answer_N2]).flatten(0, 1)
        want = soft(scores[edit].reshape(-1), config.spread)
        target = torch.zeros_like(logits).index_copy(1, digit_ids, want)
        ce = F.cross_entropy(logits, target, reduction="none").view(-1, 2).mean(0)
        floor = -(want * want.clamp_min(1e-9).log()).sum(1).view(-1, 2).mean(0)
        point = hints.pointing(states, packed, where_meant(pairs.mask_SHW[scene], side), where_point(np.array(points).reshape(-1, 2), side))
        see = hints.seeing(states, packed, facts(pairs.before_SHW3[scene], pairs.after_NHW3[edit], side))
        meas = hints.measuring(states, packed, torch.from_numpy(pairs.measures_NM[edit, :3]))
        loss = ce.sum() + config.w_point * point + config.w_see * see + config.w_measure * meas
        opt.zero_grad(); loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        opt.step()
        if report: report(step, dict(sc=(ce - floor)[0].item(), pq=(ce - floor)[1].item(), point=point.item(), see=see.item(), meas=meas.item()))
    return network


@torch.no_grad()
def expected(network, tokenizer, config, instructions, before, after, batch=64):
    packer = Packer(tokenizer, config.network)
    digit_ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(d) for d in range(NUM_DIGITS)]))
    out = []
    for i in range(0, len(instructions), batch):
        packed = packer([Asked(instruction=x, num_edits=1) for x in instructions[i:i + batch]])
        states = hidden(network, packed, before[i:i + batch], after[i:i + batch])
        p = network.lm_head(states[packed.answer_N2])[..., digit_ids].softmax(-1)
        out.append(p @ torch.arange(10.) * 10 / 9)
    return torch.cat(out).numpy()
