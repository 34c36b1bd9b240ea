"""Trajectories as TensorDicts with one row per chain: what travels between driver and workers.

Only what was drawn travels; a worker rebuilds conditions from the sample's index, since samples are a pure
function of it.

Legend: B chains, V window states, W window steps, N latent tokens, D values per token, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from gvcot.types import Condition, ImagePhase, Trajectory, Window


def to_tensordict(trajectory: Trajectory, images: Mapping[str, Tensor]) -> TensorDict:
    """Flat keys "phases/<name>/{latents, logprob, final, sigmas, window_start[, feedback_vit]}" and
    "images/<name>" (verl's dispatch takes no nested ones). Every leaf has B rows.
    """
    leaves: dict[str, Tensor] = {f"images/{name}": image for name, image in images.items()}
    num = len(next(iter(images.values())))
    for phase in trajectory.phases:
        assert isinstance(phase, ImagePhase), "only image phases are trained"
        leaf = {
            "latents": phase.latents_BVND,
            "logprob": phase.logprob_BW,
            "final": phase.final_BND,
            "sigmas": phase.sigmas.expand(num, -1).contiguous(),
            "window_start": torch.full((num,), phase.window.start),
        }
        if phase.feedback_vit_B3HW is not None:
            leaf["feedback_vit"] = phase.feedback_vit_B3HW
        leaves |= {f"phases/{phase.name}/{key}": value for key, value in leaf.items()}
    return TensorDict(leaves, batch_size=[num])


def table(rows: TensorDict, prefix: str) -> dict[str, Tensor]:
    """The columns "<prefix>/<name>", by name."""
    return {
        str(key).removeprefix(prefix + "/"): v for key, v in rows.items() if str(key).startswith(prefix + "/")
    }


def from_tensordict(rows: TensorDict, condition: Condition, phase_names: tuple[str, ...]) -> Trajectory:
    """The inverse of `to_tensordict` for chains whose window is shared, given their condition.

    Args:
        rows: chains of one step.
        condition: of these chains' prompts.
        phase_names: in the order of generation.
    """
    phases = []
    for name in phase_names:
        leaf = table(rows, f"phases/{name}")
        phases.append(
            ImagePhase(
                name=name,
                grid=condition.grid,
                sigmas=leaf["sigmas"][0],
                window=Window(start=int(leaf["window_start"][0]), size=leaf["logprob"].shape[1]),
                latents_BVND=leaf["latents"],
                logprob_BW=leaf["logprob"],
                final_BND=leaf["final"],
                feedback_vit_B3HW=leaf.get("feedback_vit"),
            )
        )
    return Trajectory(condition=condition, phases=phases)
