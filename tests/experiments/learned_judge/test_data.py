from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from experiments.learned_judge.agreement import compare, served_scores
from experiments.learned_judge.config import DataConfig
from experiments.learned_judge.data import DRAWN, Pairs, balance, digits, joined, load_pairs
from experiments.learned_judge.edits import CONTENTS, FLAWS, draft, problem
from gvcot.data import scenes
from rewards.judge.config import EndpointConfig, JudgeConfig
from rewards.judge.scenes_server import running
from rewards.judge.serve_config import ScenesJudgeConfig


def test_labels_are_what_the_scenes_judge_answers_to_the_same_pictures(pairs: Pairs) -> None:
    config = ScenesJudgeConfig()
    with running(config) as url:
        endpoint = EndpointConfig(base_url=url, model=config.model, send_metadata=True)
        scores_N2 = served_scores(JudgeConfig(endpoints=(endpoint,)), pairs)
    assert scores_N2 == pytest.approx(pairs.scores_N2, abs=1e-4)
    assert compare(scores_N2, pairs.scores_N2, pairs.kind_N)["sc"]["auc"] == 1.0


def test_targets_are_good_sources_are_not_and_every_scene_has_an_edit_that_was_drawn(pairs: Pairs) -> None:
    sc_N, pq_N = pairs.scores_N2.T
    assert sc_N[pairs.kind_N == "target"].mean() > 6
    assert sc_N[pairs.kind_N == "source"].max(initial=0) < 2
    clean_N = np.isin(pairs.kind_N, list(CONTENTS))
    flawed_N = np.char.find(pairs.kind_N.astype(str), "+") >= 0
    assert pq_N[clean_N].mean() > pq_N[flawed_N].mean() + 1
    assert np.bincount(pairs.scene_N[pairs.kind_N == DRAWN]).tolist() == [1] * len(pairs.instructions)


def test_every_flaw_ruins_some_picture_and_every_content_can_be_made() -> None:
    known, rng = problem(0, 3, "val"), np.random.default_rng(0)
    found = {draft(known, rng).kind for _ in range(400)}
    assert {kind.split("+")[0] for kind in found} >= {"target", "source", "blend", "other_scene"}
    assert {kind.split("+")[1] for kind in found if "+" in kind} == set(FLAWS)


def test_edits_are_made_once_and_are_the_same_when_made_again(data: DataConfig, pairs: Pairs) -> None:
    (path,) = [p for p in os.scandir(data.cache_dir) if p.is_dir()]
    (stored,) = os.scandir(path.path)
    before = stored.stat().st_mtime_ns
    read = load_pairs(data)
    assert os.stat(stored.path).st_mtime_ns == before
    np.testing.assert_array_equal(read.after_NHW3, pairs.after_NHW3)
    assert read.instructions == pairs.instructions
    few = load_pairs(replace(data, num_scenes=2))  # another file, since its shard is shorter
    np.testing.assert_array_equal(few.measures_NM[few.kind_N != DRAWN], pairs.measures_NM[:10])
    assert [few.instructions, few.sample_ids] == [pairs.instructions[:2], pairs.sample_ids[:2]]


def test_joined_parts_keep_their_scenes(pairs: Pairs) -> None:
    both = joined([pairs, pairs])
    assert len(both) == 2 * len(pairs)
    assert both.scene_N[-1] == 2 * len(pairs.instructions) - 1
    assert both.instructions[both.scene_N[-1]] == pairs.instructions[pairs.scene_N[-1]]


def test_a_rare_digit_is_shown_as_often_as_a_frequent_one(pairs: Pairs) -> None:
    measures_NM = np.array([[0, 0, 1, 1]] * 9 + [[1, 1, 1, 1]], np.float32)  # nine SC of 0, one of 10; PQ 10
    ten = replace(pairs, measures_NM=measures_NM, scene_N=np.zeros(10, np.int64))
    assert digits(ten.scores_N2[:, 0]).tolist() == [0] * 9 + [9]
    # SC: 1/9 each and 1; PQ: 1/10 each
    assert balance(ten)[-1] == pytest.approx((1 + 0.1) / 3)
    assert balance(ten).sum() == pytest.approx(1.0)


def test_the_last_scene_of_a_split_has_another_one_too() -> None:
    last = problem(0, scenes.length("val") - 1, split="val")
    assert last.other.sample_id == scenes.generate(0, 0, split="val").sample_id
    assert problem(0, 3, split="val").other.sample_id == scenes.generate(0, 4, split="val").sample_id
