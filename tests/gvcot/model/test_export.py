"""An exported folder has BAGEL's format, and nothing is lost on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gvcot.errors import CheckpointError
from gvcot.model.checkpoint import load_unified, save_unified
from gvcot.model.config import TokenIds
from gvcot.model.export import export
from gvcot.model.pretrained import WARM_START, find_model, load_pretrained


def same_tensors(a: Path, b: Path) -> bool:
    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def test_the_tiny_model_there_and_back(tmp_path: Path) -> None:
    shipped = find_model(WARM_START)
    export(shipped, tmp_path / "once")
    export(tmp_path / "once", tmp_path / "twice")
    for name in ("ema.safetensors", "ae.safetensors"):
        assert same_tensors(shipped / name, tmp_path / "once" / name), name  # fp16, as shipped
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    first, second = load_pretrained(shipped), load_pretrained(tmp_path / "twice")
    assert first.model.config == second.model.config
    assert first.tokenizer.encode("remove the star .") == second.tokenizer.encode("remove the star .")
    stages = json.loads((shipped / "record.json").read_text())["stages"]
    assert json.loads((tmp_path / "twice" / "record.json").read_text())["stages"] == stages
    readme = (tmp_path / "once" / "README.md").read_text()
    assert "BAGEL's code cannot load it" in readme
    assert "words.json" in readme
    assert (tmp_path / "once" / "words.json").is_file()


def test_bagel_mini_keeps_its_files(bagel_mini: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(bagel_mini, out)
    for name in ("ema.safetensors", "ae.safetensors"):
        assert same_tensors(bagel_mini / name, out / name), name
    for path in bagel_mini.iterdir():
        if path.name not in ("record.json", "ema.safetensors", "ae.safetensors"):
            assert path.read_bytes() == (out / path.name).read_bytes(), path.name
    assert "32 base channels instead of 128" in (out / "README.md").read_text()
    with safe_open(out / "ema.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without it


def test_official_weights_and_settings_come_out_as_they_went_in(golden_dir: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("config.json", "llm_config.json", "vit_config.json"):
        shutil.copy(golden_dir / name, folder / name)
    shutil.copy(golden_dir / "weights.safetensors", folder / "ema.safetensors")
    model = load_unified(folder, dtype=None, token_ids=TokenIds(bos=1, eos=2, boi=3, eoi=4))
    save_unified(out, model)
    assert same_tensors(folder / "ema.safetensors", out / "ema.safetensors")
    # what transformers writes into every Qwen2 configuration and no model of this kind reads
    unread = {
        "attention_dropout",
        "initializer_range",
        "max_position_embeddings",
        "max_window_layers",
        "sliding_window",
        "torch_dtype",
        "use_cache",
        "use_sliding_window",
    }
    for name in ("config.json", "llm_config.json", "vit_config.json"):
        before, after = (json.loads((f / name).read_text()) for f in (folder, out))
        parts = {"llm_config", "vit_config"}
        kept = {k: v for k, v in before.items() if k not in unread | parts}
        assert {k: after[k] for k in kept} == kept, name
        assert parts & before.keys() == parts & after.keys()


def test_dtypes_are_as_asked(bagel_mini: Path, tmp_path: Path) -> None:
    export(bagel_mini, tmp_path, torch.bfloat16)
    for name in ("ema.safetensors", "ae.safetensors"):
        before, after = load_file(bagel_mini / name), load_file(tmp_path / name)
        assert all(torch.equal(after[k], before[k].bfloat16()) for k in before)
    assert {p.dtype for p in load_pretrained(tmp_path).model.parameters()} == {torch.float32}


def test_a_model_is_not_written_onto_itself(bagel_mini: Path) -> None:
    with pytest.raises(CheckpointError, match="is the model itself"):
        export(bagel_mini, bagel_mini)
