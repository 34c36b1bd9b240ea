"""Mistakes that implementations of BAGEL have made, or nearly: each turns a golden test red.

Each is written into a copy of the package, which is then held to the official numbers in another process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mistake:
    """One line of the model, and what it could have been."""

    file: str
    right: str
    wrong: str


MISTAKES = {
    "the ViT's patches are cut channels first": Mistake(
        "siglip.py", "blocks.permute(0, 2, 4, 3, 5, 1)", "blocks.permute(0, 2, 4, 1, 3, 5)"
    ),
    "latent patches are cut channels first": Mistake(
        "flow.py", "blocks.permute(0, 2, 4, 3, 5, 1)", "blocks.permute(0, 2, 4, 1, 3, 5)"
    ),
    "a noisy image moves what follows": Mistake(
        "layout.py", 'return 0 if shape.kind == "noise" else 1', "return 1"
    ),
    "a dropped reasoning image leaves no gap": Mistake(
        "layout.py",
        "            position += _advance(shape)",
        "            position += 0 if shape.drop else _advance(shape)",
    ),
    "noise is seen by what follows": Mistake(
        "attention.py", "return reached & (own | ~noise_BL[:, None, :])", "return reached"
    ),
    "the ViT lacks its last norm": Mistake(
        "siglip.py",
        "return self.post_layernorm(self.encoder(self.embeddings(pixels_I3HW, rows_N)))",
        "return self.encoder(self.embeddings(pixels_I3HW, rows_N))",
    ),
    "GELU is exact": Mistake("siglip.py", 'approximate="tanh"', 'approximate="none"'),
    "guidance is renormalised over the batch": Mistake(
        "flow.py",
        "_shrink(v_full, guided, (-2, -1), renorm_min)",
        "_shrink(v_full, guided, (-3, -2, -1), renorm_min)",
    ),
    "time is scaled to 1000": Mistake("embeddings.py", "t_S.float()[:, None]", "1000 * t_S.float()[:, None]"),
    "position tables have rows first": Mistake(
        "embeddings.py", "torch.cat([columns, rows], dim=2)", "torch.cat([rows, columns], dim=2)"
    ),
    "the generation expert uses the other's query norm": Mistake(
        "mot.py", "self.q_norm_moe_gen(heads(", "self.q_norm(heads("
    ),
    "boundaries of latents go to the generation expert's norm": Mistake(
        "mot.py", "self.input_layernorm(x_U), self.input", "self.input_layernorm_moe_gen(x_U), self.input"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_deliberate_mistake_turns_a_golden_test_red(name: str, tmp_path: Path) -> None:
    copy_model(tmp_path)
    mistake = MISTAKES[name]
    path = tmp_path / "gvcot" / "model" / mistake.file
    code = path.read_text()
    assert code.count(mistake.right) == 1, "the line has changed; name it anew"
    path.write_text(code.replace(mistake.right, mistake.wrong))
    found = golden_tests(tmp_path)
    assert found.returncode == 1, found.stdout[-2000:]
    assert "FAILED" in found.stdout


@pytest.mark.slow
def test_a_copy_without_a_mistake_stays_green(tmp_path: Path) -> None:
    copy_model(tmp_path)
    found = golden_tests(tmp_path)
    assert found.returncode == 0, found.stdout[-2000:]


def copy_model(folder: Path) -> None:
    """The core package with its golden tests and numbers."""
    unneeded = shutil.ignore_patterns("assets", "__pycache__")
    for part in ("gvcot", "tests/gvcot/model", "tests/data/bagel_tiny"):
        shutil.copytree(ROOT / part, folder / part, ignore=unneeded)


def golden_tests(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run them until one fails."""
    env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    tests = [f"tests/gvcot/model/{file}" for file in ("test_golden.py", "test_config.py", "test_flow.py")]
    call = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True, check=False)
