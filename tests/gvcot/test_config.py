from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvcot import config
from gvcot.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    weight: float = 1.0
    type: str = "mask_iou"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    size: int = 2
    style: Literal["sde", "cps"] = "sde"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    steps: int
    window: Window = field(default_factory=Window)
    rewards: dict[str, Part] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    box: tuple[int, int] = (1, 2)
    checkpoint: Path | None = None
    kl: float | Literal["off"] = 0.0
    shuffle: bool = False

    def __post_init__(self) -> None:
        if self.steps < self.window.size:
            raise ValueError(f"steps must be at least window.size, got {self.steps} < {self.window.size}")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_a_recipe_and_overrides_become_the_dataclass(tmp_path: Path) -> None:
    recipe = write(tmp_path, "tiny", "steps: 10\nrewards:\n  iou: {weight: 0.5}\n")
    run = config.load(
        Run, recipe, ["window.style=cps", "rewards.iou.weight=1e-3", "tasks=[color,remove]", "checkpoint=a/b"]
    )
    assert run == Run(
        steps=10,
        window=Window(style="cps"),
        rewards={"iou": Part(weight=0.001)},
        tasks=("color", "remove"),
        checkpoint=Path("a/b"),
    )


def test_extends_is_merged_first_and_chains(tmp_path: Path) -> None:
    write(tmp_path, "base", "steps: 10\nshuffle: true\nwindow: {size: 3}\n")
    write(tmp_path, "middle", "extends: base\nsteps: 20\n")
    top = write(tmp_path, "top", "extends: middle\nwindow: {style: cps}\n")
    assert config.load(Run, top) == Run(steps=20, shuffle=True, window=Window(size=3, style="cps"))


def test_recipes_extending_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "extends: b\n")
    with pytest.raises(ConfigError, match=r"circle: b.yaml -> a.yaml -> b.yaml"):
        config.load(Run, write(tmp_path, "b", "extends: a\n"))


def test_null_takes_an_inherited_part_out(tmp_path: Path) -> None:
    recipe = write(tmp_path, "r", "steps: 5\nrewards: {iou: {}, judge: {weight: 2}}\n")
    assert set(config.load(Run, recipe, ["rewards.judge=null"]).rewards) == {"iou"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("step=3", r"unknown key 'step' \(value 3\): did you mean 'steps'\?"),
        ("window.sise=3", r"unknown key 'window.sise' \(value 3\): did you mean 'size'\?"),
        ("rewards.iou.wheight=3", r"unknown key 'rewards.iou.wheight'.*did you mean 'weight'"),
        ("steps=ten", r"steps: expected int, got 'ten' \(str\)"),
        ("steps=true", r"steps: expected int, got True \(bool\)"),
        ("steps=1.5", r"steps: expected int, got 1.5 \(float\)"),
        ("steps=null", r"steps: expected int, got null"),
        ("shuffle=1", r"shuffle: expected bool, got 1 \(int\)"),
        ("tasks=color", r"tasks: expected a list.*got 'color' \(str\)"),
        ("tasks=[1]", r"tasks\[0\]: expected str, got 1 \(int\)"),
        ("box=[1,2,3]", r"box: expected a list of 2 values"),
        ("window=3", r"window: expected a table of settings \(Window\), got 3 \(int\)"),
        ("window.style=csp", r"window.style: unknown value 'csp'; did you mean 'cps'"),
        ("kl=on_", r"kl: 'on_' fits none of the accepted types"),
        ("window.size=99", r"steps must be at least window.size, got 5 < 99"),
        ("steps", r"override 'steps' is not of the form dotted.key=value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, override: str, message: str) -> None:
    recipe = write(tmp_path, "r", "steps: 5\nrewards: {iou: {}}\n")
    with pytest.raises(ConfigError, match=message):
        config.load(Run, recipe, [override])


def test_a_missing_required_key_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing required key 'steps' \(expected int\).*steps=\.\.\."):
        config.load(Run, write(tmp_path, "r", "shuffle: true\n"))


def test_an_unknown_recipe_and_a_missing_file_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'rl/no-such'"):
        config.load(Run, "rl/no-such")
    with pytest.raises(ConfigError, match="no recipe file"):
        config.load(Run, tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(Run, write(tmp_path, "broken", "a: [1\n"))


@given(
    steps=st.integers(2, 10**6),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    names=st.lists(st.sampled_from(["a", "true", "1e3", "x: y", "${z}", "ü", "null"]), max_size=3),
    args=st.dictionaries(st.text("abc", min_size=1), st.integers() | st.none() | st.booleans(), max_size=2),
)
def test_dump_and_load_give_the_same_run(
    tmp_path_factory: pytest.TempPathFactory,
    steps: int,
    weight: float,
    names: list[str],
    args: dict[str, Any],
) -> None:
    run = Run(steps=steps, rewards={"r": Part(weight=weight, args=args)}, tasks=tuple(names), kl="off")
    path = write(tmp_path_factory.mktemp("dump"), "config", config.dump(run))
    assert config.load_dump(Run, path) == run


def test_flatten_joins_keys_with_dots() -> None:
    assert config.flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert config.flatten({"e": [{"u": 1}, {"v": [2]}]}) == {"e.0.u": 1, "e.1.v": [2]}


def test_configs_are_read_without_torch() -> None:
    modules = "gvcot.config, gvcot.plugins, gvcot.run_dir, gvcot.tracking, experiments.cli"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
