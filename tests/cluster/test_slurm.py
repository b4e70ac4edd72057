from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.cluster.slurm import (
    EXIT_NOT_SHARED,
    Harness,
    Job,
    JobId,
    JobState,
    Stage,
    batch_script,
    parse_accounting,
    parse_details,
    parse_job_id,
    parse_queue,
    sbatch_arguments,
)
from nanollama.monitor.attempt import only_run
from nanollama.spec.base import SpecError
from nanollama.spec.cluster import SlurmSpec
from nanollama.spec.rundir import STOP_REQUESTED
from tests.support.waiting import eventually

HOSTILE = [
    "$(touch owned)",
    "`touch owned`",
    "; touch owned",
    "'",
    '"',
    "\n#SBATCH --uid=0\ntouch owned\n",
    "\\",
    "{child}",
]
words = st.one_of(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), st.sampled_from(HOSTILE))


def job(tmp_path: Path, **keys: object) -> Job:
    defaults = {
        "name": "debug",
        "attempt_dir": tmp_path / "1",
        "work_dir": tmp_path,
        "python": sys.executable,
        "module": "nanollama.apps.gssm.train",
        "knows_attempts": True,
        "nproc_per_node": 1,
    }
    return Job(**{**defaults, **keys})  # type: ignore[arg-type] # keys are named by the tests


