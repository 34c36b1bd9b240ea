from __future__ import annotations

import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from gvcot import seeds

PARTS = st.lists(st.integers() | st.text(max_size=4), min_size=1, max_size=4)


def test_the_same_parts_give_the_same_seed_in_every_process() -> None:
    code = "from gvcot import seeds; print(seeds.derive(1, 'window', 7))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == seeds.derive(1, "window", 7) == 6076258293531565877


@given(PARTS, PARTS)
def test_other_parts_give_another_seed_that_torch_accepts(a: list[int | str], b: list[int | str]) -> None:
    assert 0 <= seeds.derive(*a) < 2**63
    assert (seeds.derive(*a) == seeds.derive(*b)) == (a == b)


def test_text_and_number_are_told_apart() -> None:
    assert len({seeds.derive(1, 2), seeds.derive("1", 2), seeds.derive(12), seeds.derive("1, 2")}) == 4


def test_noise_of_a_row_does_not_depend_on_the_other_rows() -> None:
    row_seeds = [seeds.derive("noise", i) for i in range(6)]
    whole = seeds.noise_BND(row_seeds, (5, 64))
    halves = [seeds.noise_BND(row_seeds[:3], (5, 64)), seeds.noise_BND(row_seeds[3:], (5, 64))]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole[0], whole[1])
    assert seeds.noise_BND([], (5, 64)).shape == (0, 5, 64)


def test_generators_of_equal_parts_draw_the_same() -> None:
    a, b, c = seeds.generator("x", 1), seeds.generator("x", 1), seeds.generator("x", 2)
    first = torch.rand(4, generator=a)
    assert torch.equal(first, torch.rand(4, generator=b))
    assert not torch.equal(first, torch.rand(4, generator=c))
