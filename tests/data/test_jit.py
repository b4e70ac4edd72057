from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.jit import default_threads, share_out

PROGRAM = """
import numpy as np
from nanollama.data.jit import jit

@jit()
def total(values):
    result = 0.0
    for value in values:
        result += value
    return result

print(total(np.arange(5.0)), sum(total.stats.cache_hits.values()))
"""


@settings(deadline=None)
@given(count=st.integers(0, 200), threads=st.integers(1, 4), grain=st.integers(1, 50))
def test_every_item_is_worked_on_once(count, threads, grain):
    seen = np.zeros(count, dtype=int)
    lengths = []

    def work(start: int, stop: int) -> None:
        seen[start:stop] += 1
        lengths.append((stop, stop - start))

    share_out(work, count, threads=threads, grain=grain)
    assert (seen == 1).all()
    assert all(length >= grain for stop, length in lengths if stop < count)


def test_two_threads_work_at_a_time_and_none_is_left():
    before = threading.active_count()
    together = threading.Barrier(2, timeout=60)

    def meet(start: int, stop: int) -> None:
        if start < 2:
            together.wait()

    share_out(meet, 8, threads=2)
    assert threading.active_count() == before


def test_an_error_reaches_the_caller():
    def work(start: int, stop: int) -> None:
        if start:
            raise ValueError(f"{start} fails")

    with pytest.raises(ValueError, match="fails"):
        share_out(work, 100, threads=2)


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("0", None), ("", None), ("x", None)])
def test_threads_follow_the_environment(monkeypatch, value, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == (expected or len(os.sched_getaffinity(0)))


def _run(program: Path, **environment: str) -> list[str]:
    output = subprocess.check_output([sys.executable, program], env=os.environ | environment, text=True)
    return output.split()


def test_compiled_code_is_found_again_by_the_next_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert _run(program, NUMBA_CACHE_DIR=str(tmp_path / "cache")) == ["10.0", "0"]
    assert _run(program, NUMBA_CACHE_DIR=str(tmp_path / "cache")) == ["10.0", "1"]


def test_without_a_place_for_it_the_code_is_compiled_each_time(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    (tmp_path / "file").touch()
    assert _run(program, NUMBA_CACHE_DIR=str(tmp_path / "file" / "below")) == ["10.0", "0"]
