"""A dataset trains as the scenes that it was written from do; one with bad samples trains without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gvcot.data import scenes
from gvcot.data.encoded import EncodedScenes
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.write import write
from gvcot.data.stream import Epochs
from gvcot.errors import ConfigError, DataError
from gvcot.model.pretrained import Pretrained, load_pretrained
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker, read_metrics
from sft.config import DataConfig, EvalConfig, SFTConfig
from sft.stages import BatchBuilder
from sft.train import new_state, open_feed, train, training_step

Make = Callable[..., SFTConfig]
NUM = 16
"""As many as the encoded scenes of `encoded`."""


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


def steps(config: SFTConfig, builder: BatchBuilder, policy: Pretrained) -> list[float]:
    """Losses of two steps, which move the policy."""
    state = new_state(config, policy.model)
    return [training_step(config, builder, state)["sft/loss"] for _ in range(2)]


def test_a_dataset_of_scenes_trains_as_the_scenes_do(
    config: Make, encoded: EncodedScenes, policy_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    mix = {"gvcot": 0.6, "describe": 0.1, "locate": 0.1, "inventory": 0.1, "point": 0.1}
    data = DataConfig(pairs=PairsConfig(path=str(dataset)), cache_dir=str(tmp_path))
    stage = config(mix=mix, batch_size=6, data=data)
    one, other = load_pretrained(policy_folder), load_pretrained(policy_folder)
    feed = Epochs(encoded, stage.batch_size, stage.seed)
    scene_losses = steps(stage, BatchBuilder(stage, one.model.config, feed, one.tokenizer, one.codec), one)
    with open_feed(stage, other.model.config, other.codec) as feed:
        builder = BatchBuilder(stage, other.model.config, feed, other.tokenizer, other.codec)
        assert steps(stage, builder, other) == scene_losses
    weights = other.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())


def test_bad_samples_are_encoded_past_and_known_from_the_cache_too(
    config: Make, policy: Pretrained, spoiled: Path, tmp_path: Path
) -> None:
    pairs = PairsConfig(path=str(spoiled), max_bad_share=0.2)
    data = DataConfig(pairs=pairs, num_samples=100, cache_dir=str(tmp_path / "cache"))
    stage = config(batch_size=2, data=data)
    for _ in range(2):  # encoded, then read
        with open_feed(stage, policy.model.config, policy.codec) as feed:
            assert {bad.id: bad.kind for bad in feed.bad} == {
                "scenes/train/0/3": "undecodable_image",
                "scenes/train/0/7": "empty_instruction",
            }
            read = [text for step in range(7) for text in feed.batch(step).instructions]
        good = [scenes.generate(0, i).instruction for i in range(NUM) if i not in (3, 7)]
        assert sorted(read) == sorted(good)  # 7 steps of 2 rows: one epoch

    (spoiled / "images/000000/00000003.target.png").write_bytes(
        (spoiled / "images/000000/00000003.source.png").read_bytes()
    )
    with open_feed(stage, policy.model.config, policy.codec) as feed:  # a file has changed: encoded anew
        assert [bad.id for bad in feed.bad] == ["scenes/train/0/7"]

    strict = PairsConfig(path=str(spoiled))
    for cache in ("cache", "other"):  # known to be bad from before, or not yet
        data = DataConfig(pairs=strict, num_samples=100, cache_dir=str(tmp_path / cache))
        opening = open_feed(config(data=data), policy.model.config, policy.codec)
        with pytest.raises(DataError, match="1 of 16 samples are bad, at most 1.0%"), opening:
            pass


def test_words_that_a_dataset_lacks_cannot_be_taught(
    config: Make, policy: Pretrained, dataset: Path, tmp_path: Path
) -> None:
    wordless = [json.loads(line) for line in (dataset / "samples.jsonl").read_text().splitlines()]
    lines = [json.dumps({k: v for k, v in r.items() if k != "region_caption"}) for r in wordless]
    (dataset / "wordless.jsonl").write_text("\n".join(lines))
    data = DataConfig(
        pairs=PairsConfig(path=str(dataset / "wordless.jsonl")), cache_dir=str(tmp_path / "cache")
    )
    stage = config(mix={"describe": 1.0}, data=data)
    with open_feed(stage, policy.model.config, policy.codec) as feed:
        builder = BatchBuilder(stage, policy.model.config, feed, policy.tokenizer, policy.codec)
        with pytest.raises(ConfigError, match="mix.describe: a sample of the dataset has no region_caption"):
            builder.batch(0)


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
        steps=12,
        save_every=7,
        log_every=1,
        threads=1,
        data=DataConfig(
            pairs=PairsConfig(path=str(spoiled), max_bad_share=0.5), num_samples=None, shard=3, reuse=1
        ),
        eval=EvalConfig(every=9),
    )
    run_stage(tmp_path / "straight", stage)
    with pytest.raises(PowerCut):
        run_stage(tmp_path / "cut", stage, cut_at=9)
    run_stage(tmp_path / "cut", stage)
    one, other = (
        load_pretrained(tmp_path / name / "final").model.state_dict() for name in ("straight", "cut")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    last = read_metrics(tmp_path / "cut")[-1]
    assert last["step"] == 12
    logged = [line for line in read_metrics(tmp_path / "cut") if "data/bad_samples" in line]
    assert logged[-1]["data/bad_samples"] == 2
    lines = (tmp_path / "cut" / "bad_samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"scenes/train/0/3", "scenes/train/0/7"}
