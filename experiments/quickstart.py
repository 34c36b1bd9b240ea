"""`gvcot quickstart`: improve the shipped model by RL on this machine and show the difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.bootstrap import Difference, compare, first_and_last
from experiments.launch import run_rl

METRICS = ("mask_iou", "edit_accuracy", "preservation", "format")
SPLIT = "val"


def run_quickstart(run_dir: Path | None, overrides: Sequence[str]) -> Path:
    """Evaluate, train by GRPO, evaluate again; prints the before/after table and where to look.

    Args:
        run_dir: the run's folder; None: a new `runs/quickstart-<n>`.
        overrides: of recipe `rl/quickstart`.
    """
    folder = run_dir or fresh_folder(Path("runs"))
    run_rl("rl/quickstart", overrides, resume="auto", dry_run=False, run_dir=folder)
    before, after = first_and_last(folder, SPLIT)
    Console().print(before_after(compare(before, after, METRICS)))
    Console().print(
        f"\nlook at it:  open {folder / 'report.html'}\n"
        f"             {folder / 'images'} holds the before and after sheets\n"
        f"             tensorboard --logdir {folder / 'tb'}",
        highlight=False,
    )
    return folder


def fresh_folder(root: Path) -> Path:
    """The first of root/quickstart-1, -2, ... that does not exist."""
    number = 1
    while (root / f"quickstart-{number}").exists():
        number += 1
    return root / f"quickstart-{number}"


def before_after(differences: dict[str, Difference]) -> Table:
    """A table with the paired 95 % intervals over scenes."""
    table = Table("metric", "before", "after", "change", "95 % interval", title="on unseen scenes (val)")
    for name, d in differences.items():
        change = d.after - d.before
        table.add_row(
            name, f"{d.before:.3f}", f"{d.after:.3f}", f"{change:+.3f}", f"[{d.low:+.3f}, {d.high:+.3f}]"
        )
    return table
