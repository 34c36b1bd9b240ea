"""The window of stochastic steps."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvcot.errors import ConfigError
from rollout.window import draw_windows

PHASES = ("x_cot", "x_edit")


@given(
    num_steps=st.integers(2, 12),
    size=st.integers(1, 4),
    lo=st.integers(0, 6),
    hi=st.integers(0, 14),
    seed=st.integers(0, 1000),
    step=st.integers(0, 1000),
)
def test_every_window_lies_in_its_range_and_leaves_the_last_step_out(
    num_steps: int, size: int, lo: int, hi: int, seed: int, step: int
):
    if min(hi, num_steps - 1) - size < lo:
        with pytest.raises(ConfigError):
            draw_windows(seed, step, num_steps, size, lo, hi, PHASES)
        return
    for window in draw_windows(seed, step, num_steps, size, lo, hi, PHASES).values():
        assert window.size == size
        assert lo <= window.start
        assert window.start + size <= min(hi, num_steps - 1)


def test_windows_depend_on_seed_step_and_phase_alone():
    def draw(seed: int, step: int, phases: tuple[str, ...] = PHASES):
        return draw_windows(seed, step, 30, 2, 0, 28, phases)

    assert draw(1, 5) == draw(1, 5)
    assert draw(1, 5)["x_edit"] == draw(1, 5, ("x_edit",))["x_edit"]  # whatever other phases there are
    different = {(draw(s, k)["x_cot"].start) for s in range(3) for k in range(5)}
    assert len(different) > 5
    assert any(draw(1, k)["x_cot"] != draw(1, k)["x_edit"] for k in range(5))


def test_all_positions_are_drawn_about_equally_often():
    starts = Counter(draw_windows(0, k, 10, 2, 0, 5, ("x_cot",))["x_cot"].start for k in range(800))
    assert sorted(starts) == [0, 1, 2, 3]
    assert all(150 < n < 250 for n in starts.values())


def test_no_window_means_plain_sampling():
    assert all(w.size == 0 for w in draw_windows(0, 0, 10, 0, 0, 5, PHASES).values())


def test_an_impossible_window_says_what_to_change():
    with pytest.raises(ConfigError, match=r"3 stochastic steps .* \[0, 5\) of 3; .*Lower the window's size"):
        draw_windows(0, 0, 3, 3, 0, 5, PHASES)
