"""The streams that an attempt may have: the append-only files of the run directory."""

from __future__ import annotations

import re

from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import Problem
from nanollama.spec.rundir import EVENTS, LOGS, METRICS, STDOUT

RANK0_LOG = f"{LOGS}/rank0.log"

_RANK = r"rank(0|[1-9]\d{0,4})"
_METRICS = re.compile(rf"{METRICS}/{_RANK}\.jsonl")
_LOG = re.compile(rf"{LOGS}/{_RANK}\.log")


def check_name(name: str) -> None:
    """Refuse names that the run directory does not have. Raises InvalidRequest."""
    if name != EVENTS and metrics_rank(name) is None and not is_text(name):
        message = f"'{name[:100]}' is not a stream"
        remedy = f"use {METRICS}/rank<k>.jsonl, {EVENTS}, {LOGS}/rank<k>.log or {STDOUT}"
        raise InvalidRequest(message, [Problem(path="name", message=message, remedy=remedy)])


def is_text(name: str) -> bool:
    """Whether the stream is a log, for people."""
    return name == STDOUT or _LOG.fullmatch(name) is not None


def metrics_rank(name: str) -> int | None:
    """The rank whose metric lines the stream holds; None for other streams."""
    match = _METRICS.fullmatch(name)
    return int(match.group(1)) if match else None
