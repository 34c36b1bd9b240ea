"""Recipes: a YAML file plus dotted overrides becomes one frozen, fully checked dataclass.

    config = load(RLConfig, "rl/tiny", ["group_size=8", "rewards.mask_iou.weight=0.5"])

A recipe may start with `extends: <recipe>`: the base is read first, then this file on top of it, then the
overrides. Everything wrong with a value is a ConfigError that names the full dotted key, the value, the
expected type and the closest known key. This module does not import torch.

Decoding is ours because the config libraries we tried let through what a recipe must not contain: `null` for
a number, a list for a string (as its repr), `true` for an integer, a string for a tuple (as its letters).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gvcot.errors import ConfigError, closest

RECIPES = Path(__file__).resolve().parents[1] / "experiments" / "recipes"
"""Where recipes named `<group>/<name>` live, as `<group>/<name>.yaml`."""

T = TypeVar("T")


def load(cls: type[T], recipe: str | Path, overrides: Sequence[str] = ()) -> T:
    """Reads a recipe, applies overrides and decodes the result.

    Args:
        cls: the frozen dataclass to build.
        recipe: `<group>/<name>` of a shipped recipe, or the path of a YAML file.
        overrides: `dotted.key=value` each; the value is YAML. `key=null` on an entry of a table of parts
            (such as `rewards.judge=null`) removes the entry.

    Raises:
        ConfigError: unknown recipe or key, a missing required key, or a value of the wrong type.
    """
    merged = OmegaConf.merge(_read_chain(find_recipe(recipe)), _parse_overrides(overrides))
    try:
        raw = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"cannot resolve the recipe {recipe!s}: {error}") from error
    return decode(cls, raw)


def parse(cls: type[T], overrides: Sequence[str]) -> T:
    """Builds `cls` from `dotted.key=value` settings alone. Raises ConfigError as `load` does."""
    return decode(cls, OmegaConf.to_container(_parse_overrides(overrides)))


def load_dump(cls: type[T], path: Path) -> T:
    """Reads back what `dump` wrote, literally: no `extends`, no interpolation."""
    return decode(cls, yaml.safe_load(path.read_text()))


def decode(cls: type[T], raw: Any) -> T:
    """Builds `cls` from plain dicts, lists and scalars. Raises ConfigError as `load` does."""
    return _decode(cls, raw, "")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars; `decode` reads it back."""
    return _plain(dataclasses.asdict(config))


def dump(config: Any) -> str:
    """The config as YAML, every default written out."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=110)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}, "c": [{"d": 2}]} -> {"a.b": 1, "c.0.d": 2}. Lists of plain values and empty dicts stay
    whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


BASE = "base.yaml"
"""A file of this name holds what the recipes beside it share, and is not a whole run."""


def recipe_keys(recipe: str | Path) -> set[str]:
    """The top-level settings that a recipe names. Raises ConfigError as `load` does."""
    return {str(key) for key in _read_chain(find_recipe(recipe))}


def recipe_names(group: str | None = None) -> list[str]:
    """Names of the shipped recipes, as `<group>/<name>`; a name may go through further folders."""
    paths = [path.relative_to(RECIPES) for path in RECIPES.rglob("*.yaml") if path.name != BASE]
    return sorted(str(p.with_suffix("")) for p in paths if group is None or p.parts[0] == group)


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by name or path. Raises ConfigError listing the known ones."""
    if Path(recipe).suffix in (".yaml", ".yml"):
        if Path(recipe).is_file():
            return Path(recipe)
        raise ConfigError(
            f"no recipe file {str(recipe)!r}; give an existing YAML file or a shipped recipe's name"
        )
    path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        group = str(recipe).partition("/")[0]
        raise ConfigError(
            f"unknown recipe {str(recipe)!r}: {closest(str(recipe), recipe_names(group) or recipe_names())}"
        )
    return path


