"""A model with everything it needs to edit: backbone, codec, tokenizer; one folder on disk.

config.json llm_config.json vit_config.json ema.safetensors    (BAGEL's names; gvcot.model.checkpoint)
ae.safetensors                                                  the codec
record.json                                                     how the weights were made
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gvcot.errors import CheckpointError
from gvcot.model.bagel_json import read_bagel_dir
from gvcot.model.checkpoint import load_unified, save_unified
from gvcot.model.codec import TinyAE, load_codec, save_codec
from gvcot.model.tokenizer import WordTokenizer
from gvcot.model.unified import UnifiedModel

RECORD_FILE = "record.json"

WARM_START = "warm_start"
"""Names the shipped model wherever a checkpoint folder is asked for."""

ASSETS = Path(__file__).resolve().parents[1] / "assets"


@dataclass(kw_only=True, slots=True)
class Pretrained:
    """What a checkpoint folder holds."""

    model: UnifiedModel
    codec: TinyAE
    tokenizer: WordTokenizer


def find_model(name: str | Path) -> Path:
    """The checkpoint folder that a name means: the shipped model, a run (its result), or the folder itself.

    Raises:
        CheckpointError: there is no such folder.
    """
    if str(name) == WARM_START:
        return ASSETS / WARM_START
    folder = Path(name)
    for candidate in (folder / "final", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointError(
        f"{str(name)!r} holds no model. Expected a folder with config.json and ema.safetensors, a run folder "
        f"whose run has finished, or {WARM_START!r} for the shipped model"
    )


def load_pretrained(folder: Path) -> Pretrained:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: not such a folder, truncated, of another configuration, or of another vocabulary.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"no checkpoint folder {str(folder)!r}. Expected a folder with config.json and ema.safetensors, "
            "such as the `final` folder of a `gvcot sft` run"
        )
    model = load_unified(folder)
    tokenizer = WordTokenizer()
    if model.config.llm.vocab != tokenizer.vocab_size:
        raise CheckpointError(
            f"{folder} was trained with a vocabulary of {model.config.llm.vocab} words, this version has "
            f"{tokenizer.vocab_size}: use the version it was trained with, or train it again"
        )
    codec = load_codec(folder, z=model.config.codec.z, width=model.config.codec.width)
    return Pretrained(model=model, codec=codec, tokenizer=tokenizer)


def load_pretrained_codec(folder: Path) -> TinyAE:
    """Only the codec of a checkpoint folder; raises CheckpointError as `load_pretrained` does."""
    config = read_bagel_dir(folder)
    return load_codec(folder, z=config.codec.z, width=config.codec.width)


def save_pretrained(
    folder: Path,
    model: UnifiedModel,
    codec: TinyAE,
    record: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint folder.

    Args:
        folder: created where missing.
        model, codec: what is saved.
        record: JSON-able account of how the weights were made (commands, seeds, metrics).
        dtype: of the weights on disk; fp16 halves the size of shipped weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_unified(folder, model, state={k: v.to(dtype) for k, v in model.state_dict().items()})
    save_codec(codec, folder, dtype=dtype)
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Records of the stages that led to a checkpoint folder, first one first, as far as they are there."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return []
    record = json.loads(path.read_text())
    if "stages" in record:
        return record["stages"]
    config = record.get("config", {})
    # a stage names its start in `init`, an RL run in `model` (else a table), a first stage in `codec`
    starts = (config.get("init"), config.get("model"), config.get("codec"))
    start = next((name for name in starts if isinstance(name, str)), None)
    before = read_history(find_model(start) if start == WARM_START else Path(start)) if start else []
    return [*before, record]
