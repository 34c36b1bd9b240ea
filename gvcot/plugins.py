"""The one registration mechanism: a part is named by its short name or as "package.module:Class".

A table of built-in parts is a plain dict, short name -> "module:Class", beside the parts it lists. It holds
strings, so listing names imports nothing; a part's module is imported when the part is resolved. A part of
your own needs no registration: write `my_package.my_module:MyReward`.
"""

from __future__ import annotations

import importlib
from typing import Any

from gvcot.errors import ConfigError, closest

TABLES: dict[str, str] = {
    "reward": "rewards.registry:REWARDS",
    "container": "gvcot.data.pairs.config:CONTAINERS",
}
"""Kind of part -> "module:TABLE", where its table is. These modules do not import torch."""


def names(kind: str) -> list[str]:
    """Short names of the parts of one kind."""
    return sorted(_table(kind))


def resolve(kind: str, name: str) -> Any:
    """The class or function that `name` stands for.

    Raises:
        ConfigError: the name is neither known nor an importable "package.module:Class".
    """
    table = _table(kind)
    if name in table:
        return _locate(kind, table[name])
    if ":" in name:
        return _locate(kind, name)
    raise ConfigError(
        f"unknown {kind} {name!r}: {closest(name, table)}; your own is named as 'package.module:Class'"
    )


def _table(kind: str) -> dict[str, str]:
    if kind not in TABLES:
        raise ConfigError(f"unknown kind of plugin {kind!r}: {closest(kind, TABLES)}")
    return _locate(f"table of {kind}s", TABLES[kind])


def _locate(kind: str, target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"cannot import {kind} {target!r}: {error}; is its package installed?") from error
    found = vars(module).get(attribute)
    if found is None:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(
            f"{kind} {target!r}: {module_name} has no {attribute!r}; {closest(attribute, public)}"
        )
    return found
