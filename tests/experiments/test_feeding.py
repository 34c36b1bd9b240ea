"""The cost of scenes beside the training step, measured and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import cli
from experiments.feeding import Speed, stage, uses
from gvcot.config import load
from gvcot.model.checkpoint import load_codec
from gvcot.model.config import CodecConfig
from sft.config import SFTConfig


def test_the_share_is_of_one_row_s_step() -> None:
    speed = Speed(generate=2.0, encode=4.0, step=20.0)
    assert speed.share(1) == pytest.approx(0.3)
    assert speed.share(4) == pytest.approx(0.075)


def test_uses_are_epochs_of_what_is_encoded() -> None:
    config = load(SFTConfig, "sft/tiny-stage2", ["steps=100", "batch_size=32", "data.reuse=5"])
    assert uses(config, None) == 5
    assert uses(config, 1600) == 1.6  # two shards
    assert uses(config, 16_000) == 0.2


def test_a_stage_is_measured_at_a_size_that_shows_its_scenes(tmp_path: Path) -> None:
    config = load(
        SFTConfig, "sft/tiny-stage2", ["data.world.level=hard", "init=null", "model.codec_width=16"]
    )
    measured = stage(config, tmp_path)
    assert measured.model.image_size == 80
    small = CodecConfig(kind="tiny", z=16, width=16)
    assert load_codec(Path(measured.codec), small).width == 16


def test_the_command_prints_times_and_shares(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["batch_size=2", "model.layers=1", "model.hidden=128"]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["data", "speed", "tiny-stage2", *small, "--repeats", "1", "--level", "easy"])
    assert not exit_info.value.code
    out = capsys.readouterr().out
    for text in (
        "tiny-stage2, easy, 64 px",
        "generate, per scene",
        "encode, per scene",
        "2,000",
        "32,000",
        "unlimited",
    ):
        assert text in out
