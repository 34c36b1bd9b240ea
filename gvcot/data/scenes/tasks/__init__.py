"""The tasks, by name. A new task is a class with a `plan` and a row here."""

from __future__ import annotations

from types import MappingProxyType

from gvcot.data.scenes.edit import Task
from gvcot.data.scenes.tasks.attribute import Color
from gvcot.data.scenes.tasks.content import Insertion, Removal
from gvcot.data.scenes.tasks.spatial import Movement, Size

TASK_TABLE: MappingProxyType[str, Task] = MappingProxyType(
    {task.name: task for task in (Color(), Removal(), Insertion(), Size(), Movement())}
)
