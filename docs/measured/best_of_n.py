"""Measures what choosing by a judge does to the truth: the best of n edits under it, for growing n.

    gvcot judge serve learned
    python docs/measured/best_of_n.py http://127.0.0.1:8100/v1 learned-judge OUT.json [SCENES] [DRAWS]

The warm start draws DRAWS (32) chains of each of SCENES (128) val scenes. The curves are exact expectations
over which n of them were drawn (the estimator of arXiv 2112.09332, appendix I): of the judge's own score and
of the exact judge's for the edit that the judge likes best, and of the exact judge's for the one that it
would choose itself.

Legend: D draws, S scenes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from gvcot.chain import Chain
from gvcot.data import scenes
from gvcot.model.pretrained import WARM_START, find_model, load_pretrained
from gvcot.types import ChainConfig
from rewards.config import RewardConfig
from rewards.judge.scenes_server import running
from rewards.judge.serve_config import ScenesJudgeConfig
from rewards.registry import build_rewards
from rl import probes
from rl.scoring import provides


def chosen(proxy_DS: np.ndarray, value_DS: np.ndarray, n: int) -> np.ndarray:
    """(S,) expected value of the draw that has the best proxy among n of D, over all choices of n."""
    draws = len(proxy_DS)
    value_DS = np.take_along_axis(value_DS, proxy_DS.argsort(0, kind="stable"), 0)
    # the k-th in order is the best of n where the other n - 1 are among the k before it
    share = np.zeros(draws)
    share[n - 1] = 1.0
    for k in range(n, draws):
        share[k] = share[k - 1] * k / (k - n + 1)
    return (share / share.sum()) @ value_DS


def main(url: str, model: str, out: Path, num: int = 128, draws: int = 32) -> None:
    torch.set_num_threads(1)
    policy = load_pretrained(find_model(WARM_START))
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=policy.model.config.vit is not None)
    samples = scenes.samples("val", range(num))
    with running(ScenesJudgeConfig()) as exact_url:
        exact = {"base_url": exact_url, "model": "scenes-judge", "send_metadata": True}
        asked = {"judge": {"base_url": url, "model": model}, "exact": exact}
        rewards = build_rewards(
            {k: RewardConfig(type="vlm_judge", options={"endpoints": [e]}) for k, e in asked.items()},
            provides(chain, None),
        )
        for reward in rewards.values():
            reward.start()
        drawn = [
            probes.evaluate(policy, chain, rewards, samples, num_steps=4, shift=3.0, seed=seed, probes=())
            for seed in range(draws)
        ]
    judge_DS, exact_DS = (np.stack([one.values[k].numpy() for one in drawn]) for k in ("judge", "exact"))
    seen_S = ~np.isnan(judge_DS + exact_DS).any(0)
    judge_DS, exact_DS = judge_DS[:, seen_S], exact_DS[:, seen_S]
    curves = []
    for n in [2**k for k in range(draws.bit_length()) if 2**k <= draws]:
        curve = {
            "judge": chosen(judge_DS, judge_DS, n),
            "exact": chosen(judge_DS, exact_DS, n),
            "exact, chosen by itself": chosen(exact_DS, exact_DS, n),
        }
        gain_S = curve["exact"] - exact_DS.mean(0)
        curves.append(
            {"n": n}
            | {name: round(float(value_S.mean()), 4) for name, value_S in curve.items()}
            | {"standard error of the exact gain": round(float(gain_S.std(ddof=1) / len(gain_S) ** 0.5), 4)}
        )
        print(json.dumps(curves[-1]))
    out.write_text(json.dumps({"scenes": int(seen_S.sum()), "draws": draws, "curves": curves}, indent=1))


if __name__ == "__main__":
    _, url, model, out, *sizes = sys.argv
    main(url, model, Path(out), *map(int, sizes))
