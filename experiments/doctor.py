"""`gvcot doctor`: is this installation sound, and what does this machine offer?"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = ("gvcot", "rl", "rewards", "rollout", "sft", "experiments")
CHECKOUT = Path(__file__).resolve().parents[1]
MIN_FREE_GIB = 3.0
"""Memory that the quickstart needs."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's table."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def run_checks() -> list[Check]:
    """All checks, in the order in which a failure explains the next."""
    checks = [check_python(), *(check_package(name) for name in PACKAGES)]
    checks += [check_distribution(name) for name in ("torch", "verl", "ray", "transformers", "tensordict")]
    return checks + [check() for check in MACHINE_CHECKS]


def table(checks: list[Check]) -> Table:
    """The checks as a table."""
    from rich.table import Table

    rows = Table("check", "", "found", "what to do")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]wrong[/]"
        rows.add_row(check.name, mark, check.found, "" if check.ok else check.remedy)
    return rows


def check_python() -> Check:
    """Python 3.11 or 3.12."""
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Check("python", ok, platform.python_version(), "make the environment with Python 3.11 or 3.12")


def check_package(name: str) -> Check:
    """Our packages have generic names; another distribution's `rl` would shadow ours."""
    try:
        found = Path(importlib.import_module(name).__path__[0])
    except ImportError as error:
        return Check(f"package {name}", False, str(error), "pip install -e . in the checkout")
    ok = found.resolve() == CHECKOUT / name
    remedy = f"another distribution provides {name!r}: uninstall it, or use a fresh environment"
    return Check(f"package {name}", ok, str(found), remedy)


def check_distribution(name: str) -> Check:
    """A third-party package imports."""
    remedy = "pip install -c constraints.txt -e ."
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        return Check(name, False, str(error), remedy)
    return Check(name, True, importlib.metadata.version(name))


def check_accelerator() -> Check:
    """Informative: the CPU will do for the tiny model."""
    import torch

    found = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (CPU only)"
    return Check("accelerator", True, found)


def check_cpus() -> Check:
    """CPUs this process may use."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Check("CPUs", True, str(count))


def check_memory() -> Check:
    """Free main memory."""
    import psutil

    free = psutil.virtual_memory().available / 2**30
    remedy = f"the quickstart needs {MIN_FREE_GIB:g} GiB: close other programs"
    return Check("free memory", free >= MIN_FREE_GIB, f"{free:.1f} GiB", remedy)


def check_warm_start() -> Check:
    """The shipped tiny model."""
    assets = CHECKOUT / "gvcot" / "assets"
    weights = sorted(path.relative_to(assets) for path in assets.rglob("*.safetensors"))
    found = ", ".join(map(str, weights)) or "no weights"
    return Check("warm start", bool(weights), found, f"restore {assets} from git, or run make warm-start")


MACHINE_CHECKS: tuple[Callable[[], Check], ...] = (
    check_accelerator,
    check_cpus,
    check_memory,
    check_warm_start,
)
