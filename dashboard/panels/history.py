"""What happened to a run: its events, and its attempts with where and by what they were executed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from dashboard.components.page import section
from dashboard.components.table import Cell, Column, Row, table
from dashboard.wording import DASH, STATES, clock, duration, plural, seconds_between
from nanollama.api.schemas import Attempt, Event

MAX_ROWS, HEIGHT = 200, 220

EVENT_COLUMNS = (
    Column("at", "at (UTC)", minor=True),
    Column("attempt", "attempt", "number", minor=True),
    Column("what", "what"),
    Column("step", "step", "number"),
    Column("message", "message", "wrap"),
)
ATTEMPT_COLUMNS = (
    Column("number", "attempt", "number"),
    Column("state", "state"),
    Column("started", "started", minor=True),
    Column("lasted", "lasted", "number", minor=True),
    Column("exit", "exit code", "number", minor=True),
    Column("host", "host"),
    Column("commit", "commit", "mono", help="of the code; + where it had uncommitted changes"),
    Column("versions", "versions", minor=True, help="of Python, the project and torch"),
    Column("reason", "reason", "wrap"),
    Column("folder", "folder", "mono clip", minor=True, help="on the worker's file system"),
)


def events(run_id: str, found: Sequence[Event]) -> None:
    """Events, the newest first."""
    shown = found[-MAX_ROWS:]
    cut = f"newest {MAX_ROWS} of {len(found):,}" if len(shown) < len(found) else ""
    section("Events", cut or plural(len(shown), "event"))
    if shown:
        rows = [_event(e) for e in reversed(shown)]
        table(EVENT_COLUMNS, rows, label="Events, newest first", key=f"events-{run_id}", height=HEIGHT)


def attempts(run_id: str, found: Sequence[Attempt], now: datetime) -> None:
    """Attempts, the newest first."""
    section("Attempts", "each with where it ran, and with which code")
    if found:
        rows = [_attempt(a, now) for a in reversed(found[-MAX_ROWS:])]
        table(ATTEMPT_COLUMNS, rows, label="Attempts, newest first", key=f"attempts-{run_id}", height=HEIGHT)


def _event(e: Event) -> Row:
    what = e.kind.replace("_", " ")
    if e.to_state:
        what = " → ".join(state.lower() for state in (e.from_state, e.to_state) if state)
    cells = {
        "at": Cell(f"{e.at:%H:%M:%S}", title=clock(e.at)),
        "attempt": Cell(DASH if e.attempt is None else str(e.attempt)),
        "what": Cell(what),
        "step": Cell("" if e.step is None else f"{e.step:,}"),
        "message": Cell((e.message or "")[:2000]),
    }
    return Row(str(e.id), cells)


def _attempt(a: Attempt, now: datetime) -> Row:
    glyph, tone = STATES[a.state]
    seen: dict[str, Any] = a.provenance or {}
    packages = seen.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    versions = [("Python", seen.get("python")), ("nodes-to-narratives", seen.get("version")), ("torch", torch)]
    commit = str(seen.get("git_sha") or "")
    changed = "+" if seen.get("git_diff_sha256") else ""
    everything = "\n".join(f"{key}: {value}" for key, value in seen.items() if not isinstance(value, (dict, list)))
    cells = {
        "number": Cell(str(a.number)),
        "state": Cell(a.state.value.lower(), glyph=glyph, tone=tone),
        "started": Cell("" if a.started_at is None else f"{a.started_at:%m-%d %H:%M:%S}", title=_when(a.started_at)),
        "lasted": Cell(duration(seconds_between(a.started_at, a.finished_at or now)) if a.started_at else ""),
        "exit": Cell("" if a.exit_code is None else str(a.exit_code)),
        "host": Cell(str(seen.get("host") or "")[:100], title=everything[:2000]),
        "commit": Cell(commit[:12] + changed, title=commit + (" with uncommitted changes" if changed else "")),
        "versions": Cell(", ".join(f"{name} {str(value)[:40]}" for name, value in versions if value)),
        "reason": Cell((a.reason or "")[:2000]),
        "folder": Cell(
            f"…/{'/'.join(a.attempt_dir.split('/')[-2:])}" if a.attempt_dir else "", title=a.attempt_dir or ""
        ),
    }
    return Row(a.id, cells)


def _when(at: datetime | None) -> str:
    return "" if at is None else clock(at)
