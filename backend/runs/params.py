"""Configs as rows that lists can be filtered by: one for each key, shared where all runs of an experiment agree.

A sweep of 10,000 runs varies a few keys; all others are the experiment's, so that a run adds a few rows, not a hundred.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, insert
from sqlalchemy.orm import Session

from backend.tables import Param

INSERTED = 1000  # rows in one statement
Leaf = tuple[float | None, str]


def leaves(config: dict[str, Any]) -> dict[str, Leaf]:
    """Number, if it is one, and text of every scalar of a config, by dotted key; items of lists by their index."""
    found: dict[str, Leaf] = {}
    stack: list[tuple[str, Any]] = list(config.items())
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{key}.{name}", item) for name, item in value.items()]
        elif isinstance(value, list):
            stack += [(f"{key}.{i}", item) for i, item in enumerate(value)]
        else:
            found[key] = leaf(value)
    return found


def leaf(value: str | float | bool | None) -> Leaf:
    """Number and text of a scalar; true, false and null are words."""
    if isinstance(value, str):
        return None, value
    if isinstance(value, bool) or value is None:
        return None, json.dumps(value)
    try:
        number = float(value)
    except OverflowError:  # an integer that is larger than any float
        return None, str(value)
    return (number if math.isfinite(number) else None), json.dumps(value)


def rows_of(
    experiment_id: str, configs: Iterable[tuple[str, dict[str, Any]]], *, whole: bool = True
) -> Iterator[dict[str, Any]]:
    """Rows for the runs of an experiment, given by id and config; `whole` says that these are all that it has."""
    flat = [(run_id, leaves(config)) for run_id, config in configs]
    if not flat:
        return
    first = flat[0][1]
    shared = {key: leaf for key, leaf in first.items() if whole and all(other.get(key) == leaf for _, other in flat)}
    for owner, found in ((None, shared), *flat):
        for key, (number, text) in found.items():
            if owner is None or key not in shared:
                yield {"experiment_id": experiment_id, "run_id": owner, "key": key, "number": number, "text": text}


def add_params(
    session: Session | Connection,
    experiment_id: str,
    configs: Sequence[tuple[str, dict[str, Any]]],
    *,
    whole: bool = True,
) -> None:
    """Store the configs of an experiment's runs; `whole` says that these are all that it has."""
    rows = list(rows_of(experiment_id, configs, whole=whole))
    for start in range(0, len(rows), INSERTED):
        session.execute(insert(Param), rows[start : start + INSERTED])
