"""What the event of an evaluation says, as it is stored. It comes from a worker: only what is known is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from nanollama.api.schemas import ByPosition, Evaluation
from nanollama.spec.rundir import EventLine

MEANS = tuple(name for name in ByPosition.model_fields if name != "positions")
"""Quantities with their standard errors."""
EVALUATED, PROBE = "eval/", "probe/"
"""Prefixes of the metrics of an evaluation."""
assert set(MEANS) < set(Evaluation.model_fields)


def read_values(line: EventLine) -> dict[str, float | None]:
    """The metrics of an evaluation; of an unknown one, or where one is not finite, nothing and null."""
    known = {f"{EVALUATED}{name}" for name in MEANS}
    found = (line.values or {}).items()
    return {key: _finite(value) for key, value in found if key in known or key.startswith(PROBE)}


def read_by_position(line: EventLine) -> dict[str, Any] | None:
    """The curves of an evaluation. ValueError for columns of different lengths, or positions that are none."""
    if line.by_position is None:
        return None
    positions = line.by_position.get("positions", ())
    if any(value is None or not value.is_integer() or not 0 < value < 2**53 for value in positions):
        raise ValueError("by_position.positions holds something that is no position")
    columns = {name: _finites(line.by_position[name]) for name in MEANS if name in line.by_position}
    for name, values in columns.items():
        if len(values) != len(positions):
            raise ValueError(f"by_position.{name} has {len(values)} values at {len(positions)} positions")
    return {"positions": [int(value) for value in positions if value is not None], **columns}


def _finites(values: Iterable[float | None]) -> list[float | None]:
    return [_finite(value) for value in values]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
