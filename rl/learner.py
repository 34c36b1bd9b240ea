"""One update of the policy from scored chains.

Legend: B chains on this worker, K phases, W window steps, N latent tokens, D values per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gvcot import distributed
from gvcot.chain import Chain
from gvcot.model.parts import freeze_but
from gvcot.model.unified import UnifiedModel
from gvcot.types import ImagePhase
from rl.cluster import agg_loss
from rl.config import RLConfig
from rl.losses.kl import velocity_mse
from rl.objectives import Drawn, Said, build_objective

Answers = Mapping[str, Said]
"""Phase name -> what a policy says of one micro-batch."""


@dataclass(kw_only=True, slots=True)
class Update:
    """What one worker trains on in one step."""

    drawn: Drawn
    """B chains."""

    advantage_BK: Tensor
    """fp32, one per phase."""

    kept_BK: Tensor
    """bool; False: no signal, in neither the loss nor its denominator."""

    num_kept: float
    """Kept (chain, phase) pairs over *all* workers; times W it is the loss's denominator."""


class Learner:
    """Owns the policy's optimiser, the reference policy and the moving average."""

    def __init__(
        self,
        config: RLConfig,
        model: UnifiedModel,
        chain: Chain,
        world_size: int,
        reference: UnifiedModel | None = None,
    ) -> None:
        """
        Args:
            model: the policy, sharded already where there are several workers.
            reference: the starting policy, likewise; needed where `loss.kl_coef` is above 0, unless the
                policy has adapters: without them it is the starting policy.
        """
        assert (reference is not None) == (config.loss.kl_coef > 0 and config.lora is None)
        self._config, self._world_size = config, world_size
        self.objective = build_objective(config, chain)
        self.model = model
        self.reference = reference
        self.parameters = freeze_but(model, config.optim.train, config.lora)
        whole = {name: p for name, p in self.parameters.items() if config.lora and ".lora_" not in name}
        self._start = {name: p.detach().clone() for name, p in whole.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.optim.lr,
            betas=config.optim.betas,
            weight_decay=config.optim.weight_decay,
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, data: Update, step: int) -> dict[str, float]:
        """`updates_per_rollout` optimiser steps on one rollout.

        Returns:
            Metrics of this worker; per phase under "<phase>/<name>".

        Raises:
            AssertionError: the first ratio is not exactly 1, so replay is not a pure function of its input.
        """
        old = self._sampling_policy(data)
        metrics: dict[str, float] = {}
        for k in range(self._config.loss.updates_per_rollout):
            now = self._optimizer_step(data, old, step, first=k == 0)
            # only the first update replays the policy that sampled
            metrics = now | {name: value for name, value in metrics.items() if "logprob_gap" in name}
        return metrics

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the policy holds the moving average of its weights. *Collective* only in what is
        done inside."""
        if not self._config.optim.ema_decay:
            yield
            return
        trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._copy(self.average)
        try:
            yield
        finally:
            self._copy(trained)

    def state(self) -> dict[str, Any]:
        """What is trained, its average and optimiser moments, at full size on rank 0. *Collective.*"""
        weights = {name: p.detach() for name, p in self.parameters.items()}
        return {
            "weights": distributed.full_tensors(weights),
            "average": distributed.full_tensors(self.average),
            "optimizer": distributed.full_optimizer_state(self.model, self.optimizer),
        }

    def restore(self, tensors: dict[str, Any]) -> None:
        """Continue from `state`, on any number of workers."""
        distributed.load_full_tensors(self.average, tensors["average"])
        distributed.load_full_tensors(self.parameters, tensors["weights"])
        distributed.load_full_optimizer_state(self.model, self.optimizer, tensors["optimizer"])

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self.parameters[name].copy_(value)
        distributed.forget_gathered(self.model)

    def micro_batches(self, num_chains: int) -> list[Tensor]:
        """Row indices, `micro_batch` at a time."""
        return list(torch.arange(num_chains).split(self._config.optim.micro_batch))

    def _sampling_policy(self, data: Update) -> list[Answers] | None:
        """What the policy says before the first step. With a single step the loss's own (detached) numbers
        are the same, so None saves a forward."""
        if self._config.loss.updates_per_rollout == 1:
            return None
        with torch.no_grad():
            return [
                self.objective.ask(self.model, data.drawn, rows)
                for rows in self.micro_batches(len(data.drawn.prompt_B))
            ]

    def backward(
        self, data: Update, old: list[Answers] | None = None, *, first: bool = True
    ) -> dict[str, float]:
        """Add the gradient of the loss on one rollout to the parameters'; nothing moves.

        Args:
            old: what the policy that sampled says; None: it is the policy as it is.
            first: nothing has moved since sampling.
        """
        parts: list[dict[str, float]] = []
        sizes: list[int] = []
        for i, rows in enumerate(self.micro_batches(len(data.drawn.prompt_B))):
            reference = self._reference_velocities(data, rows)  # first: it may borrow the policy's weights
            said = self.objective.ask(self.model, data.drawn, rows)
            sampled = old[i] if old else {name: answer.detached() for name, answer in said.items()}
            if first:
                drift = max(
                    (answer.velocity_BWND - sampled[name].velocity_BWND).abs().max().item()
                    for name, answer in said.items()
                )
                assert not drift > 0.0, f"the first ratio must be exactly 1; velocities differ by {drift:.2e}"
            loss, metrics = self._loss(data, rows, said, sampled, reference)
            loss.backward()
            parts.append(metrics)
            sizes.append(len(rows))
        return merge(parts, sizes)

    def _optimizer_step(
        self, data: Update, old: list[Answers] | None, step: int, *, first: bool
    ) -> dict[str, float]:
        self._set_learning_rate(step)
        self.optimizer.zero_grad()
        metrics = self.backward(data, old, first=first)
        if self._world_size > 1 and self._config.cluster.sharding == "replicate":
            distributed.average_gradients(self.parameters.values())
        norm = distributed.clip_gradients(self.parameters.values(), self._config.optim.grad_clip)
        skipped = not math.isfinite(norm)
        if not skipped:
            self.optimizer.step()
            self._update_average()
        return metrics | {"grad_norm": norm, "skipped": float(skipped)}

    def _loss(
        self, data: Update, rows: Tensor, said: Answers, sampled: Answers, reference: Answers | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Sum over this micro-batch / the global number of kept entries, times the number of workers (FSDP
        averages gradients over them)."""
        config = self._config
        rows_loss, rows_mask, metrics = [], [], {}
        for k, phase in enumerate(data.drawn.trajectory.phases):
            assert isinstance(phase, ImagePhase), "only image phases are trained"
            now = said[phase.name]
            mask_BW = data.kept_BK[rows, k, None].expand(now.velocity_BWND.shape[:2])
            loss_BW, stats = self.objective.loss(
                phase, rows, now, sampled[phase.name], data.advantage_BK[rows, k], mask_BW
            )
            values = {name: float(value) for name, value in stats.items()}
            if reference is not None:
                v, v_ref = now.velocity_BWND.flatten(0, 1), reference[phase.name].velocity_BWND.flatten(0, 1)
                kl_BW = velocity_mse(v, v_ref).view_as(loss_BW)
                loss_BW = loss_BW + config.loss.kl_coef * kl_BW
                values["velocity_kl"] = kl_BW.mean().item()
            rows_loss.append(loss_BW)
            rows_mask.append(mask_BW)
            metrics |= {f"{phase.name}/{name}": value for name, value in values.items()}
        loss_mat, loss_mask = torch.cat(rows_loss, 1), torch.cat(rows_mask, 1)
        count = max(1, round(data.num_kept) * rows_loss[-1].shape[1])
        loss = agg_loss(loss_mat, loss_mask, "token-mean", dp_size=self._world_size, batch_num_tokens=count)
        return loss, metrics | {"loss": loss.item()}

    @torch.no_grad()
    def _reference_velocities(self, data: Update, rows: Tensor) -> Answers | None:
        if self._config.loss.kl_coef == 0:
            return None
        if self.reference is not None:
            return self.objective.ask(self.reference, data.drawn, rows)
        with self._without_adapters():
            return self.objective.ask(self.model, data.drawn, rows)

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        """Inside the block a policy with adapters is the one that training began with."""
        from gvcot.model.lora import without_lora

        trained = {name: self.parameters[name].detach().clone() for name in self._start}
        self._copy(self._start)
        try:
            with without_lora(self.model):
                yield
        finally:
            self._copy(trained)

    def _set_learning_rate(self, step: int) -> None:
        optim = self._config.optim
        lr = optim.lr * min(1.0, (step + 1) / max(1, optim.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def _update_average(self) -> None:
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach(), 1 - self._config.optim.ema_decay)


def merge(parts: list[dict[str, float]], sizes: list[int]) -> dict[str, float]:
    """Means over micro-batches by size, extremes of extremes; the loss, already divided by the global count,
    is summed."""
    total = sum(sizes)
    out = {k: sum(p[k] * n for p, n in zip(parts, sizes, strict=True)) / total for k in parts[0]}
    for name in parts[0]:
        if name.endswith("_max"):
            out[name] = max(p[name] for p in parts)
        elif name.endswith("_min"):
            out[name] = min(p[name] for p in parts)
    return out | {"loss": sum(p["loss"] for p in parts)}
