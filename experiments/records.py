"""The JSON of an evaluation: a value of every metric for every scene; plain, or gzipped where it is kept."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gvcot.errors import DataError, closest

USUAL = ("mask_iou", "where", "edit_accuracy", "preservation", "format")
"""Metrics that are shown and kept where nothing is asked for."""


def read_record(path: Path) -> dict[str, Any]:
    """{"name", "step", "metrics", "samples"} of an evaluation; files ending in .gz are unpacked.

    Raises:
        DataError: no such file, or not the JSON of an evaluation.
    """
    try:
        raw = path.read_bytes()
        record = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        if "values" not in record["samples"]:
            raise KeyError("values")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected the JSON that an evaluation wrote") from None
    except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not the JSON of an evaluation ({error!r})") from error
    return record


def read_values(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """(sample ids, metric -> per-scene values) of an evaluation's JSON."""
    samples = read_record(path)["samples"]
    values = {k: np.array([np.nan if v is None else v for v in row]) for k, row in samples["values"].items()}
    return samples["id"], values


def condense(source: Path, out: Path, metrics: Sequence[str] | None = None) -> None:
    """Write what comparisons need of an evaluation: some metrics, four decimals; gzipped if `out` says .gz.

    The same input gives the same bytes.

    Args:
        metrics: names of per-scene values; None: those of `USUAL` that there are.

    Raises:
        DataError: `source` can't be read or lacks a metric.
    """
    record = read_record(source)
    samples = record["samples"]
    if metrics is None:
        metrics = [name for name in USUAL if name in samples["values"]]
    for metric in metrics:
        if metric not in samples["values"]:
            raise DataError(f"{source} has no metric {metric!r}; {closest(metric, samples['values'])}")
    kept = {
        "name": record["name"],
        "step": record["step"],
        "metrics": {m: record["metrics"][m] for m in metrics if m in record["metrics"]},
        "samples": {key: samples[key] for key in ("id", "task", "referral")}
        | {
            "values": {m: [None if v is None else round(v, 4) for v in samples["values"][m]] for m in metrics}
        },
    }
    raw = json.dumps(kept).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(gzip.compress(raw, mtime=0) if out.suffix == ".gz" else raw)
