"""The tasks, by name, with their share in GVCoT-Edit-Instruct.

A new task is a class with a `plan` and a row here.

Shares are the arc angles of the paper's donut chart (arXiv 2603.01893), in percent.
"""

from __future__ import annotations

from types import MappingProxyType

from gvcot.data.scenes.edit import Task
from gvcot.data.scenes.tasks.attribute import Color, Material, State, Style
from gvcot.data.scenes.tasks.combined import MultiAttributes, MultiSubjects
from gvcot.data.scenes.tasks.content import Background, Change, Extraction, Insertion, Removal
from gvcot.data.scenes.tasks.human import HumanAttribute, Motion, Pose
from gvcot.data.scenes.tasks.restore import Repair, Watermark
from gvcot.data.scenes.tasks.spatial import Movement, Size, Structure

_SHARES: tuple[tuple[Task, float], ...] = (
    (Insertion(), 8.7),
    (Removal(), 7.3),
    (Change(), 9.4),
    (Background(), 7.3),
    (Extraction(), 2.9),
    (HumanAttribute(), 9.4),
    (Color(), 6.8),
    (Material(), 6.5),
    (State(), 6.4),
    (Style(), 1.1),
    (Motion(), 5.1),
    (Pose(), 4.5),
    (Size(), 1.5),
    (Movement(), 3.6),
    (Structure(), 7.3),
    (Repair(), 3.9),
    (Watermark(), 2.3),
    (MultiAttributes(), 3.6),
    (MultiSubjects(), 2.2),
)

TASK_TABLE: MappingProxyType[str, Task] = MappingProxyType({task.name: task for task, _ in _SHARES})

SHARES: MappingProxyType[str, float] = MappingProxyType({task.name: share for task, share in _SHARES})
"""How often a task is drawn, relative to the others."""