def echo_program(directory: Path, name: str) -> Path:
    """A program that prints its arguments as JSON."""
    path = directory / name
    path.write_text(f"#!{sys.executable} -IS\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    path.chmod(0o755)
    return path


def run_script(script: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@settings(deadline=None, max_examples=30)
@given(module=words, folder=words, array=st.booleans())
def test_hostile_words_reach_the_program_as_data(
    tmp_path_factory: pytest.TempPathFactory, module: str, folder: str, array: bool
) -> None:
    here = tmp_path_factory.mktemp("slurm")
    python = echo_program(here, "py'th$on")
    attempt_dir = here / f"x{folder}".replace("/", "_")[:60]
    given_dir, tasks = (here, (7,)) if array else (attempt_dir, ())
    if array:
        (here / "7").symlink_to(attempt_dir)
    script = batch_script(SlurmSpec(), job(here, attempt_dir=given_dir, python=str(python), module=module, tasks=tasks))
    ran = run_script(script, here, SLURM_ARRAY_TASK_ID="7")
    assert (ran.returncode, ran.stderr) == (0, "")
    told = f"{attempt_dir}".rstrip("\n") if array else f"{attempt_dir}"  # as every $(command) of a shell
    assert json.loads(ran.stdout)[4:] == ["-m", module, f"config={told}/config.yaml", f"attempt_dir={told}"]
    assert {path.name for path in here.iterdir() if not path.is_symlink()} == {python.name, ".lock"}
    assert script.count("\n") == batch_script(SlurmSpec(), job(here)).count("\n")


@settings(deadline=None, max_examples=30)
@given(attempt=words, folder=words, token=st.sampled_from([word for word in HOSTILE if "\n" not in word]))
def test_the_harness_of_a_worker_gets_hostile_words_as_data(
    tmp_path_factory: pytest.TempPathFactory, attempt: str, folder: str, token: str
) -> None:
    here = tmp_path_factory.mktemp("slurm")
    supervisor = echo_program(here, "supervisor")
    code = here / f"c{folder}".replace("/", "_")[:60]
    shared = here / f"s{folder}".replace("/", "_")[:60]
    shared.write_text(f"first\n{token}\n")
    setup, sweep = ("marked=yes", "export MARKED=$marked"), (str(echo_program(here, "sweep")), attempt)
    harness = Harness((str(supervisor), attempt), setup, code, shared, token, sweep)
    given_job = job(here, harness=harness, torchrun=False, python="py", cpus_per_node=6, nproc_per_node=4)
    script = batch_script(SlurmSpec(), given_job)
    ran = run_script(script, here, PYTHONPATH="/before")
    assert (ran.returncode, ran.stderr) == (0, "")
    said = [attempt, "py", "-m", "nanollama.apps.gssm.train", f"config={here}/1/config.yaml", f"attempt_dir={here}/1"]
    assert json.loads(ran.stdout) == said
    assert {path.name for path in here.iterdir()} == {"supervisor", "sweep", shared.name}
    supervisor.write_text('#!/bin/sh\nprintf "%s|%s|%s" "$PYTHONPATH" "$MARKED" "$OMP_NUM_THREADS"\n')
    printed = f"{code}:/before|yes|1".replace("\r\n", "\n").replace("\r", "\n")  # as text is read from a pipe
    assert run_script(script, here, PYTHONPATH="/before").stdout == printed
    for end, swept in (("exit 3", []), ("kill -KILL $$", [attempt])):
        supervisor.write_text(f"#!/bin/sh\n{end}\n")
        ran = run_script(script, here)
        assert ran.returncode == (137 if swept else 3)
        assert json.loads(ran.stdout or "[]") == swept
    shared.write_text("another token\n" if token not in "another token" else "")
    refused = run_script(script, here)
    assert (refused.returncode, refused.stdout) == (EXIT_NOT_SHARED, "")
    assert "not on a file system that it shares" in refused.stderr


@settings(deadline=None, max_examples=30)
@given(name=words, folder=words)
def test_options_are_single_arguments_of_sbatch(name: str, folder: str) -> None:
    attempt_dir = Path("/runs") / folder.replace("/", "_").replace("\\", "_")
    spec = SlurmSpec(partition="gpu", account="lab", mem="32G", time=90, nodes=2, nb_gpus=4, nb_cpus=3, signal_time=60)
    arguments = sbatch_arguments(spec, job(Path("/work"), name=name, attempt_dir=attempt_dir, nproc_per_node=4))
    assert arguments == [
        "--parsable",
        "--no-requeue",
        "--open-mode=append",
        f"--job-name={name}",
        f"--output={str(attempt_dir).replace('%', '%%')}/stdout.log",
        "--chdir=/work",
        "--signal=B:USR1@60",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=12",
        "--gpus-per-node=4",
        "--partition=gpu",
        "--account=lab",
        "--mem=32G",
        "--time=90",
    ]


def test_absent_keys_are_left_to_the_cluster(tmp_path: Path) -> None:
    given_options = {argument.partition("=")[0] for argument in sbatch_arguments(SlurmSpec(), job(tmp_path))}
    assert not given_options & {
        "--partition",
        "--account",
        "--qos",
        "--constraint",
        "--mem",
        "--time",
        "--gpus-per-node",
    }


def test_a_path_that_slurm_would_garble_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="without backslashes"):
        sbatch_arguments(SlurmSpec(), job(tmp_path, attempt_dir=tmp_path / "a\\b"))


def test_several_nodes_meet_at_the_first(tmp_path: Path) -> None:
    echo_program(tmp_path, "srun")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"\n')
    scontrol.chmod(0o755)
    script = batch_script(SlurmSpec(nodes=2, nb_cpus=2), job(tmp_path, python="py", nproc_per_node=4))
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = run_script(script, tmp_path, PATH=path, SLURM_JOB_ID="20012", SLURM_JOB_NODELIST="node[7-8]")
    assert json.loads(ran.stdout) == [
        *["--kill-on-bad-exit=1", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8"],
        *["py", "-m", "nanollama.cluster.torchrun", "--nproc-per-node=4", "--nnodes=2", "--rdzv-backend=c10d"],
        *["--rdzv-id=20012", "--rdzv-endpoint=node7:20012"],
        *["-m", "nanollama.apps.gssm.train", f"config={tmp_path}/1/config.yaml", f"attempt_dir={tmp_path}/1"],
    ]


def test_the_script_ends_with_the_code_of_the_command(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 75\n")
    program.chmod(0o755)
    assert run_script(batch_script(SlurmSpec(), job(tmp_path, python=str(program))), tmp_path).returncode == 75


def test_a_second_script_in_a_run_directory_runs_nothing(tmp_path: Path) -> None:
    attempt_dir = tmp_path / "it's 1"
    attempt_dir.mkdir()
    given_job = job(tmp_path, python=str(echo_program(tmp_path, "py")), attempt_dir=attempt_dir)
    with only_run(tmp_path):
        refused = run_script(batch_script(SlurmSpec(), given_job), tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"error: a run is under way in {tmp_path}: ")
    alone = run_script(batch_script(SlurmSpec(), given_job), tmp_path)
    assert (alone.returncode, alone.stderr) == (0, "")


def test_a_script_holds_its_run_directory(tmp_path: Path) -> None:
    python = tmp_path / "py"
    python.write_text(f"#!/bin/sh\ntouch '{tmp_path}/begun'\ncat '{tmp_path}/end'\n")
    python.chmod(0o755)
    os.mkfifo(tmp_path / "end")
    script = batch_script(SlurmSpec(), job(tmp_path, python=str(python)))
    with subprocess.Popen(["bash", "-c", script], cwd=tmp_path) as process:
        try:
            eventually((tmp_path / "begun").exists, what="the command")
            with pytest.raises(SpecError, match="a run is under way in"), only_run(tmp_path):
                pytest.fail("two hold it")
        finally:
            os.close(os.open(tmp_path / "end", os.O_RDWR))  # which waits for no reader
        assert process.wait(60) == 0
    with only_run(tmp_path):
        pass


def test_usr1_asks_for_a_stop_and_the_script_waits_for_the_command(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    program = tmp_path / "python"  # signals its parent, the batch script, then ends once the file is there
    program.write_text(
        f'#!/bin/sh\nkill -USR1 "$PPID"\nuntil [ -e {tmp_path / "1" / STOP_REQUESTED} ]; do sleep 0.01; done\nexit 75\n'
    )
    program.chmod(0o755)
    assert run_script(batch_script(SlurmSpec(), job(tmp_path, python=str(program))), tmp_path).returncode == 75


def test_term_is_passed_on_to_the_command(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/bash\ntrap 'exit 33' TERM\necho ready\nwhile :; do sleep 0.01; done\n")
    program.chmod(0o755)
    script = batch_script(SlurmSpec(), job(tmp_path, python=str(program)))
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 33


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("4711\n", JobId(4711)),
        ("4711;hal\n", JobId(4711, "hal")),
        ("Welcome to the cluster\n\n4711;hal\n\n", JobId(4711, "hal")),
    ],
)
def test_answer_of_sbatch(output: str, expected: JobId) -> None:
    assert parse_job_id(output) == expected


@pytest.mark.parametrize("output", ["", "\n", "Submitted batch job 4711", "4711 4712", "-1", "4711;", "4711\nsorry"])
def test_an_answer_without_an_id_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match="no job id"):
        parse_job_id(output)


def test_the_queue_is_read_whatever_others_call_their_jobs() -> None:
    lines = ["1|RUNNING|None|n2n-r1-1", "2|PENDING|(null)|a|b", "c|d", "", "3|FAILED|NonZeroExitCode|n2n-r2-1"]
    text = "\n".join([*lines, "slurm: warning", "4|X|Y", ""])
    assert parse_queue(text) == [
        JobState(1, "n2n-r1-1", "RUNNING"),
        JobState(2, "a|b", "PENDING"),
        JobState(3, "n2n-r2-1", "FAILED", "NonZeroExitCode"),
    ]
    assert parse_queue("") == []


def test_accounting_and_details_are_read() -> None:
    text = "7|CANCELLED by 0|0:15|n2n-r1-1\n8.batch|FAILED|1:0|batch\n"
    assert parse_accounting(text) == [JobState(7, "n2n-r1-1", "CANCELLED by 0", exit_code="0:15")]
    details = (
        "JobId=5 JobName=n2n-b-1 UserId=root(0) JobState=FAILED Reason=NonZeroExitCode Restarts=0 ExitCode=3:0 A=b"
    )
    assert parse_details(details) == JobState(5, "n2n-b-1", "FAILED", "NonZeroExitCode", "3:0")
    assert parse_details("No jobs in the system") is None


@pytest.mark.parametrize(
    ("word", "stage"),
    [
        *[(word, Stage.WAITING) for word in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")],
        *[(word, Stage.RUNNING) for word in ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "SUSPENDED")],
        ("COMPLETED", Stage.COMPLETED),
        *[(word, Stage.FAILED) for word in ("FAILED", "OUT_OF_MEMORY", "DEADLINE")],
        *[(word, Stage.INTERRUPTED) for word in ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL")],
        *[(word, Stage.CANCELLED) for word in ("CANCELLED", "CANCELLED by 0", "CANCELLED+", "cancelled")],
        *[(word, Stage.UNKNOWN) for word in ("", "MELTING", "COMPLETED_SOON", "COMPLETE")],
    ],
)
def test_what_a_word_means(word: str, stage: Stage) -> None:
    state = JobState(1, "n", word)
    assert state.stage is stage
    assert state.stage.ended == (stage not in (Stage.WAITING, Stage.RUNNING, Stage.UNKNOWN))
