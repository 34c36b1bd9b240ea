"""The folder of a run: its configuration, where it came from, and checkpoints that survive a crash.

    runs/<name>/config.yaml             the full configuration
                provenance.json         git commit and diff, package versions, host, command
                metrics.jsonl tb/ images/   (gvcot.tracking)
                checkpoints/step_N/     complete or absent: written aside, fsynced, renamed, then pointed to
                checkpoints/latest      the name of the newest one

Resuming never starts afresh in silence: a pointer to a missing or truncated checkpoint is an error. This
module does not import torch.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from filelock import FileLock, Timeout

from gvcot.config import dump, flatten, to_dict
from gvcot.errors import CheckpointError, ConfigError
from gvcot.provenance import provenance

Resume = Literal["auto", "never"]

MAY_CHANGE = (
    "name",
    "steps",
    "threads",
    "workers",
    "max_seconds",
    "cluster.*",
    "*_every",
    "*.every",
    "eval.*",
    "logging.*",
    "keep_checkpoints",
    "max_missing_share",
    "alarms.*",
    "stop_on",
    "rewards.*.options.endpoints.*.base_url",
    "rewards.*.options.endpoints.*.api_key_env",
    *(
        f"rewards.*.options.{option}"
        for option in ("cache", "timeout_s", "deadline_s", "backoff_s", "max_attempts", "max_concurrency")
    ),
)
"""Patterns of config keys that a resumed run may set anew: how long, how often and where (a judge that
moved), never what is learned."""


LOCK = ".lock"
_held: dict[Path, FileLock] = {}  # until the process ends; the system frees them even if it is killed


class Checkpoint(NamedTuple):
    """A complete checkpoint."""

    step: int
    """Steps that were finished when it was written."""

    path: Path
    """Its folder."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """An opened run folder; make one with `RunDir.open`."""

    path: Path
    """The folder."""

    resumed: bool = False
    """Whether the run was already there."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Any,
        *,
        resume: Resume = "auto",
        seed: int | None = None,
        may_change: Sequence[str] = MAY_CHANGE,
    ) -> RunDir:
        """Creates the folder of a new run, or opens it again to resume. It is then this process's alone.

        Args:
            path: the folder, usually `runs/<name>`.
            config: the run's config dataclass; written out as `config.yaml`.
            resume: "auto" continues an existing run, "never" refuses to.
            seed: the run's seed, noted in the provenance.
            may_change: patterns of config keys that may differ from those of the run being resumed.

        Raises:
            ConfigError: the folder is something else, holds a run and `resume` is "never", its run has
                another configuration, or another process is at it.
        """
        path = Path(path)
        exists = path.is_dir() and any(p.name != LOCK for p in path.iterdir())
        if exists:
            _check_resumable(path, config, resume, may_change)
        path.mkdir(parents=True, exist_ok=True)
        _lock(path)
        write_atomic(path / "config.yaml", dump(config))
        record = provenance(seed)
        if exists:
            previous = json.loads((path / "provenance.json").read_text())
            record = previous | {"resumes": [*previous.get("resumes", []), record]}
        write_atomic(path / "provenance.json", json.dumps(record, indent=1))
        return cls(path=path, resumed=exists)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def resume_step(self) -> int:
        """Steps finished in the newest checkpoint; 0 where there is none."""
        newest = self.latest_checkpoint()
        return newest.step if newest else 0

    def latest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from; None only if none was ever finished.

        Raises:
            CheckpointError: the pointer names a checkpoint that is missing or incomplete.
        """
        pointer = self.checkpoints / "latest"
        steps = self._steps()
        if not pointer.is_file():
            # A crash between the first rename and the first pointer leaves a complete folder behind.
            return self._checked(steps[-1]) if steps else None
        name = pointer.read_text().strip()
        step = name.removeprefix("step_")
        if not (name.startswith("step_") and step.isdigit()):
            raise CheckpointError(f"{pointer} holds {name!r}, expected step_<number>; {self._remedy()}")
        return self._checked(int(step))

    def checkpoint(self, step: int | None = None) -> Checkpoint | None:
        """The checkpoint of a step, or the newest (None only if none was ever finished).

        Raises:
            CheckpointError: it is missing or incomplete.
        """
        if step is None:
            return self.latest_checkpoint()
        fault = _fault(self.checkpoints / f"step_{step}")
        if fault:
            complete = [str(s) for s in self._steps() if _fault(self.checkpoints / f"step_{s}") is None]
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.path} {fault}; complete ones are there of the steps "
                f"{', '.join(complete) or '(none)'}"
            )
        return Checkpoint(step, self.checkpoints / f"step_{step}")

    @contextmanager
    def save_checkpoint(self, step: int, *, keep: int = 2) -> Iterator[Path]:
        """Yields an empty folder to write into; on a clean exit it becomes `checkpoints/step_<step>`.

        If the block raises or the process dies, the earlier checkpoints and the pointer stay as they were.

        Args:
            step: finished steps.
            keep: how many newest checkpoints stay on disk, at least 1.
        """
        aside = self.checkpoints / f".step_{step}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        _seal(aside, step)
        final = self.checkpoints / f"step_{step}"
        if final.exists():  # left by a crash before the pointer moved; this one replaces it
            shutil.rmtree(final)
        aside.rename(final)
        _fsync(self.checkpoints)
        write_atomic(self.checkpoints / "latest", final.name)
        earlier = [s for s in self._steps() if s < step]
        abandoned = [s for s in self._steps() if s > step]  # of a continuation that was rolled back
        for old in earlier[: -(keep - 1) or None] + abandoned:
            shutil.rmtree(self.checkpoints / f"step_{old}")

    def _steps(self) -> list[int]:
        return sorted(int(p.name.removeprefix("step_")) for p in self.checkpoints.glob("step_*"))

    def _checked(self, step: int) -> Checkpoint:
        folder = self.checkpoints / f"step_{step}"
        fault = _fault(folder)
        if fault:
            raise CheckpointError(f"checkpoint {folder} {fault}; {self._remedy()}")
        return Checkpoint(step, folder)

    def _remedy(self) -> str:
        complete = [f"step_{s}" for s in self._steps() if _fault(self.checkpoints / f"step_{s}") is None]
        if not complete:
            return "no complete checkpoint is left: start again in another run folder"
        return f"write one of {', '.join(complete)} into {self.checkpoints / 'latest'} to resume from it"


def write_atomic(path: Path, text: str) -> None:
    """Replaces a text file so that a crash leaves either the old or the new content."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _fsync(path.parent)


