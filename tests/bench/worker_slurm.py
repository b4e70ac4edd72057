"""The worker on Slurm: what a daemon with 200 jobs costs, and how soon a queued run has been submitted.

Programs that answer at once stand in for Slurm's: measured is the worker alone, a process of its own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from nanollama.api.status import AttemptState
from nanollama.spec.rundir import METRICS, encode_line
from tests.bench.timing import Row, each_second
from tests.support.examples import experiment
from tests.support.lease_service import LeaseService, serve
from tests.support.waiting import eventually
from worker.executors.claim import Claim, take_claim

JOBS, SECONDS, POLL_SECONDS, ROUNDS = 200, 90.0, 30.0, 20
FEW = 5
STREAM = Path(METRICS, "rank0.jsonl")

_SBATCH = """\
for word; do case $word in --job-name=*) name=${{word#--job-name=}} ;; esac; done
exec 9>>{here}/lock; flock 9
id=$(($(wc -l < {here}/jobs) + 1))
echo "$id|PENDING|Priority|$name" >> {here}/jobs
echo $id
"""
_SQUEUE = "echo >> {here}/looks; cat {here}/jobs\n"


def bench_worker_slurm() -> list[Row]:
    """Memory, processor time and commands of a worker with 200 jobs, of which half run and write a line a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = LeaseService(upload_seconds=1.0)
        with _worker(folder, service) as process:
            submitted = [_submit_one(service, folder, f"w{i}") for i in range(FEW)]
            few = {f"w{i}": _run_here(folder / "runs" / f"r-w{i}" / "1") for i in range(FEW)}
            seen = [_see_one(service, i, *list(few.items())[i % FEW]) for i in range(ROUNDS)]
            submitted += [_submit_one(service, folder, f"w{i}") for i in range(FEW, ROUNDS)]
            service.upload_seconds = 4.0  # as the service asks where so many runs are
            for i in range(JOBS - ROUNDS):
                service.add(f"a{i}", experiment(), run_id=f"r-a{i}")
            eventually(lambda: _submitted(folder) == JOBS, within=300, what="every submission")
            rest = [d for d in sorted((folder / "runs").glob("r-*/1")) if d / STREAM not in few.values()]
            streams = [*few.values(), *map(_run_here, rest[: JOBS // 2 - FEW])]
            eventually(lambda: _num_running(service) == JOBS // 2, within=120, what="every start to be reported")
            looks, before, start = _looks(folder), process.cpu_times(), time.monotonic()
            for second in each_second(SECONDS):
                for stream in streams:
                    _write(stream, second)
            seconds, after, rounds = time.monotonic() - start, process.cpu_times(), _looks(folder) - looks
            memory = process.memory_info().rss / 1e6
    own = (after.user + after.system - before.user - before.system) / seconds
    children = after.children_user + after.children_system - before.children_user - before.children_system
    accepted, visible = (statistics.quantiles(values, n=20)[-1] for values in (submitted, seen))
    return [
        Row(
            "Slurm: from queued to accepted by an sbatch that takes no time, p95",
            f"{accepted * 1e3:.0f} ms",
            goal="2 s",
        ),
        Row(
            f"Slurm: from a metric line of one of {FEW} jobs to its bytes in the service, p95",
            f"{visible:.2f} s",
            goal="2 s",
        ),
        Row(f"Slurm: memory of a worker with {JOBS} jobs, half of them running", f"{memory:.0f} MB", goal="80 MB"),
        Row("Slurm: of a core for it", f"{100 * own:.2f} %", goal="1 %"),
        Row("Slurm: of a core for the programs that it starts", f"{100 * children / seconds:.2f} %"),
        Row(
            f"Slurm: looks at the queue in {seconds:.0f} s",
            f"{rounds}, one command each",
            goal="2 commands a poll of 30 s",
        ),
    ]


@contextmanager
def _worker(folder: Path, service: LeaseService) -> Iterator[psutil.Process]:
    here = folder / "bin"
    here.mkdir()
    (here / "jobs").touch()
    for name, body in (("sbatch", _SBATCH), ("squeue", _SQUEUE), ("scancel", "exit 0\n"), ("scontrol", "exit 1\n")):
        (here / name).write_text("#!/bin/bash\n" + body.format(here=here))
        (here / name).chmod(0o755)
    (folder / "runs").mkdir()
    with serve(service) as url:
        config = {"url": url, "run_root": str(folder / "runs"), "home": str(folder / "home"), "executor": "slurm"}
        config["slurm"] = {"max_jobs": JOBS, "poll_seconds": POLL_SECONDS}
        (folder / "worker.yaml").write_text(yaml.safe_dump(config))
        environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}"}
        command = [sys.executable, "-m", "worker", "--config", str(folder / "worker.yaml")]
        with open(folder / "worker.log", "wb") as log:
            process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            eventually(lambda: service.workers, what="the worker")
            yield psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()


def _submit_one(service: LeaseService, folder: Path, attempt_id: str) -> float:
    """Seconds from a run being queued until sbatch has taken it."""
    before, start = _submitted(folder), time.perf_counter()
    service.add(attempt_id, experiment(), run_id=f"r-{attempt_id}")
    eventually(lambda: _submitted(folder) > before, every=0.005, what="the submission")
    return time.perf_counter() - start


def _see_one(service: LeaseService, step: int, attempt_id: str, stream: Path) -> float:
    """Seconds from a line being written until the service has it."""
    _write(stream, step)
    start, length = time.perf_counter(), stream.stat().st_size
    streams = service.attempts[attempt_id].streams
    eventually(lambda: len(streams.get(str(STREAM), b"")) == length, every=0.005, what="the line")
    return time.perf_counter() - start


def _num_running(service: LeaseService) -> int:
    return sum(attempt.state is AttemptState.RUNNING for attempt in service.attempts.values())


def _submitted(folder: Path) -> int:
    return len((folder / "bin" / "jobs").read_bytes().splitlines())


def _looks(folder: Path) -> int:
    path = folder / "bin" / "looks"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def _run_here(directory: Path) -> Path:
    """What a job's start leaves in an attempt directory; the stream that it writes."""
    take_claim(directory, Claim(holder="job", pid=1))
    stream = directory / STREAM
    stream.parent.mkdir()
    stream.touch()
    return stream


def _write(stream: Path, step: int) -> None:
    with open(stream, "ab") as file:
        file.write(encode_line({"seq": step, "step": step, "tokens": step, "time": time.time(), "loss": 1.0}))
