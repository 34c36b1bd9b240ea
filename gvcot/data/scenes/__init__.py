"""Scenes: a procedural world of crowded little pictures with an exact mask and target for each edit."""

from __future__ import annotations

from gvcot.data.scenes.generator import REFERRALS, SPLITS, TASKS, VERSION, generate, length, samples
from gvcot.data.scenes.levels import DEFAULT, EASY, HARD, LEVELS, STANDARD, Level, WorldConfig
from gvcot.data.scenes.splits import Split

__all__ = [
    "DEFAULT",
    "EASY",
    "HARD",
    "LEVELS",
    "REFERRALS",
    "SPLITS",
    "STANDARD",
    "TASKS",
    "VERSION",
    "Level",
    "Split",
    "WorldConfig",
    "generate",
    "length",
    "samples",
]
