"""Slurm's programs, stood for by scripts on the path that answer as the real ones do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from nanollama.cluster.slurm import JobState
from nanollama.spec.base import SpecError, parse
from tests.support.waiting import eventually
from worker.executors.slurm_options import SlurmOptions
from worker.executors.slurm_query import Slurm, SlurmBusy, SlurmRefuses, SlurmSilent


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


REFUSED = "sbatch: error: Batch job submission failed:"


@pytest.mark.parametrize(
    ("said", "code", "kind"),
    [
        (f"{REFUSED} Invalid partition name specified", 1, SlurmRefuses),
        (f"{REFUSED} Requested time limit is invalid (missing or exceeds some limit)", 1, SlurmRefuses),
        (f"{REFUSED} Requested node configuration is not available", 1, SlurmRefuses),
        (
            f"{REFUSED} Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            1,
            SlurmBusy,
        ),
        (f"{REFUSED} Unable to contact slurm controller (connect failure)", 1, SlurmBusy),
        (f"{REFUSED} Unable to contact slurm controller (receive failure)", 1, SlurmSilent),
        (f"{REFUSED} Unable to contact slurm controller (send failure)", 1, SlurmSilent),
        ("sbatch: error: Slurm temporarily unable to accept job", 1, SlurmBusy),
        (f"{REFUSED} Socket timed out on send/recv operation", 1, SlurmSilent),
        (f"{REFUSED} Zero Bytes were transmitted or received", 1, SlurmSilent),
        ("Killed", 137, SlurmSilent),
        ("", 1, SlurmSilent),
        ("", 0, SlurmSilent),
    ],
)
def test_what_an_answer_of_sbatch_means(programs: Path, said: str, code: int, kind: type[Exception]) -> None:
    program(programs, "sbatch", f'echo "{said}" >&2; exit {code}')
    with pytest.raises(kind) as caught:
        Slurm().submit(["--parsable"], programs / "job.sh")
    if said:
        assert said.removeprefix("sbatch: error: ") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_job_is_submitted_with_its_arguments(programs: Path) -> None:
    program(programs, "sbatch", f'printf "%s\\n" "$@" > {programs}/given; echo Welcome; echo "17;hal"')
    assert Slurm().submit(["--parsable", "--job-name=a b"], programs / "job.sh") == 17
    assert (programs / "given").read_text().splitlines() == ["--parsable", "--job-name=a b", f"{programs}/job.sh"]


def test_a_program_that_hangs_is_given_up_with_all_that_it_has_started(programs: Path) -> None:
    program(programs, "sbatch", f"sleep 600 & echo $! > {programs}/child; wait")
    with pytest.raises(SlurmSilent, match="sbatch gave no answer within 1 s"):
        Slurm(seconds=1.0).submit([], programs / "job.sh")
    child = int((programs / "child").read_text())
    eventually(lambda: not Path(f"/proc/{child}").exists() or "Z" in _state(child), what="the end of the child")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_program_that_is_missing_says_nothing(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(SlurmSilent, match="cannot run squeue: No such file"):
        Slurm().queue()


def test_accounting_is_asked_about_all_at_once(programs: Path) -> None:
    program(programs, "sacct", f'echo "$@" > {programs}/given; echo "5|TIMEOUT|0:0|n2n-a-1"')
    assert Slurm().witness([5, 6]) == {5: JobState(5, "n2n-a-1", "TIMEOUT", exit_code="0:0"), 6: None}
    assert (programs / "given").read_text().endswith("-j 5,6\n")


def test_the_controller_is_asked_about_jobs_that_go_on_by_accounts_alone(programs: Path) -> None:
    """A controller that was killed forgets jobs, whose accounts then say RUNNING for ever."""
    accounts = "5|RUNNING|0:0|n2n-a-1\\n6|PENDING|0:0|n2n-b-1\\n7|FAILED|1:0|n2n-c-1\\n"
    program(programs, "sacct", f'printf "{accounts}"')
    program(programs, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert Slurm().witness([6, 5, 7, 8]) == {6: None, 7: JobState(7, "n2n-c-1", "FAILED", exit_code="1:0"), 8: None}
    program(programs, "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert Slurm().witness([6, 7]) == {7: JobState(7, "n2n-c-1", "FAILED", exit_code="1:0")}
    with pytest.raises(SlurmSilent):
        Slurm().witness([5, 6])
    told = "JobId=6 JobName=n2n-b-1 JobState=PENDING Reason=Priority ExitCode=0:0"
    program(programs, "scontrol", f"echo '{told}'")
    assert Slurm().witness([6, 5]) == {6: JobState(6, "n2n-b-1", "PENDING", "Priority", "0:0")}


def test_without_accounting_the_controller_is_asked_about_one(programs: Path) -> None:
    program(programs, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    program(programs, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    slurm = Slurm()
    assert slurm.witness([5, 6]) == {}  # one program a round
    assert slurm.witness([5, 6]) == {5: None}
    program(programs, "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmSilent, match="Unable to contact"):
        slurm.witness([5, 6])


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"partition": "gpu --wrap=x"}, "partition"),
        ({"account": "a\n#SBATCH --uid=0"}, "account"),
        ({"setup": ["module load a\nrm -rf x"]}, "setup"),
        ({"time": 1, "signal_time": 60}, "60 s before the end of 1 min a run would have to stop at once"),
        ({"gpus": 3}, "gpus"),
    ],
)
def test_options_that_cannot_be_used(section: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse(SlurmOptions, section)


def test_options_become_resources() -> None:
    options = SlurmOptions.model_validate({"mem": "32G", "time": 90, "cpus": 6, "gpus_per_node": 2, "setup": ["a"]})
    assert options.memory_gb == pytest.approx(34.36, abs=0.01)
    resources = options.resources(nodes=3)
    assert (resources.nodes, resources.nb_gpus, resources.nb_cpus, resources.time) == (3, 2, 6, 90)
    with pytest.raises(ValidationError):
        SlurmOptions.model_validate({"nodes": 0})
