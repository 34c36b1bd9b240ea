"""What a run came from: code, packages, host and command. Does not import torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
"""The folder that holds our packages."""

MAX_DIFF_CHARS = 500_000


def provenance(seed: int | None = None) -> dict[str, Any]:
    """A JSON-able record of the code and machine that run now."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "seed": seed,
        "git": git_state(CHECKOUT),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "num_cpus": os.cpu_count(),
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Name -> version of every installed distribution."""
    found = importlib.metadata.distributions()
    return dict(sorted((dist.metadata["Name"], dist.version) for dist in found))


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, dirty flag, diff against it and untracked files; None outside a git checkout."""
    status = _git(folder, "status", "--porcelain")
    if status is None:
        return None
    diff = _git(folder, "diff", "HEAD") or ""
    return {
        "sha": (_git(folder, "rev-parse", "HEAD") or "").strip() or None,
        "dirty": bool(status.strip()),
        "untracked": [line[3:] for line in status.splitlines() if line.startswith("??")],
        "diff": diff[:MAX_DIFF_CHARS],
        "diff_truncated": len(diff) > MAX_DIFF_CHARS,
    }


def _git(folder: Path, *args: str) -> str | None:
    """Output of a git command; None where git, or a repository or commit to ask about, is missing."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
