"""Encoded scenes are what the codec says of the scenes, and a cache of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from gvcot.data import scenes
from gvcot.data.encoded import EncodedScenes, bytes_per_scene, fingerprint, load_encoded, pixels
from gvcot.data.images import to_tensor
from gvcot.data.show import painted
from gvcot.data.source import SceneSource
from gvcot.errors import ResourceError
from gvcot.model import flow
from gvcot.model.pretrained import Pretrained


def load(policy: Pretrained, cache: Path, num_samples: int) -> EncodedScenes:
    source = SceneSource(seed=0, size=64)
    return load_encoded(
        policy.codec,
        policy.model.config,
        source,
        cache_dir=cache,
        num_samples=num_samples,
        size=64,
        shard=4,
    )


def test_scenes_are_encoded_in_order(policy: Pretrained, tmp_path: Path) -> None:
    data = load(policy, tmp_path, 6)
    assert len(data) == 6
    assert data.grid == (4, 4)
    for i in (0, 5):
        sample = scenes.generate(0, i)
        assert data.instructions[i] == sample.instruction
        assert data.captions[i] == sample.region_caption
        assert data.places[i].endswith(f"> {sample.region_caption}")
        assert data.places[i].count("<x") == len(sample.regions)
        assert data.inventories[i].count("<x") == len(sample.things)
        assert data.pointers[i] == [list(pair) for pair in sample.pointers]
        assert (data.source_M3HW[i].permute(1, 2, 0).numpy() == sample.source_HW3).all()
        assert sample.target_HW3 is not None
        shown = {
            "source_MND": sample.source_HW3,
            "x_cot_MND": painted(sample),
            "x_edit_MND": sample.target_HW3,
        }
        for name, image in shown.items():
            latent = flow.patchify(policy.codec.encode(to_tensor([image])), 2)[0]
            # fp16 on disk; the painted image is encoded before it is rounded to uint8
            torch.testing.assert_close(getattr(data, name)[i].float(), latent, atol=0.03, rtol=0.01)


def test_the_reasoning_pixels_are_the_codec_s_round_trip(policy: Pretrained, tmp_path: Path) -> None:
    data = load(policy, tmp_path, 4)
    decoded = policy.codec.decode(flow.unpatchify(data.x_cot_MND.float(), data.grid, 2))
    assert (pixels(data.x_cot_M3HW) - decoded).abs().max() < 0.03


def test_a_second_load_reads_the_cache_and_gives_the_same(policy: Pretrained, tmp_path: Path) -> None:
    first = load(policy, tmp_path, 6)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert len(written) == 2  # shards of 4
    second = load(policy, tmp_path, 6)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == written
    for field in dataclasses.fields(EncodedScenes):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_stopped_build_continues(policy: Pretrained, tmp_path: Path) -> None:
    load(policy, tmp_path, 4)
    before = next(tmp_path.rglob("*.safetensors")).stat().st_mtime_ns
    whole = load(policy, tmp_path, 8)
    assert next(tmp_path.rglob("00000000.safetensors")).stat().st_mtime_ns == before
    assert torch.equal(whole.source_MND, load(policy, tmp_path / "fresh", 8).source_MND)


def test_the_cache_s_name_changes_with_all_that_it_holds(policy: Pretrained) -> None:
    name = fingerprint(policy.codec, seed=0, size=64)
    assert name == fingerprint(policy.codec, size=64, seed=0)
    assert name != fingerprint(policy.codec, seed=1, size=64)
    with torch.no_grad():
        policy.codec.decoder[0].weight[0, 0, 0, 0] += 1e-6
    assert name != fingerprint(policy.codec, seed=0, size=64)


def test_a_set_that_does_not_fit_on_the_disk_is_refused_at_once(policy: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="lower data.num_samples"):
        load(policy, tmp_path, 10**12)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_size_of_a_scene_is_known_beforehand(policy: Pretrained, tmp_path: Path) -> None:
    load(policy, tmp_path, 64)
    taken = sum(path.stat().st_size for path in tmp_path.rglob("*.*") if path.is_file()) / 64
    assert 0.9 < bytes_per_scene(policy.model.config, 64) / taken < 1.1
