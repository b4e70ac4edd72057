from __future__ import annotations

import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nanollama.api.errors import InvalidRequest, OffsetMismatch, Unavailable
from worker import shipping
from worker.shipping import Shipper

LINES = st.lists(st.binary(max_size=40), min_size=1, max_size=4).map(b"".join)


class Streams:
    """The service's side: bytes by stream, taken only at an offset within the length; and its faults."""

    def __init__(self) -> None:
        self.stored: dict[str, bytearray] = {}
        self.away = False
        self.lose_reply = False

    def put(self, name: str, offset: int, data: bytes) -> int:
        if self.away:
            raise Unavailable("away")
        stream = self.stored.setdefault(name, bytearray())
        if offset > len(stream):
            raise OffsetMismatch("beyond the end", expected_offset=len(stream))
        stream += data[len(stream) - offset :]
        if self.lose_reply:
            self.lose_reply = False
            raise Unavailable("the reply was lost")
        return len(stream)


class ShippingMachine(RuleBasedStateMachine):
    """Any interleaving of writes, rounds, outages, lost replies and restarts, with batches of a few bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.directory = Path(self._folder.name)
        (self.directory / "metrics").mkdir()
        self.service = Streams()
        self._batch, shipping.BATCH_BYTES = shipping.BATCH_BYTES, 64
        self.restart()

    def teardown(self) -> None:
        try:
            self.check_drained()
        finally:
            shipping.BATCH_BYTES = self._batch
            self._folder.cleanup()

    def check_drained(self) -> None:
        self.service.away = self.service.lose_reply = False
        while not self.shipper.ship(final=True):
            pass
        for name in ("stdout.log", "metrics/rank0.jsonl"):
            content = self.content(name)
            if name.endswith("jsonl"):
                content = content[: content.rfind(b"\n") + 1]
            assert self.service.stored.get(name, b"") == content

    def content(self, name: str) -> bytes:
        path = self.directory / name
        return path.read_bytes() if path.exists() else b""

    @rule(data=LINES)
    def write_log(self, data: bytes) -> None:
        with open(self.directory / "stdout.log", "ab") as file:
            file.write(data)

    @rule(data=st.text("{}:a1", max_size=30), end=st.booleans())
    def write_metrics(self, data: str, end: bool) -> None:
        torn = len(self.content("metrics/rank0.jsonl")) - self.content("metrics/rank0.jsonl").rfind(b"\n")
        with open(self.directory / "metrics/rank0.jsonl", "ab") as file:
            file.write(data.encode() + b"\n" * (end or torn + len(data) > 30))

    @rule()
    def round(self) -> None:
        with suppress(Unavailable):
            self.shipper.ship()

    @rule()
    def restart(self) -> None:
        self.shipper = Shipper(self.directory, self.service.put)

    @rule()
    def toggle_outage(self) -> None:
        self.service.away = not self.service.away

    @rule()
    def lose_next_reply(self) -> None:
        self.service.lose_reply = True

    @invariant()
    def stored_is_a_prefix(self) -> None:
        for name, stored in self.service.stored.items():
            assert self.content(name).startswith(bytes(stored))


TestShipping = ShippingMachine.TestCase
TestShipping.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)


def test_finds_the_streams_of_the_run_directory(tmp_path: Path) -> None:
    for name in ("metrics/rank0.jsonl", "logs/rank0.log", "logs/rank1.log", "stdout.log", "events.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"a\n")
    (tmp_path / "config.yaml").write_text("x: 1\n")
    service = Streams()
    assert Shipper(tmp_path, service.put).ship()
    assert sorted(service.stored) == [
        "events.jsonl",
        "logs/rank0.log",
        "logs/rank1.log",
        "metrics/rank0.jsonl",
        "stdout.log",
    ]


def test_ships_whole_lines_until_the_end(tmp_path: Path) -> None:
    service = Streams()
    shipper = Shipper(tmp_path, service.put)
    (tmp_path / "stdout.log").write_bytes(b"one\ntw")
    assert shipper.ship()
    assert service.stored["stdout.log"] == b"one\n"
    assert shipper.ship(final=True)
    assert service.stored["stdout.log"] == b"one\ntw"


def test_drops_a_torn_record_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Streams()
    (tmp_path / "events.jsonl").write_bytes(b'{"a":1}\n{"b"')
    assert Shipper(tmp_path, service.put).ship(final=True)
    assert service.stored["events.jsonl"] == b'{"a":1}\n'
    assert "4 bytes without an end, was dropped" in caplog.text


def test_a_log_without_line_ends_is_shipped_all_the_same(tmp_path: Path) -> None:
    service = Streams()
    shipper = Shipper(tmp_path, service.put)
    (tmp_path / "stdout.log").write_bytes(b"\xff" * (shipping.BATCH_BYTES + 10))
    assert shipper.ship()
    assert len(service.stored["stdout.log"]) == shipping.BATCH_BYTES


def test_goes_back_to_where_the_service_is(tmp_path: Path) -> None:
    service = Streams()
    shipper = Shipper(tmp_path, service.put)
    (tmp_path / "stdout.log").write_bytes(b"one\ntwo\n")
    shipper.ship()
    service.stored["stdout.log"] = bytearray(b"one\n")  # restored from an older copy
    with open(tmp_path / "stdout.log", "ab") as file:
        file.write(b"three\n")
    assert shipper.ship()
    assert service.stored["stdout.log"] == b"one\ntwo\nthree\n"


def test_a_shrunk_file_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Streams()
    shipper = Shipper(tmp_path, service.put)
    (tmp_path / "stdout.log").write_bytes(b"first life\n")
    shipper.ship()
    (tmp_path / "stdout.log").write_bytes(b"second\n")
    assert shipper.ship(final=True)
    assert service.stored["stdout.log"] == b"first life\n"
    assert "shrunk to 7 bytes" in caplog.text


def test_one_refused_stream_does_not_hold_up_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Streams()

    def put(name: str, offset: int, data: bytes) -> int:
        if name == "events.jsonl":
            raise InvalidRequest("line 1 is no event")
        return service.put(name, offset, data)

    (tmp_path / "events.jsonl").write_bytes(b"nonsense\n")
    (tmp_path / "stdout.log").write_bytes(b"hello\n")
    assert Shipper(tmp_path, put).ship(final=True)
    assert service.stored == {"stdout.log": b"hello\n"}
    assert "line 1 is no event" in caplog.text


def test_a_service_that_takes_no_more_ends_the_stream(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "stdout.log").write_bytes(b"x" * 10 + b"\n")
    assert Shipper(tmp_path, lambda _name, _offset, _data: 0).ship(final=True)
    assert "takes no more than 0 bytes" in caplog.text


def test_memory_is_flat_whatever_the_backlog(tmp_path: Path) -> None:
    with open(tmp_path / "stdout.log", "wb") as file:
        for _ in range(40):
            file.write(b"x" * 1023 + b"\n" + b"y" * (shipping.BATCH_BYTES - 1025) + b"\n")
    shipper = Shipper(tmp_path, lambda _name, offset, data: offset + len(data))
    tracemalloc.start()
    try:
        rounds = 0
        while not shipper.ship(final=True):
            rounds += 1
        assert tracemalloc.get_traced_memory()[1] < 4 * shipping.BATCH_BYTES
        assert rounds >= 4
    finally:
        tracemalloc.stop()
