from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gvcot", "rl", "rewards", "rollout", "sft", "experiments")


@pytest.mark.parametrize("name", PACKAGES)
def test_our_packages_are_those_of_this_checkout(name: str) -> None:
    assert Path(importlib.import_module(name).__path__[0]).resolve() == ROOT / name


def test_imports_point_down() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_constraints_pin_what_the_project_requires_and_no_local_build() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name.lower().replace("_", "-") for name, _, _ in (line.partition("==") for line in lines)}
    assert not [line for line in lines if "+" in line or "@" in line or "/" in line]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [_name(requirement) for requirement in project["dependencies"]]
    assert [name for name in names if name not in pinned] == []


def _name(requirement: str) -> str:
    """`torch==2.13.*` -> `torch`."""
    end = next((i for i, char in enumerate(requirement) if char in "<>=~![ "), len(requirement))
    return requirement[:end].lower().replace("_", "-")
