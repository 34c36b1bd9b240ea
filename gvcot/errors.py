"""Errors a user can act on. Each message says what was wrong, what was expected and what to do.

All are picklable from their message alone, because Ray sends them between processes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GvcotError(Exception):
    """Base of all errors that this project raises on purpose."""


class ConfigError(GvcotError, ValueError):
    """A recipe or an override is wrong."""


class DataError(GvcotError, ValueError):
    """An input image, mask, instruction or dataset is unusable."""


class CheckpointError(GvcotError, ValueError):
    """A checkpoint is truncated, of another configuration, or not in the expected format."""


class ResourceError(GvcotError, RuntimeError):
    """The machine or cluster lacks what the recipe asks for."""


class RewardError(GvcotError, RuntimeError):
    """Too many scores are missing, or a reward returned something of the wrong form."""


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known ones, or all of them."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {match[0]!r}? " if match else ""
    return f"{hint}known: {', '.join(known) or '(none)'}"
