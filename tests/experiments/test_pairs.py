"""RL and evaluation on a dataset of image pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.evaluate import EvalRunConfig, evaluate_folder
from experiments.signal import batch_gradient
from gvcot.chain import Chain
from gvcot.config import load
from gvcot.data import scenes
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.order import epoch_order
from gvcot.data.pairs.write import write
from gvcot.model.pretrained import Pretrained, load_pretrained
from gvcot.types import ChainConfig
from rl.config import PromptConfig, RLConfig, RLEvalConfig
from rl.scoring import TrainingPrompts, provides

NUM = 6


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PairsConfig:
    folder = tmp_path_factory.mktemp("pairs") / "scenes"
    write(iter(scenes.samples("train", range(NUM))), folder, "webdataset", shard=4)
    return PairsConfig(path=str(folder))


def test_every_process_rebuilds_a_prompt_from_its_index(pairs: PairsConfig) -> None:
    driver, worker = TrainingPrompts(PromptConfig(pairs=pairs)), TrainingPrompts(PromptConfig(pairs=pairs))
    indices = torch.tensor([7, 2, 2, 11])
    names = [sample.sample_id for sample in worker(indices)]
    assert names == [sample.sample_id for sample in driver([7]) + driver([2, 2, 11])]
    whole = [sample.sample_id for sample in driver(range(2 * NUM))]
    known = {f"scenes/train/0/{i}" for i in range(NUM)}
    assert set(whole[:NUM]) == set(whole[NUM:]) == known
    assert whole[:NUM] != whole[NUM:]
    other = TrainingPrompts(PromptConfig(pairs=pairs, seed=5))
    assert [s.sample_id for s in other(range(NUM))] != whole[:NUM]


def test_scenes_are_the_ones_they_were() -> None:
    (sample,) = TrainingPrompts(PromptConfig(seed=1))([3])
    assert sample.sample_id == scenes.generate(1, 3).sample_id


def test_a_chain_on_a_dataset_provides_what_its_samples_have(policy: Pretrained, pairs: PairsConfig) -> None:
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=True)
    assert provides(chain, pairs) == provides(chain)


def test_evaluations_are_called_after_the_dataset(pairs: PairsConfig) -> None:
    assert RLEvalConfig(pairs=pairs).name == "scenes"
    assert RLEvalConfig(split="test").name == "test"


def test_a_dataset_of_scenes_evaluates_as_the_scenes_do(
    policy_folder: Path, pairs: PairsConfig, tmp_path: Path
) -> None:
    results = [
        evaluate_folder(
            policy_folder,
            EvalRunConfig(
                pairs=given, split="train", num_samples=4, num_steps=(1,), probes=(), threads=1, out=str(out)
            ),
        )
        for given, out in ((None, tmp_path / "a"), (pairs, tmp_path / "b"))
    ]
    assert repr(results[0]["train-1steps"]) == repr(results[1]["scenes-1steps"])  # NaN is NaN
    assert (tmp_path / "b" / "evals" / "scenes-1steps.png").is_file()


def test_an_evaluation_says_what_it_left_out(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = scenes.samples("train", range(2))
    write(iter([replace(bad, task="nonsense"), good]), tmp_path / "two", "folder")
    given = PairsConfig(path=str(tmp_path / "two"), max_bad_share=1.0)
    evaluate_folder(
        policy_folder,
        EvalRunConfig(pairs=given, num_steps=(1,), probes=(), threads=1, out=str(tmp_path / "out")),
    )
    assert f"left out: {bad.sample_id}: unknown_task" in capsys.readouterr().out


def test_an_update_on_a_dataset_of_scenes_is_that_on_the_scenes(policy_folder: Path, tmp_path: Path) -> None:
    """Rollout, rewards, advantages and gradient of one step, whose prompts are the same ones."""
    write(iter(scenes.samples("train", range(2))), tmp_path / "two", "folder")
    seed = next(seed for seed in range(99) if epoch_order([2], seed, 0)[0] == 0)
    small = ["prompts_per_step=2", "group_size=3", "rollout.num_steps=2", "nft.num_times=1", "loss.kl_coef=0"]
    found = []
    for data in (["data.seed=0"], [f"data.seed={seed}", f"data.pairs.path={tmp_path / 'two'}"]):
        config = load(RLConfig, "rl/tiny", [f"model={policy_folder}", "max_missing_share=1.0", *small, *data])
        found.append(batch_gradient(config, load_pretrained(policy_folder), 0))
    assert found[0].keys() == found[1].keys()
    assert any(gradient.abs().max() > 0 for gradient in found[0].values())
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())
