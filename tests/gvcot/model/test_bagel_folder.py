"""BAGEL's folder as it is published: files whole or in shards, configurations as they come; strictness."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gvcot.errors import CheckpointError
from gvcot.model.checkpoint import build_codec, load_unified, manifest
from gvcot.model.config import QWEN2_TOKEN_IDS, ResizeConfig, TokenIds, UnifiedConfig
from gvcot.model.pretrained import load_pretrained, load_pretrained_codec
from gvcot.model.unified import UnifiedModel

CONFIGS = ("config.json", "llm_config.json", "vit_config.json")
TOKENS = TokenIds(bos=1, eos=2, boi=3, eoi=4)


def edit_json(path: Path, **values: object) -> None:
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def folder(golden_dir: Path, tmp_path: Path) -> Path:
    """The golden configuration without weights."""
    for name in CONFIGS:
        shutil.copy(golden_dir / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def weights(golden_dir: Path) -> dict[str, Tensor]:
    return load_file(golden_dir / "weights.safetensors")


@pytest.fixture
def official(bagel_mini: Path, tmp_path: Path) -> Path:
    """bagel-mini without anything that only this project writes."""
    folder = tmp_path / "official"
    shutil.copytree(bagel_mini, folder)
    (folder / "record.json").unlink()
    main = json.loads((folder / "config.json").read_text())
    del main["gvcot"]
    (folder / "config.json").write_text(json.dumps(main))
    return folder


def save_shards(folder: Path, weights: dict[str, Tensor], num: int = 3, name: str = "model") -> None:
    names, weight_map = sorted(weights), {}
    for i in range(num):
        file = f"{name}-{i + 1:05d}-of-{num:05d}.safetensors"
        part = names[i::num]
        save_file({key: weights[key] for key in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))


def assert_is(model: UnifiedModel, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_weights_under_any_of_their_names(folder: Path, weights: dict[str, Tensor]) -> None:
    save_shards(folder, weights)
    assert_is(load_unified(folder, token_ids=TOKENS), weights)
    save_file(weights, folder / "model.safetensors")
    (folder / "model-00001-of-00003.safetensors").unlink()  # a whole file comes before shards
    assert_is(load_unified(folder, token_ids=TOKENS), weights)
    ema = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(ema, folder / "ema.safetensors")  # the average comes before the weights it averages
    assert_is(load_unified(folder, token_ids=TOKENS), ema)


def test_an_index_that_also_lists_the_codec(folder: Path, weights: dict[str, Tensor]) -> None:
    save_shards(folder, weights, num=1)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["encoder.conv_in.weight"] = "ae.safetensors"
    path.write_text(json.dumps(index))
    assert_is(load_unified(folder, token_ids=TOKENS), weights)


def test_table_sides_are_read_from_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    save_shards(folder, weights)
    edit_json(folder / "config.json", max_latent_size=64, vit_max_num_patch_per_side=70)
    config = UnifiedConfig.from_bagel_dir(folder, token_ids=TOKENS)
    assert config.vit is not None
    assert (config.max_latent, config.vit.max_side) == (12, 10)


def test_every_mismatch_in_any_shard_is_listed_at_once(folder: Path, weights: dict[str, Tensor]) -> None:
    del weights["llm2vae.bias"], weights["connector.fc1.bias"]
    weights["stranger"] = torch.zeros(1)
    weights["vae2llm.bias"] = torch.zeros(5)
    save_shards(folder, weights)
    with pytest.raises(CheckpointError) as error:
        load_unified(folder, token_ids=TOKENS)
    text = str(error.value)
    listed = ("2 missing", "llm2vae.bias", "connector.fc1.bias", "1 unexpected", "1 of another shape")
    for said in (*listed, "stranger", "vae2llm.bias: (5,) in the file"):
        assert said in text


def test_broken_sets_of_shards_are_refused(folder: Path, weights: dict[str, Tensor]) -> None:
    save_shards(folder, weights)
    part = load_file(folder / "model-00001-of-00003.safetensors")
    twice = next(iter(part))
    second = load_file(folder / "model-00002-of-00003.safetensors")
    save_file(second | {twice: part[twice]}, folder / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=rf"tensors in two files:\n\s+{twice}"):
        load_unified(folder, token_ids=TOKENS)
    for i in (1, 3):
        (folder / f"model-0000{i}-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not there: \['model-00001.*'model-00003"):
        load_unified(folder, token_ids=TOKENS)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_unified(folder, token_ids=TOKENS)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is not an index"):
        load_unified(folder, token_ids=TOKENS)


def test_dtypes_are_kept_or_cast(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "ema.safetensors")
    kept = load_unified(folder, token_ids=TOKENS, dtype=None)
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}
    cast = load_unified(folder, token_ids=TOKENS)
    assert {p.dtype for p in cast.parameters()} == {torch.float32}
    assert_is(cast, {name: tensor.bfloat16().float() for name, tensor in weights.items()})


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("llm_config.json", {"hidden_act": "gelu"}),
        ("llm_config.json", {"use_sliding_window": True}),
        ("llm_config.json", {"rope_scaling": {"type": "yarn"}}),
        ("vit_config.json", {"hidden_act": "gelu"}),
    ],
)
def test_settings_that_this_model_does_not_compute_are_refused(
    folder: Path, file: str, values: dict[str, object]
) -> None:
    edit_json(folder / file, **values)
    with pytest.raises(CheckpointError, match=f"{file} asks for.*{next(iter(values))}.*another architecture"):
        UnifiedConfig.from_bagel_dir(folder, token_ids=TOKENS)


# --- the 7B model


def write_empty(path: Path, shapes: dict[str, list[int]]) -> None:
    """A bf16 safetensors file of zeros that takes no room: the file system stores its header only."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def test_the_7b_folder_strictly(folder_7b: Path, golden_dir: Path) -> None:
    expected = json.loads((golden_dir / "manifest_7b.json").read_text())
    config = UnifiedConfig.from_bagel_dir(folder_7b)
    assert manifest(config) == {name: tuple(shape) for name, shape in expected["bagel"].items()}
    with torch.device("meta"):
        codec = build_codec(config.codec)
    assert {k: list(v.shape) for k, v in codec.state_dict().items()} == expected["ae"]
    assert (len(expected["bagel"]), len(expected["ae"])) == (1223, 244)
    assert config.token_ids == QWEN2_TOKEN_IDS
    assert config.resize == ResizeConfig(longest=1024, shortest=512)
    assert config.vit is not None
    assert config.vit.resize == ResizeConfig(longest=980, shortest=224)


