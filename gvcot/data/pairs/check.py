"""Reading a whole dataset to say what is in it, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from rich.table import Table

from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.dataset import Bad, PairDataset
from gvcot.types import EditSample


@dataclass(kw_only=True, slots=True)
class Report:
    """What a dataset holds."""

    num_good: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    """Of the good samples' images, such as "512x512"."""

    has: Counter[str] = field(default_factory=Counter)
    """How many good samples have what is optional."""

    repeated: list[str] = field(default_factory=list)
    """Ids that a sample before has, too."""

    bad: list[Bad] = field(default_factory=list)

    def add(self, sample: EditSample) -> None:
        """Count a good sample."""
        height, width = sample.source_HW3.shape[:2]
        self.num_good += 1
        self.tasks[sample.task] += 1
        self.sizes[f"{width}x{height}"] += 1
        optional = {
            "target": sample.target_HW3 is not None,
            "change_mask": sample.change_mask_HW is not None,
            "several regions": len(sample.regions) > 1,
            "region_caption": bool(sample.region_caption),
            "things": bool(sample.things),
            "metadata": bool(sample.metadata),
        }
        self.has.update(name for name, given in optional.items() if given)


def check(config: PairsConfig, size: int | None = None) -> Report:
    """Read every sample.

    Args:
        config: which dataset; bad samples don't stop it, however many there are.
        size: pixels per side that a run takes; None: any size is good.

    Raises:
        DataError, ConfigError: no such dataset.
    """
    dataset = PairDataset(replace(config, max_bad_share=1.0), size=size, need_target=False)
    report, ids = Report(), set[str]()
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        if sample is not None:
            report.add(sample)
            if sample.sample_id in ids:
                report.repeated.append(sample.sample_id)
            ids.add(sample.sample_id)
    report.bad = list(dataset.bad.values())
    return report


def tables(report: Report, show: int) -> list[Table]:
    """Good samples by task, size and what they have; bad ones by kind, and the first `show` of them."""
    counts = Table("good samples", "number")
    counts.add_row("all", str(report.num_good))
    for name, counter in (("task", report.tasks), ("size", report.sizes), ("with", report.has)):
        counts.add_section()
        for value, num in counter.most_common():
            counts.add_row(f"{name} {value}", str(num))
    found = [counts]
    if report.bad:
        kinds = Table("bad samples", "number")
        kinds.add_row("all", str(len(report.bad)))
        for kind, num in Counter(bad.kind for bad in report.bad).most_common():
            kinds.add_row(kind, str(num))
        first = Table("bad sample", "kind", "reason")
        for bad in report.bad[:show]:
            first.add_row(*bad)
        found += [kinds, first]
    return found
