"""One trial of a sweep: a run in a process of its own, and what is noted of it in the sweep's folder.

    trials/<trial>.json    how it went
    trials/<trial>.log     what it printed

A process per trial keeps a crash, its memory and its own Ray from the others. As a program this module is
`gvcot`, except that it ends when its standard input does: with the process that started it, however that one
ends.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gvcot.run_dir import write_atomic

NICENESS = "RAY_worker_niceness"
"""What Ray adds to the niceness of its workers, 15 by default."""

RAY_ENV = ("RAY_ADDRESS", "RAY_JOB_ID", "RAY_RAYLET_PID", NICENESS)
"""What concerns the sweep's Ray alone; a trial starts another one, with workers as in a run by hand."""

ERROR_LINES = 20
"""Of a failed trial's log, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How a trial went."""

    state: Literal["running", "done", "failed"]
    """"running" also where the sweep was interrupted."""

    seconds: float
    """Wall-clock time of its attempts that came to an end."""

    error: str = ""
    """Why it failed: the end of what it printed."""


def record_path(root: Path, trial: str) -> Path:
    """Where a trial's record is."""
    return root / "trials" / f"{trial}.json"


def read_record(root: Path, trial: str) -> Record | None:
    """A trial's record; None before its first attempt."""
    path = record_path(root, trial)
    return Record(**json.loads(path.read_text())) if path.is_file() else None


def run_trial(
    root: Path, trial: str, command: Sequence[str], *, env: Mapping[str, str], folder: Path
) -> Record:
    """Run a trial to its end, or go on with it; a failure is noted, not raised.

    Args:
        root: the sweep's folder.
        trial: its name.
        command: arguments of `gvcot`.
        env: its environment, besides this process's.
        folder: where the command runs; recipes name models relative to it.
    """
    before = read_record(root, trial)
    spent = before.seconds if before else 0.0
    write_record(root, trial, Record(state="running", seconds=spent))
    inherited = {k: v for k, v in os.environ.items() if k not in RAY_ENV}
    log = record_path(root, trial).with_suffix(".log")
    began = time.monotonic()
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "experiments.sweep_trial", *command],
            cwd=folder,
            env=inherited | dict(env),
            stdin=subprocess.PIPE,  # never written to: it closes with this process
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        process.wait()
    seconds = spent + time.monotonic() - began
    if process.returncode == 0:
        record = Record(state="done", seconds=seconds)
    else:
        record = Record(
            state="failed", seconds=seconds, error=last_error(log.read_text(), process.returncode)
        )
    write_record(root, trial, record)
    return record


def last_error(printed: str, exit_code: int) -> str:
    """What a failed command said last: from the last line on that names an error, or its last line."""
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    named = [i for i, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    told = lines[named[-1] :] if named else lines[-1:]
    return "\n".join([*told[:ERROR_LINES], f"(exit code {exit_code})"])


def write_record(root: Path, trial: str, record: Record) -> None:
    """Note how a trial went."""
    path = record_path(root, trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(record), indent=1))


def end_with_parent() -> None:
    """From here on, leave (through `finally` blocks) when standard input ends or on SIGTERM."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: its lock, held by this thread, would abort the interpreter's exit
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    from experiments import cli

    end_with_parent()
    cli.main(sys.argv[1:])
