"""Metric lines as columns, and back to the very bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json

from backend.columns import BIGINT_MAX, clean_text
from backend.metrics.codec import Array
from backend.streams.lines import LAST_SECOND, MAX_LINE, Parsed, check_numbers, check_time, parse_each
from nanollama.spec.rundir import RESERVED_METRIC_KEYS, MetricLine, decode_number, encode_line

MAX_METRICS = 1000
MAX_KEY = 200
COUNTERS = ("seq", "step", "tokens")
_EXPONENT = re.compile(rb":(-?(?:0\.0000\d+|\d(?:\.\d+)?e[-+]?\d+))")

Record = dict[str, Any]


@dataclass
class Lines:
    """Metric lines as columns.

    A column holds the values of the lines that have its key, int64 or float64; the reserved keys are on every line.

    Attributes:
        layouts: the different sequences of keys that lines have.
        layout: [lines] the layout of each.
        columns: values by key.
        text: the bytes; None when `encode_line` writes the same from the columns.
    """

    layouts: list[tuple[str, ...]] = field(default_factory=list)
    layout: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: dict[str, Array] = field(default_factory=dict)
    text: bytes | None = None

    def __len__(self) -> int:
        return len(self.layout)

    @property
    def keys(self) -> list[str]:
        """The metrics, reserved keys left out."""
        return [key for key in self.columns if key not in RESERVED_METRIC_KEYS]

    def places(self, key: str) -> Array | slice:
        """Which lines have the key."""
        having = [key in layout for layout in self.layouts]
        return slice(None) if all(having) else np.flatnonzero(np.array(having, bool)[self.layout])

    def with_columns(self, columns: dict[str, Array]) -> Lines:
        """The same lines with other metrics, beside the reserved keys."""
        reserved = {key: self.columns[key] for key in RESERVED_METRIC_KEYS if key in self.columns}
        return Lines(self.layouts, self.layout, reserved | columns, self.text)

    def render(self) -> bytes:
        """The bytes that the lines were parsed from."""
        if self.text is not None:
            return self.text
        columns = {key: iter(column.tolist()) for key, column in self.columns.items()}
        records = ({key: next(columns[key]) for key in self.layouts[kind]} for kind in self.layout.tolist())
        return b"".join(map(encode_line, records))


def parse_metrics(data: bytes, offset: int) -> tuple[Lines, Parsed[Record]]:
    """Metric lines of a piece of a stream that starts at byte `offset` and ends with a whole line.

    Returns:
        The lines, and what was wrong with those that are none.
    """
    records = _records_at_once(data)
    found = _columns_of(records) if records is not None else None
    if records is not None and found is not None:
        lines, exact = found
        lines.text = None if exact and _is_written_by_us(records, data) else data
        return lines, Parsed()
    parsed = parse_each(data, offset, record_of)
    found = _columns_of([record for _, record in parsed.records])
    assert found is not None, "each line was checked"
    found[0].text = data
    return found[0], parsed


def _columns_of(records: Sequence[Record]) -> tuple[Lines, bool] | None:
    """Columns of decoded lines, and whether they hold all that was there; None where one of them is no metric line."""
    layouts: dict[tuple[str, ...], int] = {}
    kinds = [layouts.setdefault(tuple(record), len(layouts)) for record in records]
    if not all(map(_is_layout, layouts)):
        return None
    lists: dict[str, list[Any]]
    if len(layouts) == 1:
        lists = {key: [record[key] for record in records] for key in records[0]}
    else:
        lists = {key: [] for layout in layouts for key in layout}
        for record in records:
            for key, value in record.items():
                lists[key].append(value)
    columns, exact = {}, True
    for key, values in lists.items():
        column = _column(values)
        if column is None:
            return None
        columns[key] = column[0]
        exact = exact and column[1]
    if records and not _in_range(columns):
        return None
    return Lines(list(layouts), np.array(kinds, np.int64), columns), exact


def _column(values: list[Any]) -> tuple[Array, bool] | None:
    """Decoded numbers as an array, and whether it tells them apart as the text does; None if one is no number."""
    types = set(map(type, values))
    try:
        if types == {float}:
            return np.array(values, np.float64), True
        if types == {int}:
            fits = min(values) >= -BIGINT_MAX - 1 and max(values) <= BIGINT_MAX
            return (np.array(values, np.int64), True) if fits else (np.array([float(v) for v in values]), False)
        return np.array([decode_number(value) for value in values], np.float64), int not in types
    except (ValueError, OverflowError):
        return None


def _is_layout(keys: tuple[str, ...]) -> bool:
    metrics = len(keys) - len(RESERVED_METRIC_KEYS)
    return (
        metrics <= MAX_METRICS
        and all(key in keys for key in RESERVED_METRIC_KEYS)
        and all(len(key) <= MAX_KEY and clean_text(key) == key for key in keys)
    )


def _in_range(columns: dict[str, Array]) -> bool:
    time = columns["time"]
    counters = all(columns[key].dtype == np.int64 and columns[key].min() >= 0 for key in COUNTERS)
    return bool(counters and time.min() >= 0 and time.max() <= LAST_SECOND)  # false where one is NaN


def join(pieces: Sequence[Lines]) -> Lines:
    """Lines one after the other."""
    layouts: dict[tuple[str, ...], int] = {}
    kinds = []
    for piece in pieces:
        numbers = [layouts.setdefault(layout, len(layouts)) for layout in piece.layouts]
        kinds.append(np.array(numbers, np.int64)[piece.layout])
    parts: dict[str, list[Array]] = {}
    for piece in pieces:
        for key, column in piece.columns.items():
            parts.setdefault(key, []).append(column)
    mixed = any(len({column.dtype for column in columns}) > 1 for columns in parts.values())  # 1 and 1.0 differ in text
    same_text = not mixed and all(piece.text is None for piece in pieces)
    text = None if same_text else b"".join(piece.render() for piece in pieces)
    columns = {key: np.concatenate(columns) for key, columns in parts.items()}
    return Lines(list(layouts), np.concatenate(kinds) if kinds else np.zeros(0, np.int64), columns, text)


def _records_at_once(data: bytes) -> list[Record] | None:
    """Every line decoded in one call; None unless each is sure to be one flat object.

    Without brackets, with one brace that opens, at the start of each line, one that closes at its end, and strings that
    hold no line feed, an object can neither span lines nor share one.
    """
    count = data.count(b"\n")
    if not data.startswith(b"{") or not data.endswith(b"}\n") or b"[" in data or b"]" in data:
        return None
    if data.count(b"{") != count or data.count(b"}\n{") != count - 1:
        return None
    if len(data) > MAX_LINE and max(map(len, data.split(b"\n"))) > MAX_LINE:
        return None
    try:
        records: list[Record] = from_json(b"[" + data[:-1].replace(b"\n", b"\n,") + b"]")
    except ValueError:
        return None
    return records


def _is_written_by_us(records: list[Record], data: bytes) -> bool:
    """Whether `encode_line` writes the same bytes: the columns are enough then.

    The fast encoder agrees with it but for the notation of small and large numbers.
    """
    if encode_line(records[0]) != data[: data.index(b"\n") + 1]:
        return False
    text = to_json(records)[1:-1].replace(b"},{", b"}\n{") + b"\n"
    if text == data or _EXPONENT.sub(lambda found: b":" + repr(float(found[1])).encode(), text) == data:
        return True
    return b"".join(map(encode_line, records)) == data


def record_of(text: bytes) -> Record:
    """One line, however it is written. ValueError says what is wrong with it."""
    if len(text) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE:,} bytes")
    line = MetricLine.model_validate_json(text, strict=True)
    check_numbers(line.seq, line.step, line.tokens)
    check_time(line.time)
    values = {clean_text(key): value for key, value in line.values.items()}
    if len(values) > MAX_METRICS or any(len(key) > MAX_KEY for key in values):
        raise ValueError(f"more than {MAX_METRICS} metrics, or a name of more than {MAX_KEY} characters")
    return {"seq": line.seq, "step": line.step, "tokens": line.tokens, "time": line.time} | values
