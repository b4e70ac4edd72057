"""The local executor and its supervisor with real processes; small programs stand in for torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from nanollama.spec.rundir import EXIT_CLAIM_LOST, Exit, Proc
from tests.support.examples import experiment
from tests.support.waiting import eventually
from worker.executors.base import Attempt, Phase, Refused
from worker.executors.claim import Claim, read_claim, take_claim
from worker.executors.local import LocalExecutor
from worker.executors.processes import MARK, boot_id, find_tree, is_alive, kill_tree, start_time

Running = Callable[..., LocalExecutor]

RESILIENT = """
    import os, signal, subprocess, sys, time
    # a daemon: a session of its own, an orphan, deaf to SIGTERM
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"
    middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", middle], check=True)
"""


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    attempt = Attempt(f"test-{uuid.uuid4().hex}", tmp_path / "r1" / "1", "gssm.train", experiment())
    yield attempt
    LocalExecutor().kill(attempt)


@pytest.fixture
def running(attempt: Attempt) -> Iterator[Running]:
    """Makes executors whose every attempt runs the given program instead of torchrun."""
    made: list[LocalExecutor] = []

    def make(code: str, *, grace: float = 0.5, program: str = sys.executable) -> LocalExecutor:
        command = [program, "-c", textwrap.dedent(code)]
        made.append(LocalExecutor(grace=grace, command=lambda _attempt, _spec: command))
        return made[-1]

    yield make
    for executor in made:
        executor.kill(attempt)
        executor.release(attempt)


def wait_for(executor: LocalExecutor, attempt: Attempt, *phases: Phase) -> None:
    eventually(lambda: executor.look(attempt).phase in phases, what=f"{phases}")


def output(attempt: Attempt) -> str:
    return (attempt.directory / "stdout.log").read_text()


def finished(executor: LocalExecutor, attempt: Attempt) -> Exit:
    executor.start(attempt)
    wait_for(executor, attempt, Phase.ENDED)
    record = executor.look(attempt).exit
    assert record is not None
    return record


def test_runs_the_command_and_accounts_for_its_end(attempt: Attempt, running: Running) -> None:
    executor = running("import os, sys; print('out', os.getpgid(0)); print('err', file=sys.stderr); sys.exit(3)")
    assert executor.look(attempt).phase is Phase.ABSENT
    record = finished(executor, attempt)
    assert (record.exit_code, record.signal, record.terminated) == (3, None, False)
    proc = Proc.model_validate_json((attempt.directory / "proc.json").read_bytes())
    assert output(attempt) == f"out {proc.pgid}\nerr\n"
    assert proc.boot_id == boot_id()
    assert (attempt.directory / "provenance.json").exists()
    config = load_config(ExperimentSpec, [f"config={attempt.directory / 'config.yaml'}"])
    assert config == ExperimentSpec.model_validate(experiment())
    executor.release(attempt)
    assert not is_alive(proc.pid, proc.start_time, proc.boot_id)


def test_a_second_start_runs_nothing(attempt: Attempt, running: Running) -> None:
    executor = running("print('once')")
    finished(executor, attempt)
    again = running("print('once')")
    again.start(attempt)
    child = again._children[attempt.id]
    assert child.wait(60) == EXIT_CLAIM_LOST
    assert again.look(attempt).phase is Phase.ENDED
    assert output(attempt) == "once\n"


@pytest.mark.parametrize(("code", "number"), [("os.kill(os.getpid(), 9)", 9), ("os.abort()", 6)])
def test_a_signal_is_recorded_as_one(attempt: Attempt, running: Running, code: str, number: int) -> None:
    record = finished(running(f"import os; {code}"), attempt)
    assert (record.exit_code, record.signal) == (None, number)


def test_a_command_that_cannot_be_executed(attempt: Attempt, running: Running) -> None:
    executor = running("", program="/no/such/program")
    assert finished(executor, attempt).exit_code == 127
    assert output(attempt) == "error: cannot start /no/such/program: No such file or directory\n"


def test_what_the_command_leaves_behind_is_ended(attempt: Attempt, running: Running) -> None:
    executor = running(RESILIENT + "\n    time.sleep(1)")
    assert finished(executor, attempt).exit_code == 0
    assert list(find_tree(attempt.id)) == []


def test_what_hides_its_environment_is_ended_too(attempt: Attempt, running: Running) -> None:
    code = """
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={}, start_new_session=True)
    """
    before = {process.pid for process in psutil.process_iter()}
    finished(running(code), attempt)
    new = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    assert [p for p in new if p.info["cmdline"] == [sys.executable, "-c", "import time; time.sleep(600)"]] == []


def test_stop_ends_what_obeys_by_sigterm(attempt: Attempt, running: Running) -> None:
    executor = running(
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        print("ready", flush=True)
        time.sleep(600)
        """,
        grace=60,
    )
    executor.start(attempt)
    eventually(lambda: "ready" in output(attempt))
    executor.stop(attempt)
    wait_for(executor, attempt, Phase.ENDED)
    record = executor.look(attempt).exit
    assert record is not None
    assert (record.exit_code, record.terminated) == (5, True)