def _read_chain(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    """The YAML file merged over the recipe it extends, and so on down the chain."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(
            f"recipes extend each other in a circle: {' -> '.join(p.name for p in (*seen, path))}"
        )
    try:
        node = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(
            f"{path.name} must hold a table of settings at its top, got a {type(node).__name__}"
        )
    base = node.pop("extends", None)
    if base is None:
        return node
    sibling = path.parent / f"{base}.yaml"
    base_path = sibling if sibling.is_file() else find_recipe(base)
    return typing.cast(DictConfig, OmegaConf.merge(_read_chain(base_path, (*seen, path)), node))


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        key, sign, _ = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"override {override!r} is not of the form dotted.key=value")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot read the overrides {list(overrides)}: {error}") from error


def _decode(cls: Any, raw: Any, key: str) -> Any:
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if cls is Any:
        return raw
    if dataclasses.is_dataclass(cls):
        return _decode_dataclass(typing.cast(type, cls), raw, key)
    if origin in (Union, types.UnionType):
        return _decode_union(args, raw, key)
    if origin is Literal:
        if not any(raw == arg and type(raw) is type(arg) for arg in args):
            raise ConfigError(f"{key}: unknown value {raw!r}; {closest(str(raw), map(str, args))}")
        return raw
    if cls is dict or origin is dict:
        return _decode_dict(args[1] if args else Any, raw, key)
    if origin in (tuple, list) or cls in (tuple, list):
        return _decode_sequence(origin or cls, args, raw, key)
    return _decode_scalar(cls, raw, key)


def _decode_dataclass(cls: type, raw: Any, key: str) -> Any:
    if not isinstance(raw, dict):
        raise _type_error(key, raw, f"a table of settings ({cls.__name__})")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    for name in raw:
        if name not in fields:
            raise ConfigError(
                f"unknown key {_join(key, name)!r} (value {raw[name]!r}): {closest(str(name), fields)}"
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise ConfigError(
                f"missing required key {_join(key, name)!r} (expected {_name(hints[name])}): "
                f"set it in the recipe or add {_join(key, name)}=... to the command"
            )
    values = {name: _decode(hints[name], value, _join(key, name)) for name, value in raw.items()}
    try:
        return cls(**values)
    except ValueError as error:  # a cross-field check of __post_init__
        raise ConfigError(f"{key}: {error}" if key else str(error)) from error


def _decode_union(options: tuple[Any, ...], raw: Any, key: str) -> Any:
    if raw is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _decode(options[0], raw, key)
    errors: list[str] = []
    for option in options:
        try:
            return _decode(option, raw, key)
        except ConfigError as error:
            errors.append(f"  as {_name(option)}: {error}")
    raise ConfigError("\n".join([f"{key}: {raw!r} fits none of the accepted types:", *errors]))


def _decode_dict(value_type: Any, raw: Any, key: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise _type_error(key, raw, "a table")
    if dataclasses.is_dataclass(value_type):  # a table of parts: null takes an inherited part out
        raw = {name: value for name, value in raw.items() if value is not None}
    return {str(name): _decode(value_type, value, _join(key, name)) for name, value in raw.items()}


def _decode_sequence(kind: type, args: tuple[Any, ...], raw: Any, key: str) -> Any:
    if not isinstance(raw, list | tuple):
        raise _type_error(key, raw, "a list, such as [1, 2]")
    fixed = kind is tuple and bool(args) and args[-1] is not Ellipsis
    if fixed and len(raw) != len(args):
        raise _type_error(key, raw, f"a list of {len(args)} values")
    item_types = args if fixed else [args[0] if args else Any] * len(raw)
    return kind(
        _decode(t, value, f"{key}[{i}]") for i, (t, value) in enumerate(zip(item_types, raw, strict=True))
    )


def _decode_scalar(cls: Any, raw: Any, key: str) -> Any:
    is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
    if cls is float and is_number:
        return float(raw)
    if cls is int and is_number and isinstance(raw, int):
        return raw
    if cls is Path and isinstance(raw, str):
        return Path(raw)
    if cls in (bool, str) and isinstance(raw, cls):
        return raw
    raise _type_error(key, raw, _name(cls))


def _type_error(key: str, raw: Any, expected: str) -> ConfigError:
    got = "null" if raw is None else f"{raw!r} ({type(raw).__name__})"
    return ConfigError(f"{key or 'the recipe'}: expected {expected}, got {got}")


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _name(cls: Any) -> str:
    return (
        cls.__name__
        if isinstance(cls, type) and not typing.get_args(cls)
        else str(cls).replace("typing.", "")
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
