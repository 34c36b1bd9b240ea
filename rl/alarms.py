"""Alarms on logged curves: what must not drift while a policy is trained on something else.

A curve is smoothed and compared with 0, with where it began, or with the best it has been; an alarm rings
once the difference has been beyond its limit for some steps. All follows from the logged lines, so a resumed
run and a report find the same alarms as the run itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rl.config import AlarmConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """An alarm that began to ring."""

    name: str
    step: int
    value: float
    """What was compared: see `AlarmConfig.relative_to`."""

    config: AlarmConfig

    def __str__(self) -> str:
        config = self.config
        limit = config.above if config.above is not None and self.value > config.above else config.below
        against = {"zero": "", "start": " from where it began", "best": " from its best"}[config.relative_to]
        if config.relative_to != "zero" and not config.absolute:
            shown, bound = f"{self.value:+.1%}", f"{limit:+.0%}"
        else:
            sign = "+" if against else ""
            shown, bound = f"{self.value:{sign}.4g}", f"{limit:{sign}.4g}"
        return f"step {self.step}: {self.name}: {config.metric} is {shown}{against} (limit {bound})"


@dataclass(slots=True)
class _Curve:
    """What one alarm remembers."""

    weighted: float = 0.0
    weight: float = 0.0
    num: int = 0
    start: float | None = None
    best: float = float("-inf")
    beyond: int = 0
    ringing: bool = False


@dataclass(slots=True)
class Alarms:
    """The alarms of one run; feed it the run's lines in order."""

    config: Mapping[str, AlarmConfig]
    _curves: dict[str, _Curve] = field(default_factory=dict)

    def update(self, step: int, metrics: Mapping[str, float | None]) -> list[Ring]:
        """Take in one line.

        Args:
            step: of the line.
            metrics: its values; alarms whose metric is absent, null or not finite wait.

        Returns:
            The alarms that begin to ring.
        """
        rings = []
        for name, config in self.config.items():
            value = _watched(config, metrics)
            if value is None:
                continue
            curve = self._curves.setdefault(name, _Curve())
            change = _follow(curve, config, value)
            rang, curve.ringing = curve.ringing, curve.beyond >= config.patience
            if curve.ringing and not rang and change is not None:
                rings.append(Ring(name=name, step=step, value=change, config=config))
        return rings

    def ringing(self) -> dict[str, float]:
        """ "alarm/<name>": 1 while it rings, else 0; for alarms whose metric has been seen."""
        return {f"alarm/{name}": float(curve.ringing) for name, curve in self._curves.items()}

    def unseen(self) -> list[str]:
        """The alarms whose metric has not been seen."""
        return [name for name in self.config if name not in self._curves]


def rings_of(config: Mapping[str, AlarmConfig], lines: Iterable[Mapping[str, Any]]) -> list[Ring]:
    """Every ring of a run, from the lines of its `metrics.jsonl`."""
    alarms = Alarms(config)
    return [ring for line in lines for ring in alarms.update(line["step"], line)]


def _watched(config: AlarmConfig, metrics: Mapping[str, float | None]) -> float | None:
    value = metrics.get(config.metric)
    other = 0.0 if config.minus is None else metrics.get(config.minus)
    if value is None or other is None or not math.isfinite(value - other):
        return None
    return value - other


def _follow(curve: _Curve, config: AlarmConfig, value: float) -> float | None:
    """Add a value; what is compared with the limits, or None while the curve begins."""
    decay = 1 - 1 / config.span
    curve.weighted = decay * curve.weighted + value
    curve.weight = decay * curve.weight + 1
    curve.num += 1
    smooth = curve.weighted / curve.weight
    if curve.num < config.span:
        return None
    if curve.start is None:
        curve.start = smooth
    curve.best = max(curve.best, smooth)
    change = _change(config, smooth, curve)
    above = config.above is not None and change > config.above
    below = config.below is not None and change < config.below
    curve.beyond = curve.beyond + 1 if above or below else 0
    return change


def _change(config: AlarmConfig, smooth: float, curve: _Curve) -> float:
    if config.relative_to == "zero":
        return smooth
    assert curve.start is not None
    reference = curve.start if config.relative_to == "start" else curve.best
    return (smooth - reference) / (1.0 if config.absolute else max(abs(reference), 1e-6))
