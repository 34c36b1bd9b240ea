from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli
from experiments.doctor import check_package, run_checks
from rewards.registry import REWARDS


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(list(argv))
    out, err = capsys.readouterr()
    return int(exit_info.value.code or 0), out, err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("quickstart", "sft", "rl", "eval", "edit", "data", "rewards", "report", "doctor"):
        assert command in out


@pytest.mark.parametrize("command", ["quickstart", "sft", "rl", "eval", "edit", "data", "rewards", "report"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(capsys, command, "--help")[0] == 0


def test_help_imports_neither_torch_nor_verl() -> None:
    code = (
        "import sys\nfrom experiments import cli\n"
        "try: cli.main(['rl', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'verl' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_a_user_error_is_one_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, "report", str(tmp_path))
    assert code == 2
    assert "not a run" in err
    assert "Traceback" not in err


def test_an_unknown_reward_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "rewards", "describe", "mask_iuo")
    assert code == 2
    assert "did you mean 'mask_iou'" in err


def test_rewards_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert "mask_iou" in run(capsys, "rewards", "list")[1]
    said = run(capsys, "rewards", "describe", "mask_iou")[1]
    assert "Intersection over union" in said
    assert "Needs mask, x_cot. Reaches x_cot" in said
    for name in REWARDS:
        assert "Reaches x_" in run(capsys, "rewards", "describe", name)[1]
    said = run(capsys, "rewards", "describe", "vlm_judge")[1]
    assert "max_attempts: int = 4" in said
    assert "Reaches x_edit" in said


def test_a_reward_is_tried_on_scenes_and_on_a_dataset(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, policy_folder: Path
) -> None:
    out, pairs, model = tmp_path / "new" / "reward.png", tmp_path / "pairs", str(policy_folder)
    tried = ("rewards", "try", "mask_iou", "--count", "2", "--checkpoint", model, "--out", str(out))
    code, said, _ = run(capsys, *tried, "--behaviour", "truth", "--behaviour", "paint_nothing")
    assert code == 0
    assert "paint_nothing" in said
    assert "model" not in said
    assert out.read_bytes().startswith(b"\x89PNG")
    assert run(capsys, "data", "export-scenes", str(pairs), "--num", "2", "level=easy")[0] == 0
    code, said, _ = run(capsys, *tried, "--data", str(pairs), "--size", "32")
    assert code == 0
    assert "model" in said
    assert "truth" in said
    code, _, err = run(capsys, *tried, "--data", str(tmp_path / "none"))
    assert code == 2
    assert "none" in err


def test_a_reward_is_started_before_it_is_tried(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "to_start.py").write_text(
        "from rewards.base import Reward, result\n"
        "class Opened(Reward):\n"
        "    name, requires, reaches = 'opened', frozenset({'x_edit'}), 'x_edit'\n"
        "    def start(self): self.connection = 1.0\n"
        "    def score(self, batch): return result(batch.image('x_edit').mean((1, 2, 3)) * self.connection)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model, out = str(policy_folder), str(tmp_path / "out.png")
    tried = ("rewards", "try", "to_start:Opened", "--count", "1", "--checkpoint", model, "--out", out)
    assert run(capsys, *tried, "--behaviour", "truth")[0] == 0
    own = "rewards.own.type=to_start:Opened"
    assert run(capsys, "rewards", "hacks", "tiny", f"model={model}", own, "--count", "1")[0] == 0


def test_planted_hacks_are_tabled(
    capsys: pytest.CaptureFixture[str], policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    hacks = ("rewards", "hacks", "tiny", f"model={policy_folder}", "--count", "4")
    code, said, _ = run(capsys, *hacks)
    assert code == 0
    for word in ("mask_iou", "weighted mean", "paint_everything", "paint_grows"):
        assert word in said


def test_scenes_are_drawn_into_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "scenes.png"
    assert run(capsys, "data", "show", "--count", "2", "--out", str(out))[0] == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_scenes_are_exported_and_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    exported = run(
        capsys, "data", "export-scenes", str(out), "--format", "parquet", "--num", "3", "level=easy"
    )
    assert exported[0] == 0
    code, said, _ = run(capsys, "data", "check", str(out))
    assert code == 0
    assert "64x64" in said
    assert "bad sample" not in said
    bad = tmp_path / "bad.jsonl"
    code, said, _ = run(capsys, "data", "check", str(out), "--size", "32", "--out", str(bad))
    assert code == 1  # none is good for such a run
    assert "image_size" in said
    assert [json.loads(line)["kind"] for line in bad.read_text().splitlines()] == ["image_size"] * 3
    assert run(capsys, "data", "check", str(out), "resize=square", "--size", "32")[0] == 0
    code, _, err = run(capsys, "data", "export-scenes", str(out))
    assert code == 2
    assert "isn't an empty folder" in err


def test_short_names_are_looked_up_in_the_command_s_group() -> None:
    assert cli._named("rl", "tiny") == "rl/tiny"
    assert cli._named("rl", "rl/tiny") == "rl/tiny"
    assert cli._named("rl", "mine/run.yaml") == "mine/run.yaml"


def test_the_doctor_notices_a_missing_package() -> None:
    assert all(check.ok for check in run_checks() if check.name.startswith("package"))
    missing = check_package("no_such_package")
    assert not missing.ok
    assert "pip install" in missing.remedy