def _lock(path: Path) -> None:
    """Keep other processes out of a run folder: two writers would mix their logs and checkpoints."""
    lock = _held.setdefault(path.resolve(), FileLock(path.resolve() / LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{path} belongs to a run that is still going in another process; wait for it, stop it, or "
            "choose another folder with --run-dir (or name=...)"
        ) from None


def _check_resumable(path: Path, config: Any, resume: Resume, may_change: Sequence[str]) -> None:
    if not (path / "config.yaml").is_file() or not (path / "provenance.json").is_file():
        raise ConfigError(f"{path} is not empty and not a run; choose another folder with --run-dir")
    if resume == "never":
        raise ConfigError(
            f"{path} already holds a run; resume it with --resume auto, choose another folder with "
            "--run-dir, or delete it"
        )
    before = flatten(yaml.safe_load((path / "config.yaml").read_text()))
    now = flatten(to_dict(config))
    absent = "(absent)"
    differing = [
        f"  {key}: {before.get(key, absent)!r} -> {now.get(key, absent)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, absent) != now.get(key, absent)
        and not any(fnmatch.fnmatchcase(key, pattern) for pattern in may_change)
    ]
    if differing:
        raise ConfigError(
            f"{path} holds a run with another configuration (run -> now):\n"
            + "\n".join(differing)
            + "\nresume with the run's own settings, or choose another folder with --run-dir"
        )


def _seal(folder: Path, step: int) -> None:
    """Forces a written checkpoint to disk, with a manifest of its files' sizes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        raise CheckpointError(
            f"nothing was written into {folder}: a worker, on another machine perhaps, does not see it. The "
            "run's folder must lie at the same path on all machines"
        )
    manifest = {"step": step, "files": {str(p.relative_to(folder)): p.stat().st_size for p in files}}
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1))
    for path in (*files, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        _fsync(path)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return "has no manifest" if folder.is_dir() else "does not exist"
    for name, size in json.loads(manifest.read_text())["files"].items():
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != size:
            return f"is truncated: {name} has {path.stat().st_size} bytes, expected {size}"
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
