"""How a judge's scores agree with the exact ones of Scenes: a learned one's, or any server's.

Legend: N edits. Scores are from 0 to 10; columns are SC and PQ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
from rich.table import Table
from scipy import stats

from experiments.learned_judge.data import DRAWN, Pairs
from gvcot.errors import RewardError
from rewards.judge.client import Verdict, open_judge
from rewards.judge.config import JudgeConfig
from rewards.judge.prompts import Edit, case_of

GOOD = 5.0
"""Least score of a good edit."""

MEASURES = ("num", "spearman", "pearson", "mae", "auc")


def agreement(judged_N: np.ndarray, true_N: np.ndarray) -> dict[str, float]:
    """Agreement of two lists of scores; NaN where all scores of one are equal, or all edits good or bad.

    Args:
        judged_N, true_N: scores from 0 to 10.

    Returns:
        num: edits; spearman, pearson: correlations, of ranks and of scores; mae: mean absolute difference;
        auc: how often a good edit (truth at least `GOOD`) is judged better than a bad one, a tie counts half.
    """
    spearman = pearson = auc = float("nan")
    if np.ptp(judged_N) > 0 and np.ptp(true_N) > 0:
        spearman = float(stats.spearmanr(judged_N, true_N)[0])  # pyright: ignore
        pearson = float(stats.pearsonr(judged_N, true_N)[0])  # pyright: ignore
    good_N = true_N >= GOOD
    pairs = int(good_N.sum() * (~good_N).sum())
    if pairs:
        won = stats.mannwhitneyu(judged_N[good_N], judged_N[~good_N]).statistic
        auc = float(won) / pairs
    mae = float(np.abs(judged_N - true_N).mean())
    return {"num": len(true_N), "spearman": spearman, "pearson": pearson, "mae": mae, "auc": auc}


def compare(judged_N2: np.ndarray, true_N2: np.ndarray, kind_N: np.ndarray) -> dict[str, dict[str, float]]:
    """Agreement on SC, PQ and the reward 10 sqrt(SC PQ) / 10, over all edits and over the drawn ones.

    Edits without a score (NaN) are left out.

    Returns:
        "sc", "drawn/sc" and so on -> measures as `agreement` names them.
    """
    judged_N2, true_N2 = (with_overall(scores) for scores in (judged_N2, true_N2))
    answered_N = np.isfinite(judged_N2).all(axis=1)
    found = {}
    for prefix, of_N in (("", answered_N), ("drawn/", answered_N & (kind_N == DRAWN))):
        if of_N.any():
            for name, judged_N, true_N in zip(("sc", "pq", "overall"), judged_N2.T, true_N2.T, strict=True):
                found[prefix + name] = agreement(judged_N[of_N], true_N[of_N])
    return found


def with_overall(scores_N2: np.ndarray) -> np.ndarray:
    """SC, PQ and their geometric mean, (N, 3)."""
    return np.concatenate([scores_N2, np.sqrt(scores_N2.prod(axis=1, keepdims=True))], axis=1)


def means_by_kind(
    judged_N2: np.ndarray, true_N2: np.ndarray, kind_N: np.ndarray
) -> dict[str, dict[str, float]]:
    """What edits of each kind are worth, and what the judge takes them for: where it can be fooled."""
    columns = np.concatenate([true_N2, judged_N2], axis=1)
    names = ("sc", "pq", "judged_sc", "judged_pq")
    means = {str(kind): np.nanmean(columns[kind_N == kind], axis=0) for kind in np.unique(kind_N)}
    return {kind: dict(zip(names, map(float, row), strict=True)) for kind, row in means.items()}


def as_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """For the terminal."""
    columns = list(next(iter(rows.values())))
    table = Table("", *columns)
    for name, row in rows.items():
        table.add_row(name, *(str(row[c]) if c == "num" else f"{row[c]:.3f}" for c in columns))
    return table


def served_scores(config: JudgeConfig, truth: Pairs) -> np.ndarray:
    """What a server's judge says of edits, float64 (N, 2), NaN where it has no answer.

    Raises:
        ConfigError, RewardError: it can't be asked.
    """
    cases = [case_of(_edit(truth, number), config) for number in range(len(truth))]

    async def ask() -> list[Verdict]:
        judge = await open_judge(config)
        try:
            return await asyncio.gather(*(judge.judge(case) for case in cases))
        finally:
            await judge.close()

    verdicts = asyncio.run(ask())
    nothing = float("nan")
    scores = [[v.scores.get("sc", nothing), v.scores.get("pq", nothing)] for v in verdicts]
    if not np.isfinite(scores).any():
        raise RewardError(f"the judge answered nothing; the last failure: {verdicts[-1].missing}")
    return np.array(scores)


def _edit(truth: Pairs, number: int) -> Edit:
    scene = truth.scene_N[number]
    return Edit(
        sample_id=truth.sample_ids[scene],
        task="",
        instruction=truth.instructions[scene],
        before_HW3=truth.before_SHW3[scene],
        after_HW3=truth.after_NHW3[number],
        mask_HW=truth.mask_SHW[scene],
    )
