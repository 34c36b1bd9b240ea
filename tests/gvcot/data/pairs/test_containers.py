"""What is written is what is read, and what can't be read is named."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gvcot.data import scenes
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.containers import Folder, Raw
from gvcot.data.pairs.dataset import PairDataset
from gvcot.data.pairs.write import write
from gvcot.errors import ConfigError, DataError
from gvcot.types import EditSample, Region
from tests.gvcot.data.pairs.conftest import KINDS, NUM

Export = Callable[..., Path]


def opened(path: Path | str, **changes: Any) -> PairDataset:
    plain: dict[str, Any] = {"path": str(path), "max_bad_share": 1.0}
    return PairDataset(PairsConfig(**(plain | changes)), size=64, need_target=True)


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, EditSample | Region):
        names = [f.name for f in dataclasses.fields(a)]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_come_back_as_they_were(datasets: dict[str, Path], kind: str) -> None:
    dataset = opened(datasets[kind])
    assert len(dataset) == NUM
    for index in (*range(NUM), 3, 0):  # in order, and not
        sample = dataset.sample(index)
        assert sample is not None
        assert same(sample, scenes.generate(0, index)), sample.sample_id
    assert not dataset.bad


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_record_says_beyond_the_known_is_kept(tmp_path: Path, kind: str) -> None:
    plain = scenes.generate(0, 1)
    said = {"licence": "CC0", "score": 0.5, "boxes": [1, 2]}
    write(iter([dataclasses.replace(plain, metadata=said), plain]), tmp_path / kind, kind)
    first, second = (opened(tmp_path / kind).sample(i) for i in (0, 1))
    assert first is not None
    assert second is not None
    assert (first.metadata, second.metadata) == (said, {})


def test_the_least_that_a_record_needs(tmp_path: Path) -> None:
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[2:5, 3:9] = mask_HW[40:42, 40:60] = 1
    runs = np.diff(np.flatnonzero(np.diff(mask_HW.ravel(order="F"), prepend=2, append=2))).tolist()
    record = {
        "id": "photo",
        "source": "a.jpg",
        "instruction": " make it red ",
        "task": "color",
        "mask": {"size": [64, 64], "counts": runs},  # not compressed
    }
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "a.jpg")
    (tmp_path / "samples.jsonl").write_text("\n" + json.dumps(record) + "\n\n")
    dataset = PairDataset(PairsConfig(path=str(tmp_path)), size=64, need_target=False)
    assert len(dataset) == 1
    sample = dataset.sample(0)
    assert sample is not None
    assert (sample.mask_HW == mask_HW.astype(bool)).all()
    assert [part.box for part in sample.regions] == [(3, 2, 9, 5), (40, 40, 60, 42)]
    nothing = {"size": [64, 64], "counts": [64 * 64]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(record | {"regions": [nothing]}) + "\n")
    again = PairDataset(PairsConfig(path=str(tmp_path)), size=64, need_target=False).sample(0)
    assert again is not None
    assert [part.box for part in again.regions] == [part.box for part in sample.regions]
    assert (sample.instruction, sample.referral, sample.paint) == ("make it red", "unknown", "mask")
    assert sample.target_HW3 is None
    assert sample.change_mask_HW is None
    assert sample.source_HW3[30, 30].tolist() == pytest.approx([0, 0, 254], abs=2)


def test_images_of_hugging_face_columns_are_read(datasets: dict[str, Path], tmp_path: Path) -> None:
    table = pq.read_table(datasets["parquet"] / "000000.parquet")
    for name in ("source", "target"):
        wrapped = [{"bytes": data, "path": None} for data in table[name].to_pylist()]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(wrapped))
    pq.write_table(table, tmp_path / "one.parquet")
    sample = opened(tmp_path / "one.parquet").sample(2)
    assert sample is not None
    assert same(sample, scenes.generate(0, 2))


def edit_record(folder: Path, line: int, **changes: Any) -> str:
    """Change a record of a folder; its id."""
    path = folder / "samples.jsonl"
    records = [json.loads(text) for text in path.read_text().splitlines()]
    records[line] |= changes
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return records[line]["id"]


BROKEN = {
    "empty_instruction": {"instruction": "  "},
    "unknown_task": {"task": "colour"},
    "bad_mask": {"mask": {"size": [64, 64], "counts": "5"}},  # ends early
    "mask_size": {"mask": {"size": [32, 64], "counts": "X"}},
    "empty_mask": {"mask": {"size": [64, 64], "counts": [4096]}},
    "no_image": {"source": "../outside.png"},
    "no_target": {"target": None},
    "bad_field": {"referents": [99]},
    "bad_field ": {"referents": ["a"]},
    "bad_field  ": {"pointers": [["a"]]},
    "bad_field   ": {"paint": "brush"},
    "bad_field    ": {"instruction": "remove the \ud83d"},
    "bad_field     ": {"region_caption": "\ud83d"},
    "mask_size ": {"change_mask": {"size": 64, "counts": "X"}},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_record_is_left_out_and_named(export: Export, case: str) -> None:
    folder, kind = export(), case.strip()
    Image.new("RGB", (64, 64)).save(folder.parent / "outside.png")
    name = edit_record(folder, 2, **BROKEN[case])
    dataset = opened(folder)
    found = [dataset.sample(i) for i in range(len(dataset))]
    assert [i for i, sample in enumerate(found) if sample is None] == [2]
    (bad,) = dataset.bad.values()
    assert (bad.id, bad.kind) == (name, kind), bad


@pytest.mark.parametrize("runs", [[4095], [4097], [5, -5, 4096], "zzz", "", 7, None, ["a"]])
def test_runs_that_do_not_fill_the_mask_are_refused(export: Export, runs: Any) -> None:
    folder = export()
    edit_record(folder, 0, mask={"size": [64, 64], "counts": runs})
    dataset = opened(folder)
    assert dataset.sample(0) is None
    assert dataset.bad[0].kind == "bad_mask"


def test_files_that_are_damaged_cost_their_sample_alone(export: Export) -> None:
    folder = export()
    cut = folder / "images/000000/00000001.target.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "images/000000/00000003.source.png").unlink()
    (folder / "images/000000/00000000.source.png").write_bytes(b"no picture")
    lines = (folder / "samples.jsonl").read_text().splitlines()
    lines[4] = lines[4][:50]
    (folder / "samples.jsonl").write_text("\n".join(lines))
    dataset = opened(folder)
    good = [i for i in range(len(dataset)) if dataset.sample(i) is not None]
    assert good == [2, 5]
    kinds = {bad.id: bad.kind for bad in dataset.bad.values()}
    assert kinds == {
        "scenes/train/0/0": "undecodable_image",
        "scenes/train/0/1": "undecodable_image",
        "scenes/train/0/3": "no_image",
        "samples.jsonl:4": "bad_record",
    }


def test_a_shard_that_is_cut_off_costs_what_it_lost(export: Export) -> None:
    folder = export("webdataset", 8)
    first = folder / "000000.tar"
    with tarfile.open(first) as tar:
        second_source = tar.getmember("00000001.source.png").offset_data
    first.write_bytes(first.read_bytes()[: second_source + 100])
    dataset = opened(folder)
    good = [s.sample_id for i in range(len(dataset)) if (s := dataset.sample(i)) is not None]
    assert good == [f"scenes/train/0/{i}" for i in (0, 4, 5, 6, 7)]
    assert any("ends here" in bad.reason for bad in dataset.bad.values())
    assert "scenes/train/0/1" in {bad.id for bad in dataset.bad.values()}


def test_too_many_bad_samples_stop_the_run(export: Export) -> None:
    folder = export()
    name = edit_record(folder, 1, task="nonsense")
    dataset = opened(folder, max_bad_share=0.1)
    for index in range(5):
        dataset.sample(index)
    with pytest.raises(DataError, match=rf"1 of 6 samples are bad, .*unknown_task; such as {name}"):
        dataset.sample(5)
    enough = opened(folder, max_bad_share=0.2)
    assert [enough.sample(i) is None for i in range(6)] == [False, True, False, False, False, False]


def test_other_sizes_are_bad_unless_they_are_to_be_resized(tmp_path: Path) -> None:
    big = scenes.generate(0, 0, size=128)
    write(iter([big]), tmp_path / "big", "folder")
    strict = opened(tmp_path / "big")
    assert strict.sample(0) is None
    assert "resize=square" in strict.bad[0].reason
    sample = opened(tmp_path / "big", resize="square").sample(0)
    assert sample is not None
    assert sample.source_HW3.shape == (64, 64, 3)
    small = scenes.generate(0, 0)  # the same scene, drawn at 64 px
    overlap = (sample.mask_HW & small.mask_HW).sum() / (sample.mask_HW | small.mask_HW).sum()
    assert overlap > 0.8
    assert sample.target_HW3 is not None
    assert sample.change_mask_HW is not None
    changed_HW = (sample.source_HW3 != sample.target_HW3).any(-1)
    assert not (changed_HW & ~sample.change_mask_HW).any()  # still a superset


def test_crops_keep_shapes_and_lose_edges(tmp_path: Path) -> None:
    """Of pictures twice as wide as high: an edit in the middle, and one at an edge."""
    square = scenes.generate(0, 0)
    middle, edge = (np.zeros((64, 128), bool) for _ in range(2))
    middle[:, 32:96] = square.mask_HW
    edge[10:20, 2:12] = True
    source_HW3 = np.zeros((64, 128, 3), np.uint8)
    source_HW3[:, 32:96] = square.source_HW3
    wide = dataclasses.replace(
        square, source_HW3=source_HW3, target_HW3=source_HW3, change_mask_HW=None, things=(), referents=()
    )
    samples = [
        dataclasses.replace(wide, mask_HW=m, regions=(), sample_id=str(i))
        for i, m in enumerate((middle, edge))
    ]
    write(iter(samples), tmp_path / "wide", "folder")
    cropped = opened(tmp_path / "wide", resize="crop", max_bad_share=1.0)
    sample = cropped.sample(0)
    assert sample is not None
    assert (sample.source_HW3 == square.source_HW3).all()
    assert (sample.mask_HW == square.mask_HW).all()
    assert cropped.sample(1) is None
    assert "empty_mask" in str(cropped.bad[1])


def test_what_is_no_dataset_is_said_to_be_none(tmp_path: Path, datasets: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="no dataset at"):
        opened(tmp_path / "missing")
    with pytest.raises(DataError, match=r"expected samples.jsonl, \*.parquet or \*.tar"):
        opened(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="expected an uncompressed tar file"):
        opened(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot read"):
        opened(tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        opened(datasets["folder"], kind="foldr")
    with pytest.raises(DataError, match="isn't an empty folder"):
        write(iter([]), datasets["folder"], "folder")


class Reversed(Folder):
    """A container of one's own."""

    def read(self, index: int) -> Raw:
        return super().read(len(self) - 1 - index)


def test_a_container_of_one_s_own_is_named_by_its_class(datasets: dict[str, Path]) -> None:
    dataset = opened(datasets["folder"], kind=f"{__name__}:Reversed")
    sample = dataset.sample(0)
    assert sample is not None
    assert sample.sample_id == f"scenes/train/0/{NUM - 1}"


def test_a_picture_of_a_billion_pixels_is_not_decoded(export: Export) -> None:
    folder = export()
    (folder / "images/000000/00000000.source.png").write_bytes(b"P6 30000 30000 255\n")
    dataset = opened(folder)
    assert dataset.sample(0) is None
    assert "exceeds limit" in dataset.bad[0].reason
