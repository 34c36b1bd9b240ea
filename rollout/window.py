"""Which denoising steps of each phase are stochastic, and therefore trained on (MixGRPO, arXiv:2507.21802).

A window is drawn from (run seed, step, phase) alone. Every group and every worker of a step thus shares it,
at any number of workers, and a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from gvcot.errors import ConfigError
from gvcot.seeds import derive
from gvcot.types import Window


def draw_windows(
    run_seed: int,
    step: int,
    num_steps: int,
    size: int,
    range_lo: int,
    range_hi: int,
    phases: Sequence[str],
) -> dict[str, Window]:
    """Draw one window per phase, uniformly among those that fit.

    Args:
        run_seed: the run's seed.
        step: index of the training step.
        num_steps: denoising steps per image, S.
        size: stochastic steps per image, W; 0 means plain ODE sampling.
        range_lo, range_hi: the window lies within the steps [range_lo, range_hi). The last of the S steps is
            never part of it: there the noise vanishes, or the density degenerates.
        phases: names of the image phases.

    Raises:
        ConfigError: if no window of this size fits.
    """
    last_start = min(range_hi, num_steps - 1) - size
    if size < 0 or range_lo < 0 or (size > 0 and last_start < range_lo):
        raise ConfigError(
            f"no window of {size} stochastic steps fits into steps [{range_lo}, {range_hi}) of {num_steps}; "
            f"the last step ({num_steps - 1}) can't be stochastic. "
            "Lower the window's size, widen its range, or raise the number of steps."
        )
    if size == 0:
        return {phase: Window(start=0, size=0) for phase in phases}
    num_starts = last_start - range_lo + 1
    return {
        phase: Window(start=range_lo + derive(run_seed, "window", step, phase) % num_starts, size=size)
        for phase in phases
    }
