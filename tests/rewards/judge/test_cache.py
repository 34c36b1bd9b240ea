"""Scores are kept once, found again, and shared by processes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gvcot.errors import ConfigError
from rewards.judge.cache import ScoreCache, cache_key


def test_a_score_is_found_again_by_a_later_run(tmp_path: Path):
    path = tmp_path / "new" / "scores.sqlite"
    cache = ScoreCache(path)
    assert cache.get(["a"]) is None
    cache.put("a", 0.1 + 0.2)
    cache.close()
    later = ScoreCache(path)
    assert later.get(["missing", "a"]) == 0.1 + 0.2
    assert (later.hits, later.misses) == (1, 0)
    assert (cache.hits, cache.misses) == (0, 1)
    later.close()


def test_the_first_of_several_keys_wins_and_scores_stay(tmp_path: Path):
    cache = ScoreCache(tmp_path / "scores.sqlite")
    cache.put("a", 1.0)
    cache.put("b", 2.0)
    cache.put("b", 3.0)
    assert cache.get(["b", "a"]) == 2.0
    cache.close()


def test_a_file_that_cannot_be_used_for_the_moment_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("rewards.judge.cache.BUSY_S", 0.01)
    cache = ScoreCache(tmp_path / "scores.sqlite")
    cache.put("a", 1.0)
    other = sqlite3.connect(tmp_path / "scores.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # another process writes, and does not end
    cache.put("b", 2.0)
    cache.put("c", 3.0)
    assert cache.get(["a"]) == 1.0
    assert cache.get(["b"]) is None
    other.execute("COMMIT")
    cache.put("b", 2.0)
    assert cache.get(["b"]) == 2.0
    assert [record.message for record in caplog.records] == [
        "the judge's cache can't be used: database is locked; scores are asked for again"
    ]
    other.close()
    cache.close()


def test_a_damaged_page_costs_its_scores_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "scores.sqlite"
    cache = ScoreCache(path)
    for i in range(500):
        cache.put(f"key {i:04}", float(i))
    cache.close()
    with path.open("r+b") as file:
        file.seek(4096)  # the first page says what is in the file
        file.write(b"\xff" * (path.stat().st_size - 4096))
    damaged = ScoreCache(path)
    assert damaged.get(["key 0007"]) is None
    damaged.put("key 0007", 7.0)
    damaged.close()
    (warning,) = caplog.messages
    assert warning.startswith("the judge's cache can't be used: database disk image is malformed")


def test_without_a_path_scores_are_kept_in_memory_alone():
    cache, other = ScoreCache(None), ScoreCache(None)
    cache.put("a", 1.0)
    assert cache.get(["a"]) == 1.0
    assert other.get(["a"]) is None


def test_all_that_can_change_an_answer_is_in_its_key():
    asked = {"images": (b"before", b"after"), "model": "m", "prompt": "p", "temperature": 0.0, "call": 0}
    others = [
        {"images": (b"after", b"before")},
        {"images": (b"before", b"other")},
        {"model": "n"},
        {"prompt": "q"},
        {"temperature": 0.7},
        {"call": 1},
    ]
    keys = {cache_key(**(asked | other)) for other in [{}, *others]}
    assert len(keys) == 1 + len(others)
    assert cache_key(**asked) in keys


WRITER = """
import sys
from pathlib import Path
from rewards.judge.cache import ScoreCache
cache = ScoreCache(Path(sys.argv[1]))
for i in range(200):
    cache.put(f"{sys.argv[2]}/{i}", float(i))
    cache.put(f"shared/{i}", float(i))
cache.close()
"""


def test_processes_write_to_one_file_at_once(tmp_path: Path):
    path = tmp_path / "scores.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stderr=subprocess.PIPE, text=True)
        for name in ("x", "y", "z")
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    cache = ScoreCache(path)
    for name in ("x", "y", "z", "shared"):
        assert [cache.get([f"{name}/{i}"]) for i in range(200)] == [float(i) for i in range(200)]
    cache.close()


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "scores.sqlite"
    path.write_text("these are no scores, and there are many of them " * 50)
    with pytest.raises(ConfigError, match="scores.sqlite.*file of its own"):
        ScoreCache(path)
