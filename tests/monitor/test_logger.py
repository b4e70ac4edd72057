from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanollama.monitor.logger import JsonLines, close_log, open_log
from nanollama.spec.rundir import MetricLine
from tests.support.waiting import eventually


def test_lines_are_numbered_and_keep_every_value(tmp_path: Path) -> None:
    stream = JsonLines(tmp_path / "metrics" / "rank0.jsonl")
    stream.write({"step": 1, "tokens": 8, "time": 1.5, "loss": 0.1 + 0.2})
    stream.write({"step": 2, "tokens": 16, "time": 2.5, "loss": float("nan"), "grad_norm": float("-inf")})
    lines = [
        MetricLine.model_validate_json(line) for line in (tmp_path / "metrics/rank0.jsonl").read_bytes().splitlines()
    ]
    assert [line.seq for line in lines] == [0, 1]
    assert lines[0].values == {"loss": 0.1 + 0.2}
    assert str(lines[1].values) == str({"loss": float("nan"), "grad_norm": float("-inf")})
    stream.close()


def test_a_stream_that_exists_is_never_continued(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"seq":0,"ki')
    with pytest.raises(FileExistsError):
        JsonLines(tmp_path / "events.jsonl")


WRITER = """
import sys
from pathlib import Path
from nanollama.monitor.logger import JsonLines
stream = JsonLines(Path(sys.argv[1]))
while True:
    stream.write({"text": "x" * 5000})
"""


def test_kill_9_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "stream.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as process:
        eventually(lambda: path.exists() and path.stat().st_size > 1_000_000, what="a megabyte of lines")
        process.kill()
    content = path.read_bytes()
    assert content.endswith(b"\n")
    assert [json.loads(line)["seq"] for line in content.splitlines()] == list(range(content.count(b"\n")))


FULL = """
import resource, signal, sys
from pathlib import Path
from nanollama.monitor.logger import JsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
stream = JsonLines(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for _ in range(20):
    stream.write({"text": "x" * 100})
print(Path(sys.argv[1]).read_text(), end="")
if sys.argv[2] == "mended":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    stream.write({"text": "x"})
try:
    stream.close()
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("end", ["mended", "full"])
def test_a_full_disk_leaves_whole_lines_and_the_others_follow_once_there_is_room(tmp_path: Path, end: str) -> None:
    path = tmp_path / "stream.jsonl"
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(path), end], capture_output=True, text=True, timeout=60, check=True
    )
    lines = ran.stdout.splitlines()
    if end == "full":
        assert "could be written" in lines.pop()
    assert [json.loads(line)["seq"] for line in lines] == list(range(8))
    content = path.read_bytes()
    assert content.endswith(b"\n")
    assert [json.loads(line)["seq"] for line in content.splitlines()] == list(range(21 if end == "mended" else 8))


def test_lines_of_several_threads_are_whole_and_in_order(tmp_path: Path) -> None:
    stream = JsonLines(tmp_path / "stream.jsonl")
    threads = [
        threading.Thread(target=lambda: [stream.write({"text": "x" * 50}) for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.close()
    lines = (tmp_path / "stream.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(800))


def test_the_log_gets_the_records_of_the_library_from_its_level_on(tmp_path: Path) -> None:
    handler = open_log(tmp_path / "logs" / "rank3.log", "WARNING")
    logging.getLogger("nanollama.somewhere").info("quiet")
    logging.getLogger("nanollama.somewhere").warning("loud")
    logging.getLogger("elsewhere").warning("foreign")
    close_log(handler)
    logging.getLogger("nanollama.somewhere").warning("late")
    lines = (tmp_path / "logs" / "rank3.log").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("WARNING loud")
