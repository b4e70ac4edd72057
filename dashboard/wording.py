"""How numbers, times and states are said: one way for the whole page."""

from __future__ import annotations

import math
from datetime import datetime, timezone

from nanollama.api.status import AttemptState, RunState

DASH = "–"

STATES: dict[str, tuple[str, str]] = {
    RunState.QUEUED: ("◷", "warn"),
    RunState.LEASED: ("◔", "warn"),
    RunState.SUBMITTED: ("◑", "warn"),
    RunState.RUNNING: ("●", "accent"),
    RunState.SUCCEEDED: ("✓", "good"),
    RunState.FAILED: ("✕", "bad"),
    RunState.CANCELLED: ("■", "muted"),
    AttemptState.INTERRUPTED: ("↻", "warn"),
    AttemptState.VOID: ("○", "muted"),
}
"""Glyph and tone of each state; its word is its name in lower case."""

STATE_HELP = {
    RunState.QUEUED: "waits for a worker",
    RunState.LEASED: "a worker has taken it and is about to start it",
    RunState.SUBMITTED: "handed to the cluster's scheduler",
}
"""What the less obvious states mean."""


def number(value: float | None, digits: int = 4) -> str:
    """A value with a fixed number of decimals; words for what is not finite, a dash for what is absent."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")


def mnat(value: float | None) -> str:
    """An excess in thousandths of a nat per token."""
    return number(None if value is None else value * 1e3, 1)


def si(value: float | None) -> str:
    """A count with three digits and k, M, B or T: 1234567 is 1.23M."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return number(value)
    if abs(value) >= 1e15:
        return f"{value:.2e}"
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 0.9995:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}" if value != int(value) else f"{int(value)}"


def size(num_bytes: int) -> str:
    """A file size in decimal units."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float | None) -> str:
    """A span of time with its two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


def ago(at: datetime, now: datetime) -> str:
    """How long ago something was, in one unit."""
    seconds = (_aware(now) - _aware(at)).total_seconds()
    if seconds < 10:
        return "just now"
    for span, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= span:
            return f"{int(seconds // span)} {unit} ago"
    return f"{int(seconds)} s ago"


def clock(at: datetime) -> str:
    """A moment, to the second, in UTC."""
    return _aware(at).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def seconds_between(start: datetime | None, end: datetime) -> float | None:
    """Seconds from start to end; None without a start."""
    return None if start is None else (_aware(end) - _aware(start)).total_seconds()


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)
