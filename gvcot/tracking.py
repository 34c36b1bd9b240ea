"""Metrics and pictures of a run: `metrics.jsonl` (a line per step), TensorBoard (`tb/`), and `images/`.

Metric names are `area/name`, explained in docs/metrics.md. A resumed run cuts whatever was logged after its
checkpoint, so each step is logged once. torch and TensorBoard are imported when a Tracker is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gvcot.run_dir import write_atomic

if TYPE_CHECKING:
    import numpy as np

NON_FINITE = "health/non_finite"
"""How many of a step's values were NaN or infinite; logged only at steps that have some."""


class Tracker:
    """Logs one run. Use as a context manager, or call `close`."""

    def __init__(self, run_dir: Path, resume_step: int | None = None) -> None:
        """Opens the logs.

        Args:
            run_dir: the run's folder.
            resume_step: steps finished in the checkpoint that the run resumes from; what was logged after it
                is cut. None for a new run.
        """
        from torch.utils.tensorboard.writer import SummaryWriter

        self._images = run_dir / "images"
        metrics = run_dir / "metrics.jsonl"
        purge = None
        if resume_step is not None:
            keep = resume_step or -1  # a run that goes on from nothing evaluates its start again
            _cut_lines(metrics, keep)
            _cut_images(self._images, keep)
            purge = keep + 1
        self._file = metrics.open("a")
        self._writer = SummaryWriter(str(run_dir / "tb"), purge_step=purge)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the scalars of one step and flushes. NaN and infinity become null, and are counted."""
        finite = {name: float(value) for name, value in scalars.items() if math.isfinite(value)}
        num_lost = len(scalars) - len(finite)
        line = {"step": step} | {name: finite.get(name) for name in scalars}
        if num_lost:
            finite[NON_FINITE] = line[NON_FINITE] = num_lost
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in finite.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def images(self, step: int, tag: str, sheet_HW3: np.ndarray) -> None:
        """Logs one picture.

        Args:
            step: as in `log`.
            tag: `area/name`.
            sheet_HW3: uint8 RGB.
        """
        from PIL import Image

        self._writer.add_image(tag, sheet_HW3, step, dataformats="HWC")
        self._writer.flush()
        self._images.mkdir(exist_ok=True)
        Image.fromarray(sheet_HW3).save(self._images / f"{tag.replace('/', '-')}.step_{step}.png")

    def text(self, step: int, tag: str, text: str) -> None:
        """Logs markdown text to TensorBoard."""
        self._writer.add_text(tag, text, step)
        self._writer.flush()

    def layout(self, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
        """Arranges TensorBoard's custom-scalars page: section -> chart title -> metric names (regexes)."""
        multiline = {
            area: {t: ["Multiline", tags] for t, tags in rows.items()} for area, rows in charts.items()
        }
        self._writer.add_custom_scalars(multiline)
        self._writer.flush()

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Logs a finished run's flat config and final metrics to TensorBoard's HParams page."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in config.items()}
        self._writer.add_hparams(plain, dict(metrics), run_name=".")
        self._writer.flush()

    def close(self) -> None:
        """Writes out and closes everything."""
        self._file.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without a last line that a crash tore."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _cut_lines(path: Path, last_step: int) -> None:
    kept = [line for line in read_metrics(path.parent) if line["step"] <= last_step]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))


def _cut_images(folder: Path, last_step: int) -> None:
    for path in folder.glob("*.step_*.png"):
        if int(path.stem.rpartition("_")[2]) > last_step:
            path.unlink()
