from __future__ import annotations

import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nanollama.api.errors import InvalidRequest, OffsetMismatch, Unavailable
from worker import shipping
from worker.shipping import Shipper, Splice

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


class Memory:
    """What the journal keeps of splices."""

    def __init__(self) -> None:
        self.splices: dict[str, Splice] = {}

    def shipper(self, directory: Path, service: Streams) -> Shipper:
        return Shipper(directory, service.put, self.splices, self.splices.__setitem__)


def cut(path: Path) -> None:
    path.write_bytes(b"")


def rotate(path: Path) -> None:
    path.rename(path.with_suffix(".1"))


def rewrite(path: Path) -> None:
    path.write_bytes(b"other bytes, and more of them\n" * 9)


@pytest.mark.parametrize("how", [cut, rotate, rewrite])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_log_that_is_cut_or_replaced_goes_on_behind_a_remark(
    tmp_path: Path, how: Callable[[Path], None], restarts: bool
) -> None:
    service, memory, path = Streams(), Memory(), tmp_path / "stdout.log"
    shipper = memory.shipper(tmp_path, service)
    path.write_bytes(b"first line\nsecond line\n")
    shipper.ship()
    how(path)
    with open(path, "ab") as file:
        file.write(b"third line\n")
    service.lose_reply = True
    with suppress(Unavailable):
        shipper.ship()
    if restarts:
        shipper = memory.shipper(tmp_path, service)
    with open(path, "ab") as file:
        file.write(b"the en")
    while not shipper.ship(final=True):
        pass
    before, _, after = bytes(service.stored["stdout.log"]).partition(b"[n2n] stdout.log was ")
    assert before == b"first line\nsecond line\n"
    remark, _, after = after.partition(b"\n")
    assert remark.endswith(b"after 23 bytes of it had been sent; what it holds since then follows")
    assert after == path.read_bytes()


def test_it_can_be_cut_again_and_again(tmp_path: Path) -> None:
    service, memory, path = Streams(), Memory(), tmp_path / "stdout.log"
    shipper = memory.shipper(tmp_path, service)
    for i in range(3):
        path.write_bytes(f"round {i}\n".encode() * (5 - i))
        assert shipper.ship()
    lines = bytes(service.stored["stdout.log"]).decode().splitlines()
    assert [line for line in lines if "n2n" not in line] == ["round 0"] * 5 + ["round 1"] * 4 + ["round 2"] * 3
    assert len(lines) == 14


@pytest.mark.parametrize("how", [cut, rotate, rewrite])
def test_of_records_that_are_cut_or_replaced_no_more_is_sent_and_the_log_says_so(
    tmp_path: Path, how: Callable[[Path], None]
) -> None:
    service, memory, path = Streams(), Memory(), tmp_path / "metrics" / "rank0.jsonl"
    path.parent.mkdir()
    (tmp_path / "stdout.log").write_bytes(b"hello\n")
    shipper = memory.shipper(tmp_path, service)
    path.write_bytes(b'{"seq":0}\n{"seq":1}\n')
    shipper.ship()
    shipper = memory.shipper(tmp_path, service)  # which does not know yet how much of the log the service has
    shipper.ship()
    how(path)
    with open(path, "ab") as file:
        file.write(b'{"seq":0}\n')
    while not shipper.ship(final=True):
        pass
    assert service.stored["metrics/rank0.jsonl"] == b'{"seq":0}\n{"seq":1}\n'
    log = bytes(service.stored["stdout.log"]).decode()
    assert log.startswith("hello\n[n2n] no more of metrics/rank0.jsonl is sent: it was ")
    assert log.count("\n") == 2


def test_a_remark_needs_no_log(tmp_path: Path) -> None:
    service = Streams()

    def put(name: str, offset: int, data: bytes) -> int:
        if name == "events.jsonl":
            raise InvalidRequest("line 1 is no event")
        return service.put(name, offset, data)

    (tmp_path / "events.jsonl").write_bytes(b"nonsense\n")
    shipper = Shipper(tmp_path, put)
    while not shipper.ship(final=True):
        pass
    assert b"no more of events.jsonl is sent" in service.stored["stdout.log"]


def test_a_new_file_is_found_although_folders_are_not_listed_each_time(tmp_path: Path) -> None:
    service = Streams()
    shipper = Shipper(tmp_path, service.put)
    long_ago = time.time() - 100
    (tmp_path / "stdout.log").write_bytes(b"a\n")
    os.utime(tmp_path, (long_ago, long_ago))
    shipper.ship()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank0.log").write_bytes(b"b\n")
    shipper.ship()
    assert sorted(service.stored) == ["logs/rank0.log", "stdout.log"]


def test_one_refused_stream_does_not_hold_up_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Streams()

    def put(name: str, offset: int, data: bytes) -> int:
        if name == "events.jsonl":
            raise InvalidRequest("line 1 is no event")
        return service.put(name, offset, data)

    (tmp_path / "events.jsonl").write_bytes(b"nonsense\n")
    (tmp_path / "stdout.log").write_bytes(b"hello\n")
    shipper = Shipper(tmp_path, put)
    while not shipper.ship(final=True):
        pass
    remark = b"[n2n] no more of events.jsonl is sent: the service refuses it at byte 0: line 1 is no event\n"
    assert service.stored == {"stdout.log": remark + b"hello\n"}
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
