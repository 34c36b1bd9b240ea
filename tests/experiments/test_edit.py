"""Editing one image file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import cli
from experiments.edit import run_edit
from gvcot.data import scenes
from gvcot.errors import CheckpointError, DataError, GvcotError

INSTRUCTION = scenes.generate(0, 0).instruction


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(scenes.generate(0, 0).source_HW3).save(path)
    return path


def test_the_chain_and_the_mask_are_written(picture: Path, policy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert run_edit(picture, INSTRUCTION, policy_folder, out, num_steps=2) == out
    assert sorted(p.name for p in out.iterdir()) == ["mask.png", "x_cot.png", "x_edit.png"]
    for name in ("x_cot", "x_edit"):
        assert np.asarray(Image.open(out / f"{name}.png")).shape == (64, 64, 3)
    mask = np.asarray(Image.open(out / "mask.png"))
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) <= {0, 255}


def test_the_seed_decides(picture: Path, policy_folder: Path, tmp_path: Path) -> None:
    def drawn(seed: int) -> np.ndarray:
        out = run_edit(picture, INSTRUCTION, policy_folder, tmp_path / "out", num_steps=1, seed=seed)
        return np.asarray(Image.open(out / "x_edit.png"))

    first = drawn(0)
    assert (first == drawn(0)).all()
    assert (first != drawn(1)).any()


def test_guidance_changes_what_is_drawn(
    picture: Path, policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(*options: str) -> np.ndarray:
        call = ["edit", str(picture), INSTRUCTION, "--checkpoint", str(policy_folder)]
        with pytest.raises(SystemExit) as ended:
            cli.main([*call, "--out", str(tmp_path / "out"), "--num-steps", "2", *options])
        assert not ended.value.code
        return np.asarray(Image.open(tmp_path / "out" / "x_edit.png"))

    plain = drawn()
    assert (plain == drawn("--text-scale", "1")).all()
    assert (plain != drawn("--text-scale", "4")).any()
    assert (plain != drawn("--image-scale", "2")).any()


def test_an_image_need_not_be_square(policy_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 48), "navy").save(tmp_path / "wide.png")
    out = run_edit(tmp_path / "wide.png", INSTRUCTION, policy_folder, tmp_path / "out", num_steps=1)
    assert Image.open(out / "x_edit.png").size == (96, 48)


def test_an_unknown_word_is_named(picture: Path, policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="zebra"):
        run_edit(picture, "remove the zebra", policy_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_size_is_answered_with_a_right_one(policy_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (70, 64)).save(tmp_path / "odd.png")
    with pytest.raises(DataError, match=r"70x64 px; .* divisible by 16: resize it, e\.g\. to 64x64"):
        run_edit(tmp_path / "odd.png", INSTRUCTION, policy_folder, tmp_path / "out")


def test_an_image_beyond_the_position_tables_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (256, 64)).save(tmp_path / "huge.png")
    with pytest.raises(GvcotError, match="at most 128 px"):
        run_edit(tmp_path / "huge.png", INSTRUCTION, policy_folder, tmp_path / "out")


def test_garbage_is_not_an_image(policy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(DataError, match=r"cannot read the image .*bad\.png"):
        run_edit(tmp_path / "bad.png", INSTRUCTION, policy_folder, tmp_path / "out")


def test_a_folder_without_a_model_is_refused(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model"):
        run_edit(picture, INSTRUCTION, tmp_path, tmp_path / "out")


def test_a_user_s_mistake_is_one_message(
    capsys: pytest.CaptureFixture[str], policy_folder: Path, tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing.png")
    with pytest.raises(SystemExit) as exit_info:
        cli.main(
            ["edit", missing, INSTRUCTION, "--checkpoint", str(policy_folder), "--out", str(tmp_path / "o")]
        )
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "missing.png" in error
    assert "Traceback" not in error