def test_stop_kills_what_does_not_obey(attempt: Attempt, running: Running) -> None:
    code = (
        RESILIENT + "\n    signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    )
    executor = running(code)
    executor.start(attempt)
    eventually(
        lambda: (attempt.directory / "stdout.log").exists() and {"ready", "deaf"} <= set(output(attempt).split())
    )
    assert len(list(find_tree(attempt.id))) == 2
    executor.stop(attempt)
    wait_for(executor, attempt, Phase.ENDED)
    record = executor.look(attempt).exit
    assert record is not None
    assert (record.signal, record.terminated) == (signal.SIGKILL, True)
    assert list(find_tree(attempt.id)) == []


def test_a_killed_supervisor_is_found_out_and_its_run_ended(attempt: Attempt, running: Running) -> None:
    executor = running("import time; print('ready', flush=True); time.sleep(600)")
    executor.start(attempt)
    wait_for(executor, attempt, Phase.RUNNING)
    claim = read_claim(attempt.directory)
    assert claim is not None
    assert claim.pid is not None
    os.kill(claim.pid, signal.SIGKILL)
    wait_for(executor, attempt, Phase.VANISHED)
    assert len(list(find_tree(attempt.id))) == 1
    executor.kill(attempt)
    assert list(find_tree(attempt.id)) == []


def test_another_executor_finds_the_run_by_its_files(attempt: Attempt, running: Running) -> None:
    running("import time; time.sleep(600)").start(attempt)
    later = LocalExecutor()
    wait_for(later, attempt, Phase.RUNNING)
    later.stop(attempt)
    wait_for(later, attempt, Phase.ENDED)


def test_a_claim_of_another_boot_has_vanished(attempt: Attempt) -> None:
    attempt.directory.mkdir(parents=True)
    claim = Claim.of_this_process()._replace(boot_id="another")
    assert take_claim(attempt.directory, claim)
    status = LocalExecutor().look(attempt)
    assert status.phase is Phase.VANISHED
    assert status.reason == "the machine has been restarted"


def test_a_reused_pid_is_not_taken_for_the_supervisor(attempt: Attempt) -> None:
    attempt.directory.mkdir(parents=True)
    claim = Claim.of_this_process()
    assert claim.start_time is not None
    take_claim(attempt.directory, claim._replace(start_time=claim.start_time - 1))
    executor = LocalExecutor()
    assert executor.look(attempt).phase is Phase.VANISHED
    executor.stop(attempt)  # would end this test


@pytest.mark.parametrize("by", ["cancel", "void"])
def test_who_forbids_first_wins(attempt: Attempt, running: Running, by: str) -> None:
    executor = running("print('never')")
    assert executor.forbid(attempt, by)
    assert not executor.forbid(attempt, by)
    executor.start(attempt)
    assert executor._children[attempt.id].wait(60) == EXIT_CLAIM_LOST
    status = executor.look(attempt)
    assert (status.phase, status.forbidder) == (Phase.FORBIDDEN, by)
    assert output(attempt) == ""


def test_nothing_can_be_forbidden_that_has_started(attempt: Attempt, running: Running) -> None:
    executor = running("import time; time.sleep(600)")
    executor.start(attempt)
    wait_for(executor, attempt, Phase.RUNNING)
    assert not executor.forbid(attempt, "cancel")


def test_a_supervisor_that_dies_before_the_claim(
    attempt: Attempt, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(attempt.directory / "shadow"))
    shadow = attempt.directory / "shadow"
    shadow.mkdir(parents=True)
    (shadow / "ctypes.py").write_text("raise ImportError('broken')")
    executor = running("print('never')")
    executor.start(attempt)
    wait_for(executor, attempt, Phase.FAILED_TO_START)
    assert "ImportError: broken" in output(attempt)
    assert executor.forbid(attempt, "void")


def test_a_supervisor_imports_what_starts_at_once_and_nothing_else() -> None:
    program = "import sys, worker.executors.supervisor; print(*sys.modules)"
    listed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    loaded = {name.partition(".")[0] for name in listed}
    assert loaded.isdisjoint({"pydantic", "psutil", "yaml", "httpx", "tempfile", "dataclasses"})


def test_the_records_that_a_supervisor_writes_are_whole(attempt: Attempt, running: Running) -> None:
    """They are written by hand, and a reader passes over keys that it does not know."""
    executor = running("print('over')")
    executor.start(attempt)
    wait_for(executor, attempt, Phase.ENDED)
    for name, model in (("proc.json", Proc), ("exit.json", Exit)):
        assert json.loads((attempt.directory / name).read_text()).keys() == model.model_fields.keys()


def test_a_claim_that_is_none_is_an_error_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "start.claim").write_text('{"holder": "root"}')
    with pytest.raises(ValueError, match=r"start\.claim is no claim: "):
        read_claim(tmp_path)
    (tmp_path / "start.claim").write_text('{"holder": "job", "pid": 3, "colour": "a key of a later version"}')
    assert read_claim(tmp_path) == Claim("job", pid=3)


