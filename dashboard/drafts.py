"""How a draft differs from what it began as."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanollama.spec.base import SpecError
from nanollama.spec.yaml_text import load_yaml

MAX_LINES = 2000  # of either text; beyond it no lines are marked


@dataclass(frozen=True)
class Change:
    """A key whose value is not what it was; `before` or `after` is None where the key is absent."""

    path: str
    before: str | None
    after: str | None


def changes(original: str, draft: str) -> list[Change] | None:
    """The keys in which two configs differ, in the order of the draft, then those that are gone.

    Returns:
        None when one of the texts is no YAML.
    """
    try:
        before, after = _flat(original), _flat(draft)
    except SpecError:
        return None
    paths = [*after, *(path for path in before if path not in after)]
    return [Change(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]


def changed_lines(original: str, draft: str) -> set[int]:
    """The lines of the draft, from 1, that are not in the original where they should be."""
    old, new = original.splitlines(), draft.splitlines()
    if old == new or max(len(old), len(new)) > MAX_LINES:
        return set()
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    lines: set[int] = set()
    for kind, _, _, start, end in matcher.get_opcodes():
        if kind != "equal":
            lines.update(range(start + 1, end + 1))
    return lines


def _flat(text: str) -> dict[str, str]:
    try:
        return dict(_leaves(load_yaml(text), ""))
    except RecursionError:
        return {}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}.{i}" if path else str(i))
    elif path:
        yield path, _said(value)


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
