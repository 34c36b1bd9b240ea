"""From scores to advantages, the checks of the loop, and its order of events. Real steps run in tests/e2e."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from gvcot.errors import RewardError
from gvcot.run_dir import RunDir
from gvcot.seeds import generator
from gvcot.tracking import Tracker, read_metrics
from rewards.config import GateConfig, RewardConfig
from rl.collect import Collected
from rl.config import AdvantageConfig, RLConfig, RLEvalConfig
from rl.train import advantage_rows, check_gap, credited, prompts, shuffle_within_groups, train

PHASES = ["x_cot", "x_edit"]
REACHES = ["x_cot", "x_edit"]


def config(**changes: Any) -> RLConfig:
    rewards = {name: RewardConfig(type=name) for name in ("mask_iou", "edit_accuracy")}
    plain: dict[str, Any] = {"name": "t", "model": "", "steps": 1, "prompts_per_step": 2, "group_size": 4}
    return RLConfig(**(plain | {"rewards": rewards} | changes))


def scores(
    mask_iou: Tensor, edit: Tensor, valid_edit: Tensor | None = None, applies_edit: Tensor | None = None
) -> TensorDict:
    every = torch.ones(len(mask_iou), dtype=torch.bool)
    columns = {
        "raw/mask_iou": mask_iou,
        "raw/edit_accuracy": edit,
        "valid/mask_iou": every,
        "valid/edit_accuracy": every if valid_edit is None else valid_edit,
        "applies/mask_iou": every,
        "applies/edit_accuracy": every if applies_edit is None else applies_edit,
    }
    return TensorDict(columns, batch_size=[len(mask_iou)])


GROUP_B = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
MASK_B = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5])
EDIT_B = torch.tensor([0.1, 0.1, 0.3, 0.3, 0.0, 1.0, 0.0, 1.0])


def test_prompts_continue_the_stream() -> None:
    seen = [prompts(config(prompts_per_step=4), step) for step in (0, 1, 2)]
    assert torch.cat([p["index"] for p in seen]).tolist() == list(range(12))
    assert seen[2]["position"].tolist() == [0, 1, 2, 3]
    assert seen[2]["step"].tolist() == [2] * 4


def test_advantages_are_centred_scores_over_the_group_s_deviation() -> None:
    (advantage_BK, kept_BK), stats = credited(config(), scores(MASK_B, EDIT_B), GROUP_B, 0, REACHES, PHASES)
    # group 0: mask_iou -0.3, -0.1, 0.1, 0.3 over std 0.258; edit -0.1, -0.1, 0.1, 0.1 over std 0.1155
    edit = torch.tensor([-0.866, -0.866, 0.866, 0.866])
    torch.testing.assert_close(advantage_BK[:4, 1], edit, atol=1e-3, rtol=0)
    mask = torch.tensor([-1.162, -0.387, 0.387, 1.162])
    torch.testing.assert_close(advantage_BK[:4, 0], mask + edit, atol=1e-3, rtol=0)
    # group 1 has no signal in mask_iou, so that its reasoning learns from the edit alone
    torch.testing.assert_close(advantage_BK[4:, 0], advantage_BK[4:, 1])
    assert kept_BK.all()
    torch.testing.assert_close(stats["zero_std_fraction"], torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(stats["overall"], torch.cat([MASK_B, EDIT_B]).mean())


def test_a_phase_of_weight_0_has_no_advantage_but_stays_anchored() -> None:
    weighted = config(advantage=AdvantageConfig(phase_weights={"x_edit": 0.0, "x_cot": 2.0}))
    (plain, kept), _ = credited(config(), scores(MASK_B, EDIT_B), GROUP_B, 0, REACHES, PHASES)
    (advantage_BK, kept_BK), _ = credited(weighted, scores(MASK_B, EDIT_B), GROUP_B, 0, REACHES, PHASES)
    assert torch.equal(advantage_BK[:, 0], 2 * plain[:, 0])
    assert advantage_BK[:, 1].eq(0).all()
    assert torch.equal(kept_BK, kept)


def test_missing_scores_are_masked_and_not_zeros() -> None:
    valid = torch.tensor([False, True, True, True, True, True, True, True])
    table = scores(MASK_B, EDIT_B, valid)
    (advantage_BK, kept_BK), stats = credited(config(), table, GROUP_B, 0, REACHES, PHASES)
    assert kept_BK[0].tolist() == [True, False]  # its mask_iou exists
    assert advantage_BK[0, 1] == 0.0
    assert advantage_BK[1:4, 1].sum().abs() < 1e-5  # centred over the three that exist
    torch.testing.assert_close(stats["missing_fraction"], torch.tensor([0.0, 0.125]))


def gate_on_mask_iou() -> RLConfig:
    gated = RewardConfig(type="edit_accuracy", gate=GateConfig(reward="mask_iou", above=0.3))
    return config(rewards={"mask_iou": RewardConfig(type="mask_iou"), "edit_accuracy": gated})


def test_a_shut_gate_gives_the_floor_and_is_counted() -> None:
    """Chains 0 and 1 paint too little for their edits to count, so 2 and 3 are better by .3, not .2."""
    options = AdvantageConfig(std="none")
    gated = replace(gate_on_mask_iou(), advantage=options)
    (advantage_BK, kept_BK), stats = credited(gated, scores(MASK_B, EDIT_B), GROUP_B, 0, REACHES, PHASES)
    torch.testing.assert_close(advantage_BK[:4, 1], torch.tensor([-0.15, -0.15, 0.15, 0.15]))
    assert kept_BK.all()
    torch.testing.assert_close(stats["shut_fraction"], torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(stats["mean"], torch.stack([MASK_B.mean(), EDIT_B.mean()]))  # raw all the same


def test_normalizing_the_sum_lets_the_wider_component_decide() -> None:
    """Scores of ten times the spread decide a sum; components that are normalised first count the same."""
    narrow, wide = torch.tensor([0.10, 0.12, 0.14, 0.16] * 2), torch.tensor([0.8, 0.6, 0.4, 0.2] * 2)
    table, rows = scores(wide, narrow), slice(0, 4)
    equal = AdvantageConfig(std_floor=1e-6)
    (advantage_BK, _), _ = credited(config(advantage=equal), table, GROUP_B, 0, REACHES, PHASES)
    assert advantage_BK[rows, 0].abs().max() < 1e-3
    summed = AdvantageConfig(std_floor=1e-6, normalize="sum")
    (advantage_BK, _), _ = credited(config(advantage=summed), table, GROUP_B, 0, REACHES, PHASES)
    torch.testing.assert_close(
        advantage_BK[rows, 0], torch.tensor([1.162, 0.387, -0.387, -1.162]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        advantage_BK[rows, 0], -advantage_BK[rows, 1]
    )  # the edit has its own score only


def test_the_geometric_mean_prefers_the_chain_that_is_good_at_both() -> None:
    both, one = torch.tensor([0.5, 1.0, 0.1, 0.1] * 2), torch.tensor([0.5, 0.0, 0.1, 0.2] * 2)
    options = AdvantageConfig(normalize="geometric_mean", std="none")
    (advantage_BK, _), stats = credited(
        config(advantage=options), scores(both, one), GROUP_B, 0, REACHES, PHASES
    )
    assert advantage_BK[:4, 0].argmax() == 0
    assert advantage_BK[:4, 0].argmin() == 1
    assert stats["overall"] < 0.2


def test_samples_of_other_tasks_miss_nothing() -> None:
    applies = torch.tensor([True] * 4 + [False] * 4)
    table = scores(MASK_B, EDIT_B, applies, applies)
    (_, kept_BK), stats = credited(config(max_missing_share=0.0), table, GROUP_B, 0, REACHES, PHASES)
    assert kept_BK[:, 1].tolist() == applies.tolist()
    torch.testing.assert_close(stats["missing_fraction"], torch.zeros(2))


def test_scores_that_are_not_finite_count_as_missing() -> None:
    broken = EDIT_B.clone()
    broken[0] = torch.nan
    (advantage_BK, kept_BK), _ = credited(config(), scores(MASK_B, broken), GROUP_B, 0, REACHES, PHASES)
    assert not kept_BK[0, 1]
    assert advantage_BK.isfinite().all()


def test_too_many_missing_scores_stop_the_run() -> None:
    table = scores(MASK_B, EDIT_B, torch.tensor([True] * 3 + [False] * 5))
    with pytest.raises(RewardError, match=r"edit_accuracy: 6[23]% of 8 scores are missing"):
        credited(config(), table, GROUP_B, 0, REACHES, PHASES)
    credited(config(max_missing_share=0.7), table, GROUP_B, 0, REACHES, PHASES)


def test_the_error_says_why_scores_are_missing_and_how_to_go_on() -> None:
    table = scores(MASK_B, EDIT_B, torch.tensor([True] * 3 + [False] * 5))
    table["part/edit_accuracy/missing_timeout"] = torch.tensor([0.0] * 4 + [1.0] * 4)
    table["part/edit_accuracy/missing_server"] = torch.tensor([0.0, 0.0, 0.0, 1.0] + [torch.nan] * 4)
    table["part/edit_accuracy/missing_parse"] = torch.zeros(8)
    with pytest.raises(RewardError, match=r"are missing \(timeout: 4, server: 1\), at .*the same\s+command"):
        credited(config(), table, GROUP_B, 0, REACHES, PHASES)


def test_only_scores_that_training_depends_on_stop_the_run() -> None:
    table = scores(MASK_B, EDIT_B, torch.zeros(8, dtype=torch.bool))
    mask_iou = RewardConfig(type="mask_iou")
    watched = {"mask_iou": mask_iou, "edit_accuracy": RewardConfig(type="edit_accuracy", weight=0.0)}
    _, stats = credited(config(rewards=watched), table, GROUP_B, 0, REACHES, PHASES)
    assert stats["mean"].isnan().tolist() == [False, True]  # no score is not a score of 0
    assert stats["std"].isnan().tolist() == [False, True]
    gated = replace(mask_iou, gate=GateConfig(reward="edit_accuracy", above=0.0))
    with pytest.raises(RewardError, match="edit_accuracy: 100%"):
        credited(config(rewards=watched | {"mask_iou": gated}), table, GROUP_B, 0, REACHES, PHASES)


class Loop:
    """The loop's surroundings in one process: scores that are given, an update that does nothing."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.config = config(objective="diffusion_nft", **({"steps": 4, "save_every": 10} | changes))
        self.run = RunDir.open(folder, self.config)
        self.saved: list[int] = []
        self.tables = {step: scores(MASK_B, EDIT_B) for step in range(1, 9)}
        self.evaluations: dict[int, dict[str, float]] = {}
        self.ends: Callable[[dict[str, float]], bool] = lambda metrics: False
        self.observed: list[tuple[int, dict[str, float]]] = []
        self.ended = False

    def update(self, rows: TensorDict) -> TensorDict:
        return TensorDict({"loss": torch.tensor([1.0])}, batch_size=[1])

    def save(self, folder: str, step: int) -> None:
        (Path(folder) / "state").touch()
        self.saved.append(step)

    def collect(self, prompts: TensorDict) -> Collected:
        step = int(prompts["step"][0]) + 1
        chains = TensorDict({"position": GROUP_B}, batch_size=[8])
        return Collected(chains, self.tables[step], {"time/rollout": 1.0})

    def evaluate(self, step: int) -> dict[str, float]:
        return self.evaluations.get(step, {"eval/mask_iou": 0.5})

    def stepped(self, step: int, chains: TensorDict, scores: TensorDict, metrics: dict[str, float]) -> bool:
        self.observed.append((step, metrics))
        return self.ends(metrics)

    def evaluated(self, step: int, metrics: dict[str, float]) -> bool:
        return self.stepped(step, TensorDict(), TensorDict(), metrics)

    def __call__(self) -> int:
        with Tracker(self.run.path, resume_step=self.run.resume_step) as tracker:
            policy: Any = self
            return train(
                self.config, policy, self.collect, REACHES, PHASES, self.run, tracker, self.evaluate, self
            )