def test_only_registered_apps_are_run(attempt: Attempt) -> None:
    foreign = Attempt(attempt.id, attempt.directory, "os.system", experiment())
    with pytest.raises(Refused, match=r"knows no app 'os\.system'; it runs: gssm\.entropy, gssm\.train"):
        LocalExecutor().start(foreign)
    assert not attempt.directory.exists()


def test_a_config_that_cannot_be_read_is_refused_with_its_place(attempt: Attempt) -> None:
    config = experiment()
    config["optim"]["stepz"] = 3
    with pytest.raises(Refused, match=r"optim\.stepz: unknown key - did you mean 'steps'\?"):
        LocalExecutor().start(Attempt(attempt.id, attempt.directory, "gssm.train", config))


def test_a_directory_that_cannot_be_made_is_no_refusal(attempt: Attempt, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file" / "1"
    with pytest.raises(NotADirectoryError):  # it may be there again in a moment
        LocalExecutor().start(Attempt(attempt.id, directory, "gssm.train", experiment()))


# -- the claim ---------------------------------------------------------------------------------------------------------

CONTENDER = """
import sys
from pathlib import Path
from worker.executors.claim import Claim, take_claim
print("ready", flush=True)
sys.stdin.readline()
print(take_claim(Path(sys.argv[1]), Claim.of_this_process()), flush=True)
"""


def test_of_many_processes_exactly_one_takes_the_claim(tmp_path: Path) -> None:
    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    try:
        for contender in contenders:
            assert contender.stdout is not None
            assert contender.stdout.readline() == "ready\n"
        for contender in contenders:
            assert contender.stdin is not None
            contender.stdin.write("go\n")
            contender.stdin.flush()
        answers = {contender.pid: contender.communicate(timeout=60)[0].strip() for contender in contenders}
    finally:
        for contender in contenders:
            contender.kill()
            contender.wait()
    claim = read_claim(tmp_path)
    assert claim is not None
    assert [pid for pid, answer in answers.items() if answer == "True"] == [claim.pid]
    assert [path.name for path in tmp_path.iterdir()] == ["start.claim"]


def test_of_many_threads_exactly_one_takes_the_claim(tmp_path: Path) -> None:
    barrier, won = threading.Barrier(16), []

    def contend(holder: str) -> None:
        barrier.wait()
        if take_claim(tmp_path, Claim(holder=holder)):
            won.append(holder)

    threads = [threading.Thread(target=contend, args=(["cancel", "void"][i % 2],)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claim = read_claim(tmp_path)
    assert claim is not None
    assert won == [claim.holder]


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert start_time(child.pid) is None
    child.wait()
    assert start_time(child.pid) is None


def test_kill_tree_finds_what_forks_while_it_is_killed() -> None:
    mark = uuid.uuid4().hex
    # always another pid; it gives up by itself one day, so that a failure of this test doesn't haunt the machine
    code = """
import os, time
end = time.time() + 60
while time.time() < end:
    time.sleep(0.02)
    os.fork() and os._exit(0)
"""
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, MARK: mark}, start_new_session=True)
    child.wait(60)
    kill_tree(lambda: find_tree(mark))
    assert list(find_tree(mark)) == []
    with pytest.raises(ProcessLookupError):  # nor is there one that hid between two looks
        eventually(lambda: os.killpg(child.pid, 0))
