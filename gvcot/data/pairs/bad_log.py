"""`bad_samples.jsonl` of a run: the samples that it was trained without, each once, with the reason; and
`bad_eval_samples.jsonl`, those that evaluations left out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from gvcot.data.pairs.dataset import Bad
from gvcot.run_dir import write_atomic

FILE = "bad_samples.jsonl"
EVAL_FILE = "bad_eval_samples.jsonl"


class BadLog:
    """Bad samples of a run, those of its earlier parts included."""

    def __init__(self, run: Path, file: str = FILE) -> None:
        self._path = run / file
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        self._lines = {json.loads(line)["id"]: line for line in lines}

    def count(self, bad: Iterable[Bad]) -> dict[str, float]:
        """Write the new ones down; {"data/bad_samples": how many there are}, nothing where there are none."""
        new = {found.id: json.dumps(found._asdict(), ensure_ascii=False) for found in bad}
        if new.keys() - self._lines.keys():
            self._lines = new | self._lines
            write_atomic(self._path, "".join(f"{line}\n" for line in self._lines.values()))
        return {"data/bad_samples": float(len(self._lines))} if self._lines else {}
