"""Scenes: a procedural world of crowded little pictures with an exact mask and target for each edit."""

from __future__ import annotations

from gvcot.data.scenes.generator import CROWDED, REFERRALS, SPLITS, TASKS, VERSION, generate, length, samples
from gvcot.data.scenes.splits import Split

__all__ = ["CROWDED", "REFERRALS", "SPLITS", "TASKS", "VERSION", "Split", "generate", "length", "samples"]
