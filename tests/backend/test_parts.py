"""Small parts on their own: ids, text, times, settings, the notifier."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.columns import Words, clean_text, dump_json
from backend.ids import ALPHABET, new_id
from backend.notifier import Notifier
from backend.settings import Settings, SettingsError, is_loopback, load_settings, parse_database_url


def test_ids_ascend_whatever_the_clock_does_and_never_repeat() -> None:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: [new_id("r", now - timedelta(days=i)) for _ in range(500)], range(4)))
    for ids in parts:
        assert ids == sorted(ids)
    everything = [i for ids in parts for i in ids]
    assert len(set(everything)) == len(everything)
    assert {len(i) for i in everything} == {15}
    assert set("".join(i[1:] for i in everything)) <= set(ALPHABET)


def test_ids_of_later_times_are_greater() -> None:
    base = datetime(2090, 1, 1, tzinfo=timezone.utc)
    ids = [new_id("r", base + timedelta(milliseconds=i)) for i in range(0, 50, 5)]
    assert ids == sorted(ids)


@given(st.text())
def test_cleaned_text_can_be_stored_and_sent(text: str) -> None:
    cleaned = clean_text(text + "\ud800\x00")
    assert "\x00" not in cleaned
    cleaned.encode()


def test_words_are_clipped() -> None:
    column = Words(5)
    assert [column.process_bind_param(value, None) for value in ("12345", "123456", None)] == ["12345", "1234…", None]  # type: ignore[arg-type]


def test_json_columns_hold_non_finite_numbers_as_words() -> None:
    assert dump_json({"a": [math.nan, math.inf, -math.inf, 1.5], 2: "\ud800"}) == (
        '{"a":["NaN","Infinity","-Infinity",1.5],"2":"?"}'
    )


def test_arguments_win_over_the_environment() -> None:
    found = load_settings({"N2N_PORT": "1", "N2N_HOST": "::1", "N2N_DATABASE_URL": ""}, port=2, host=None)
    assert (found.port, found.host, found.database_url) == (2, "::1", Settings().database_url)
    with pytest.raises(SettingsError, match=r"\$N2N_PORT: .*found x"):
        load_settings({"N2N_PORT": "x"})


@pytest.mark.parametrize("url", ["postgres://u@h/d", "postgresql://u@h/d", "postgresql+psycopg://u@h/d"])
def test_postgres_urls_get_our_driver(url: str) -> None:
    assert parse_database_url(url).drivername == "postgresql+psycopg"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true", "x", ""])
def test_urls_that_cannot_work(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///path"):
        parse_database_url(url)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("[::1]", True),
        ("::", False),
        ("", False),
        ("a", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_change_between_looking_and_waiting_is_not_missed() -> None:
    async def scenario() -> None:
        notifier = Notifier()
        seen = notifier.version
        notifier.notify()
        await asyncio.wait_for(notifier.wait(seen, 60), 30)  # returns at once
        seen = notifier.version
        waiting = asyncio.gather(*(notifier.wait(seen, 60) for _ in range(5)))
        await asyncio.sleep(0)
        assert notifier.waiting == 5
        await asyncio.to_thread(notifier.notify)
        await asyncio.wait_for(waiting, 30)
        assert notifier.waiting == 0
        await notifier.wait(notifier.version, 0.001)  # or the time is up
        notifier.close()
        await asyncio.wait_for(notifier.wait(notifier.version, 60), 30)

    asyncio.run(scenario())
