from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import pytest

from dashboard import wording
from nanollama.api.status import AttemptState, RunState

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def test_every_state_has_a_glyph_and_a_tone() -> None:
    assert set(wording.STATES) == set(RunState) | set(AttemptState)
    assert len({glyph for glyph, _ in wording.STATES.values()}) == len(wording.STATES)


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (1.91838, "1.9184"), (-0.5, "−0.5000"), (math.nan, "NaN"), (-math.inf, "−∞")]
)
def test_numbers(value: float | None, said: str) -> None:
    assert wording.number(value) == said


def test_excess_is_told_in_thousandths() -> None:
    assert wording.mnat(0.01284) == "12.8"
    assert wording.mnat(None) == "–"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (1234, "1.23k"),
        (999_900, "1M"),
        (2.5e9, "2.5B"),
        (3e12, "3T"),
        (0.5, "0.5"),
    ],
)
def test_counts(value: float | None, said: str) -> None:
    assert wording.si(value) == said


@pytest.mark.parametrize(("value", "said"), [(0, "0 B"), (1_234_567, "1.23 MB"), (999_999, "1 MB"), (5e15, "5e+03 TB")])
def test_sizes(value: int, said: str) -> None:
    assert wording.size(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (math.inf, "–"),
        (-3, "0 s"),
        (59, "59 s"),
        (61, "1 min 01 s"),
        (3700, "1 h 01 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float | None, said: str) -> None:
    assert wording.duration(seconds) == said


@pytest.mark.parametrize(
    ("past", "said"),
    [(3, "just now"), (-9, "just now"), (42, "42 s ago"), (130, "2 min ago"), (7300, "2 h ago"), (1e6, "11 d ago")],
)
def test_ago(past: float, said: str) -> None:
    at = NOW - timedelta(seconds=past)
    assert wording.ago(at, NOW) == said
    assert wording.ago(at.replace(tzinfo=None), NOW) == said
