"""A dataset trains as the scenes that it was written from do; one with bad samples trains without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gvcot.data import scenes
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.write import write
from gvcot.errors import ConfigError, DataError
from gvcot.model.pretrained import Pretrained, load_pretrained
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker, read_metrics
from sft.config import DataConfig, EvalConfig, SFTConfig
from sft.stages import BatchBuilder
from sft.train import new_state, open_feed, starting_point, train, training_step

Make = Callable[..., SFTConfig]
NUM = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "scenes"
    write(iter(scenes.samples("train", range(NUM))), folder, "folder")
    return folder


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """Two of its samples are bad."""
    folder = tmp_path / "spoiled"
    write(iter(scenes.samples("train", range(NUM))), folder, "folder")
    (folder / "images/000000/00000003.target.png").write_bytes(b"")
    lines = (folder / "samples.jsonl").read_text().splitlines()
    lines[7] = json.dumps(json.loads(lines[7]) | {"instruction": ""})
    (folder / "samples.jsonl").write_text("\n".join(lines))
    return folder


def steps(config: SFTConfig, num: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of some steps, and the weights after them."""
    torch.manual_seed(0)
    model, codec, tokenizer = starting_point(config)
    state = new_state(config, model)
    with open_feed(config, model.config, codec) as feed:
        builder = BatchBuilder(config, model.config, feed, tokenizer, codec)
        losses = [training_step(config, builder, state)["sft/loss"] for _ in range(num)]
    return losses, model.state_dict()


def test_a_dataset_of_scenes_trains_as_the_scenes_do(config: Make, dataset: Path, tmp_path: Path) -> None:
    mix = {"gvcot": 0.6, "describe": 0.1, "locate": 0.1, "inventory": 0.1, "point": 0.1}
    plain: dict[str, Any] = {"num_samples": NUM, "cache_dir": str(tmp_path)}
    both = [
        steps(config(mix=mix, batch_size=6, data=DataConfig(pairs=pairs, shard=NUM, **plain)), 2)
        for pairs in (None, PairsConfig(path=str(dataset)))
    ]
    assert both[0][0] == both[1][0]
    assert all(torch.equal(value, both[1][1][name]) for name, value in both[0][1].items())


def test_bad_samples_are_encoded_past_and_known_from_the_cache_too(
    config: Make, policy: Pretrained, spoiled: Path, tmp_path: Path
) -> None:
    pairs = PairsConfig(path=str(spoiled), max_bad_share=0.2)
    stage = config(data=DataConfig(pairs=pairs, num_samples=100, cache_dir=str(tmp_path / "cache")))
    for _ in range(2):  # encoded, then read
        with open_feed(stage, policy.model.config, policy.codec) as feed:
            assert {bad.id: bad.kind for bad in feed.bad} == {
                "scenes/train/0/3": "undecodable_image",
                "scenes/train/0/7": "empty_instruction",
            }
            read = [text for step in range(2) for text in feed.batch(step).instructions]
        good = [scenes.generate(0, i).instruction for i in range(NUM) if i not in (3, 7)]
        assert sorted(read) == sorted(good)  # 2 steps of 4 rows: one epoch

    (spoiled / "images/000000/00000003.target.png").write_bytes(
        (spoiled / "images/000000/00000003.source.png").read_bytes()
    )
    with open_feed(stage, policy.model.config, policy.codec) as feed:  # a file has changed: encoded anew
        assert [bad.id for bad in feed.bad] == ["scenes/train/0/7"]

    strict = config(data=DataConfig(pairs=PairsConfig(path=str(spoiled)), cache_dir=str(tmp_path / "other")))
    with (
        pytest.raises(DataError, match="1 of 10 samples are bad"),
        open_feed(strict, policy.model.config, policy.codec),
    ):
        pass


def test_words_that_a_dataset_lacks_cannot_be_taught(config: Make, dataset: Path, tmp_path: Path) -> None:
    wordless = [json.loads(line) for line in (dataset / "samples.jsonl").read_text().splitlines()]
    lines = [json.dumps({k: v for k, v in r.items() if k != "region_caption"}) for r in wordless]
    (dataset / "wordless.jsonl").write_text("\n".join(lines))
    data = DataConfig(
        pairs=PairsConfig(path=str(dataset / "wordless.jsonl")), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(ConfigError, match="mix.describe: a sample of the dataset has no region_caption"):
        steps(config(mix={"describe": 1.0}, data=data), 1)


class PowerCut(Exception):
    """Ends a run in the middle."""


def run_stage(path: Path, config: SFTConfig, cut_at: int | None = None) -> None:
    def evaluate(policy: Pretrained, step: int) -> dict[str, float]:
        if step == cut_at:
            raise PowerCut
        return {"eval/weight": policy.model.llm2vae.weight.abs().mean().item()}

    run = RunDir.open(path, config, seed=config.seed)
    with Tracker(path, resume_step=run.resume_step if run.resumed else None) as tracker:
        train(config, run, tracker, evaluate)


@pytest.mark.slow
def test_a_stream_of_a_dataset_goes_on_bit_for_bit(config: Make, spoiled: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, of a shard and behind bad samples."""
    stage = config(
        batch_size=2,
        steps=8,
        save_every=5,
        log_every=1,
        threads=1,
        data=DataConfig(
            pairs=PairsConfig(path=str(spoiled), max_bad_share=0.5), num_samples=None, shard=3, reuse=1
        ),
        eval=EvalConfig(every=7),
    )
    run_stage(tmp_path / "straight", stage)
    with pytest.raises(PowerCut):
        run_stage(tmp_path / "cut", stage, cut_at=7)
    run_stage(tmp_path / "cut", stage)
    one, other = (
        load_pretrained(tmp_path / name / "final").model.state_dict() for name in ("straight", "cut")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    last = read_metrics(tmp_path / "cut")[-1]
    assert last["step"] == 8
    logged = [line for line in read_metrics(tmp_path / "cut") if "data/bad_samples" in line]
    assert logged[-1]["data/bad_samples"] == 2
    lines = (tmp_path / "cut" / "bad_samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"scenes/train/0/3", "scenes/train/0/7"}
