"""A checkpoint folder holds all that an edit needs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from gvcot.errors import CheckpointError
from gvcot.model.pretrained import RECORD_FILE, Pretrained, load_pretrained, read_history, save_pretrained
from gvcot.model.unified import UnifiedModel


def test_saved_and_loaded_bit_for_bit(policy: Pretrained, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    save_pretrained(folder, policy, {"seed": 3})
    loaded = load_pretrained(folder)
    assert loaded.model.config == policy.model.config
    for part in ("model", "codec"):
        before, after = getattr(policy, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
    assert json.loads((folder / RECORD_FILE).read_text()) == {"seed": 3}


def test_half_precision_halves_the_file(policy: Pretrained, policy_folder: Path, tmp_path: Path) -> None:
    save_pretrained(tmp_path, policy, {}, dtype=torch.float16)
    full, half = ((f / "ema.safetensors").stat().st_size for f in (policy_folder, tmp_path))
    assert half < 0.6 * full
    loaded = load_pretrained(tmp_path)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_another_vocabulary_is_refused(policy: Pretrained, tmp_path: Path) -> None:
    config = policy.model.config
    larger = dataclasses.replace(config, llm=dataclasses.replace(config.llm, vocab=config.llm.vocab + 1))
    save_pretrained(tmp_path, dataclasses.replace(policy, model=UnifiedModel(larger)), {})
    with pytest.raises(CheckpointError, match=rf"vocabulary of {config.llm.vocab + 1} words"):
        load_pretrained(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder .*nowhere"):
        load_pretrained(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_pretrained(tmp_path)


def test_the_history_of_a_model_is_read_from_stage_to_stage(tmp_path: Path) -> None:
    def record(stage: str, content: dict[str, object]) -> str:
        folder = tmp_path / stage
        folder.mkdir()
        (folder / RECORD_FILE).write_text(json.dumps(content))
        return str(folder)

    codec = record("codec", {"config": {"name": "codec"}})
    base = record("base", {"config": {"name": "base", "init": None, "codec": codec}})
    last = record("last", {"config": {"name": "last", "init": base, "codec": codec}})
    assert [r["config"]["name"] for r in read_history(Path(last))] == ["codec", "base", "last"]
    exported = record("exported", {"stages": read_history(Path(last))})
    assert read_history(Path(exported)) == read_history(Path(last))
    assert read_history(tmp_path / "nowhere") == []