def test_a_run_that_its_observer_ended_stays_ended(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    loop.ends = lambda metrics: "policy/loss" in metrics
    assert loop() == 1
    again = Loop(tmp_path / "run")
    again.ended = True
    assert again() == 1
    evaluated = [line["step"] for line in read_metrics(tmp_path / "run") if "eval/mask_iou" in line]
    assert evaluated == [0, 1]  # known already
    again.ended = False
    assert again() == 4


def test_the_observer_sees_every_logged_line(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", eval=RLEvalConfig(every=2))
    assert loop() == 4
    assert [step for step, _ in loop.observed] == [0, 1, 2, 2, 3, 4, 4]
    assert [{"step": step, **metrics} for step, metrics in loop.observed] == read_metrics(loop.run.path)


def test_an_evaluation_may_end_the_run(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", eval=RLEvalConfig(every=1))
    loop.evaluations[2] = {"eval/mask_iou": 0.1}
    loop.ends = lambda metrics: metrics.get("eval/mask_iou", 1.0) < 0.2
    assert loop() == 2
    assert loop.saved == [2]
    assert [line["step"] for line in read_metrics(loop.run.path) if "eval/mask_iou" in line] == [0, 1, 2]


def test_what_was_trained_before_the_judge_failed_is_kept(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    healthy = loop.tables[4]
    loop.tables[4] = scores(MASK_B, EDIT_B, torch.zeros(8, dtype=torch.bool))
    loop.tables[4]["part/edit_accuracy/missing_connection"] = torch.ones(8)
    with pytest.raises(RewardError, match=r"edit_accuracy: 100% of 8 .*\(connection: 8\)"):
        loop()
    assert loop.saved == [3]
    last = read_metrics(loop.run.path)[-1]
    assert last["step"] == 4
    assert last["reward_missing/edit_accuracy"] == 1.0
    assert last["reward_part/edit_accuracy/missing_connection"] == 1.0
    loop.tables[4] = healthy
    assert loop() == 4  # goes on from step 3
    steps = [line["step"] for line in read_metrics(loop.run.path) if "reward/mask_iou" in line]
    assert steps == [1, 2, 3, 4]


def test_the_shuffled_control_permutes_within_groups_only() -> None:
    group_B = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]).repeat_interleave(4)
    order_B = shuffle_within_groups(group_B, generator("test"))
    assert order_B.sort().values.tolist() == list(range(36))
    assert torch.equal(group_B[order_B], group_B)
    assert (order_B != torch.arange(36)).sum() > 20
    scattered_B = group_B[torch.randperm(36, generator=generator("other"))]  # members need not be adjacent
    assert torch.equal(scattered_B[shuffle_within_groups(scattered_B, generator("test"))], scattered_B)


def test_the_shuffled_control_keeps_each_group_s_advantages_and_deals_them_anew() -> None:
    table = scores(MASK_B, EDIT_B)
    shuffled = config(shuffle_rewards=True)
    (straight, _), _ = credited(config(), table, GROUP_B, 0, REACHES, PHASES)
    dealt = [credited(shuffled, table, GROUP_B, step, REACHES, PHASES)[0][0] for step in range(4)]
    for advantage_BK in dealt:
        for rows in (slice(0, 4), slice(4, 8)):
            torch.testing.assert_close(advantage_BK[rows].sort(0).values, straight[rows].sort(0).values)
    assert any(not torch.equal(dealt[0], other) for other in dealt[1:])
    again = credited(shuffled, table, GROUP_B, 2, REACHES, PHASES)[0][0]
    assert torch.equal(again, dealt[2])


def test_an_update_gets_no_images_but_the_global_denominator() -> None:
    chains = TensorDict({"images/x_cot": torch.zeros(8, 3), "position": GROUP_B}, batch_size=[8])
    kept_BK = torch.ones(8, 2, dtype=torch.bool)
    kept_BK[0] = False
    rows = advantage_rows(chains, (torch.zeros(8, 2), kept_BK))
    assert sorted(rows.keys()) == ["advantage", "kept", "num_kept", "position"]
    assert rows["num_kept"].tolist() == [14.0] * 8


def test_a_gap_between_rollout_and_replay_stops_the_run() -> None:
    fine = {"rollout/x_cot/logprob_gap": 1e-6, "rollout/x_edit/logprob_gap": 1e-6}
    check_gap(config(), fine, PHASES)
    with pytest.raises(RewardError, match=r"disagree in x_edit: .* 2\.00e-03"):
        check_gap(config(), fine | {"rollout/x_edit/logprob_gap": 2e-3}, PHASES)
    check_gap(config(max_logprob_gap=1e-2), fine | {"rollout/x_edit/logprob_gap": 2e-3}, PHASES)