def test_29_gb_of_weights_are_refused_before_they_are_read(folder_7b: Path, golden_dir: Path) -> None:
    shapes = json.loads((golden_dir / "manifest_7b.json").read_text())["bagel"]
    last = "language_model.model.layers.27.mlp_moe_gen.up_proj.weight"
    del shapes[last]
    write_empty(folder_7b / "ema.safetensors", shapes)
    with pytest.raises(CheckpointError, match=rf"1 missing:\n\s+{last}"):
        load_unified(folder_7b)


# --- a folder with everything


def test_an_official_folder_is_a_model(official: Path, bagel_mini: Path) -> None:
    ours, theirs = load_pretrained(bagel_mini), load_pretrained(official)
    assert theirs.tokenizer.token_ids == ours.tokenizer.token_ids == theirs.model.config.token_ids
    assert theirs.codec.width == 32  # as the file has it; nothing else says so
    for part in ("model", "codec"):
        before, after = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
    config = theirs.model.config
    assert config.vit is not None
    # BAGEL's sizes, as far as the tables of this one reach
    assert config.resize == ResizeConfig(longest=256, shortest=256)
    assert config.vit.resize == ResizeConfig(longest=140, shortest=140)
    assert load_pretrained_codec(official).width == 32


def test_a_tokenizer_of_another_model_is_refused(bagel_mini: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(bagel_mini, folder)
    main = json.loads((folder / "config.json").read_text())
    main["gvcot"]["token_ids"]["boi"] += 1
    main["gvcot"]["token_ids"]["eoi"] += 1
    (folder / "config.json").write_text(json.dumps(main))
    with pytest.raises(CheckpointError, match="the model was trained with"):
        load_pretrained(folder)


def test_a_missing_codec_is_named(official: Path) -> None:
    (official / "ae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"ae\.safetensors does not exist.*copy it there"):
        load_pretrained(official)
