"""Paths in a config that mean something only in the folder where it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA_PATHS = ("data.path", "evaluation.data.path")


def absolute_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config in today's shape with the paths of its data, in the grid too, made absolute from this folder."""
    return {key: _absolute(value, "" if key == "grid" else key) for key, value in data.items()}


def _absolute(value: Any, path: str) -> Any:
    if path in DATA_PATHS:
        items = value if isinstance(value, list) else [value]
        made = [str(Path(item).absolute()) if isinstance(item, str) else item for item in items]
        return made if isinstance(value, list) else made[0]
    if isinstance(value, Mapping):
        place = "" if path == "zip" else path
        return {key: _absolute(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list) and path == "zip":
        return [_absolute(item, "") for item in value]
    return value
