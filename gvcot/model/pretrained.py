"""A model with everything it needs to edit: backbone, codec, tokenizer; one folder on disk.

config.json llm_config.json vit_config.json    BAGEL's configuration files (gvcot.model.bagel_json)
ema.safetensors                                the model, or model.safetensors, or shards with an index
ae.safetensors                                 the codec
tokenizer.json, or vocab.json, merges.txt      Qwen2's tokenizer; words.json for the small model's
record.json                                    how the weights were made; not in BAGEL's own folder
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gvcot.errors import CheckpointError
from gvcot.model.bagel_json import read_bagel_dir, recorded_token_ids
from gvcot.model.bpe import BPETokenizer, has_bpe
from gvcot.model.checkpoint import load_codec, load_unified, save_codec, save_unified
from gvcot.model.codec import Autoencoder
from gvcot.model.config import ImagesConfig, UnifiedConfig
from gvcot.model.tokenizer import WORDS_FILE, Tokenizer, WordTokenizer
from gvcot.model.unified import UnifiedModel

RECORD_FILE = "record.json"

WARM_START = "warm_start"
"""Names the shipped model wherever a checkpoint folder is asked for."""

ASSETS = Path(__file__).resolve().parents[1] / "assets"


@dataclass(kw_only=True, slots=True)
class Pretrained:
    """What a checkpoint folder holds."""

    model: UnifiedModel
    codec: Autoencoder
    tokenizer: Tokenizer


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
        f"whose run has finished (`gvcot export RUN OUT --step -1` makes a folder of one that has not), or "
        f"{WARM_START!r} for the shipped model"
    )


def load_pretrained(
    folder: Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    images: ImagesConfig | None = None,
    weights: bool = True,
) -> Pretrained:
    """Read a checkpoint folder: one of ours, or BAGEL's as it was published.

    Args:
        dtype: of all weights, whatever the files hold; None: as they hold them.
        images: a recipe's image sizes; None: the folder's own.
        weights: False leaves the model on the meta device, for `gvcot.model.place` to fill.

    Raises:
        CheckpointError: not such a folder, truncated, of another configuration, or of another vocabulary.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"no checkpoint folder {str(folder)!r}. Expected a folder with config.json and ema.safetensors, "
            "such as the `final` folder of a `gvcot sft` run"
        )
    tokenizer = load_tokenizer(folder)
    config = read_bagel_dir(folder, token_ids=tokenizer.token_ids)
    _check_vocabulary(folder, config, tokenizer)
    if weights:
        model = load_unified(folder, dtype=dtype, token_ids=tokenizer.token_ids)
    else:
        with torch.device("meta"):
            model = UnifiedModel(config)
    model.config = model.config.with_images(images or ImagesConfig())
    codec = load_codec(folder, config.codec, dtype=dtype)
    return Pretrained(model=model, codec=codec, tokenizer=tokenizer)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: Qwen2's files, a list of words, or the shipped words.

    Raises:
        CheckpointError: its files are incomplete.
    """
    if has_bpe(folder):
        return BPETokenizer(folder)
    words = folder / WORDS_FILE
    return WordTokenizer(words) if words.is_file() else WordTokenizer()


def load_pretrained_codec(folder: Path) -> Autoencoder:
    """Only the codec of a checkpoint folder; raises CheckpointError as `load_pretrained` does."""
    config = read_bagel_dir(folder, token_ids=load_tokenizer(folder).token_ids)
    return load_codec(folder, config.codec)


def save_pretrained(
    folder: Path, policy: Pretrained, record: dict[str, Any], dtype: torch.dtype | None = torch.float32
) -> None:
    """Write a checkpoint folder in BAGEL's format.

    Args:
        folder: created where missing.
        policy: what is saved.
        record: JSON-able account of how the weights were made (commands, seeds, metrics).
        dtype: of the weights on disk; fp16 halves the size of shipped weights. None: as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = policy.model
    save_unified(folder, model, state={k: v.to(dtype) for k, v in model.state_dict().items()})
    save_codec(policy.codec, folder, dtype=dtype)
    policy.tokenizer.save(folder)
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")


def _check_vocabulary(folder: Path, config: UnifiedConfig, tokenizer: Tokenizer) -> None:
    """BAGEL's embedding has rows to spare; a list of words has exactly one row each."""
    rows, size = config.llm.vocab, tokenizer.vocab_size
    if size > rows or (size < rows and isinstance(tokenizer, WordTokenizer)):
        raise CheckpointError(
            f"{folder} was trained with a vocabulary of {rows} words, its tokenizer (or this version's) has "
            f"{size}: use the tokenizer files that it was trained with, or train it again"
        )
    recorded = recorded_token_ids(folder, rows)
    if recorded is not None and recorded != tokenizer.token_ids:
        raise CheckpointError(
            f"the tokenizer in {folder} has control tokens {tokenizer.token_ids}, the model was trained with "
            f"{recorded}: use the tokenizer files that it was trained with"
        )


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Records of the stages that led to a checkpoint folder, first one first, as far as they are there."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return []
    return history(json.loads(path.read_text()))


def history(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of the stages that led to a record, itself last; as far as they are there."""
    if "stages" in record:
        return record["stages"]
    config = record.get("config", {})
    # a stage names its start in `init`, an RL run in `model` (else a table), a first stage in `codec`
    starts = (config.get("init"), config.get("model"), config.get("codec"))
    start = next((name for name in starts if isinstance(name, str)), None)
    before = read_history(find_model(start) if start == WARM_START else Path(start)) if start else []
    return [*before, record]
