"""The training of the small CLIP, and what the shipped one knows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from experiments.clip_scenes import (
    NETWORK,
    ClipScenesConfig,
    contrast,
    edits,
    embed,
    evaluate,
    hit_share,
    main,
    train,
)
from gvcot.clip_model import CONFIG_FILE, SCENES_FOLDER, WEIGHTS_FILE, load_clip
from gvcot.data import scenes
from gvcot.errors import ConfigError


def test_edits_are_those_that_samples_show() -> None:
    for edit, sample in zip(edits("val", range(6)), scenes.samples("val", range(6)), strict=True):
        assert (edit.source_HW3 == sample.source_HW3).all()
        assert (edit.target_HW3 == sample.target_HW3).all()
        assert (edit.instruction, edit.region) == (sample.instruction, sample.region_caption)
        assert edit.before.split() == [word for word in sample.scene_caption.split() if "<" not in word]


def test_contrast_by_hand() -> None:
    """Two pairs of orthogonal unit vectors at scale s: log(1 + exp(-s)); swapped: log(1 + exp(s))."""
    one = torch.eye(2)
    assert contrast(one, one, 3.0).item() == pytest.approx(math.log(1 + math.exp(-3)))
    assert contrast(one, one.flip(0), 3.0).item() == pytest.approx(math.log(1 + math.exp(3)))
    # Both partners alike: by rows a toss-up, by columns one is right and one wrong.
    rows, columns = math.log(2), (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(3))) / 2
    assert contrast(one, one[[0, 0]], 3.0).item() == pytest.approx((rows + columns) / 2)


def test_a_training_is_saved_and_can_be_loaded_and_repeated(tmp_path: Path) -> None:
    settings = ["steps=3", "num_scenes=24", "num_val=64", "batch_size=8"]
    main([*settings, f"out={tmp_path / 'one'}"])
    main([*settings, f"out={tmp_path / 'two'}"])
    one, two = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("one", "two"))
    assert one == two
    record = json.loads((tmp_path / "one" / "record.json").read_text())
    assert record["config"]["steps"] == 3
    found = evaluate(load_clip(weights=tmp_path / "one" / WEIGHTS_FILE), edits("val", range(64)))
    assert found == record["val"]


def test_training_learns_a_few_scenes_by_heart() -> None:
    clip = train(ClipScenesConfig(steps=60, num_scenes=8, batch_size=8, noise=0.0, lr=1e-2))
    with torch.no_grad():
        found = embed(clip, edits("train", range(8)))
    assert hit_share(found.source_BD, found.before_BD) == 1
    assert hit_share(found.target_BD, found.after_BD) == 1
    assert hit_share(found.change_BD, found.words_BD) == 1


def test_the_shipped_one_knows_val_scenes() -> None:
    """Against a chance of 1 in 64; the record's numbers are those of all 512 scenes."""
    assert json.loads((SCENES_FOLDER / CONFIG_FILE).read_text()) == NETWORK
    found = evaluate(load_clip(), edits("val", range(128)))
    assert found["caption"] > 0.85
    assert found["direction"] > 0.4
    record = json.loads((SCENES_FOLDER / "record.json").read_text())["val"]
    assert found["caption"] == pytest.approx(record["caption"], abs=0.1)
    assert found["direction"] == pytest.approx(record["direction"], abs=0.15)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 64, expected 2 to num_scenes"):
        main(["num_scenes=10"])
