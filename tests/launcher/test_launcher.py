from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.launcher import main, script_module
from nanollama.monitor.attempt import only_run
from nanollama.spec.base import SpecError
from nanollama.spec.command import run_command
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from nanollama.spec.rundir import STOPPED, Stopped
from tests.support.training import events, metrics, result, write_config
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
SCRIPT = "script=nanollama.apps.gssm.train"


def launch(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nanollama.launcher", *arguments]


def fake_sbatch(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """An sbatch first on PATH that keeps its arguments and the script's text, then does what `body` says."""
    directory.mkdir()
    program = directory / "sbatch"
    program.write_text(
        f"#!{sys.executable} -IS\nimport json, sys\n"
        "record = {'arguments': sys.argv[1:], 'script': open(sys.argv[-1]).read()}\n"
        f"json.dump(record, open({str(directory / 'record.json')!r}, 'w'))\n{body}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_run_here_asked_to_stop_by_signal_saves_and_the_next_launch_finishes_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=100_000, cluster__nproc_per_node=2, data__batch_size=4)
    run_dir = tmp_path / "run"
    command = launch(SCRIPT, f"config={config}", f"launcher.log_dir={run_dir}")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        stream = run_dir / "1" / "metrics" / "rank0.jsonl"
        eventually(lambda: stream.exists() and stream.stat().st_size > 0, within=240, what="a metric line")
        process.send_signal(number)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert "as requested" in errors
    assert Stopped.model_validate_json((run_dir / "1" / STOPPED).read_bytes()).exit_code == 75
    assert (run_dir / "1" / "logs" / "rank1.log").exists()
    assert metrics(run_dir / "1")
    (saved,) = [event for event in events(run_dir / "1") if event.kind == "checkpoint_saved"]
    assert saved.step < 100_000

    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        second = run_dir / "2" / "events.jsonl"
        eventually(lambda: second.exists() and second.stat().st_size > 0, within=240, what="the second start")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) == 75
    assert events(run_dir / "2")[0].kind == "resumed"
    assert events(run_dir / "2")[0].step == saved.step


def test_any_module_can_be_run_with_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    (tmp_path / "my_study.py").write_text("import sys\nprint(open(sys.argv[1].partition('=')[2]).read())\n")
    assert main(["script=my_study", "question=why", "launcher.log_dir=here"]) == 0
    assert capfd.readouterr().out == "question: why\n\n"


def test_a_second_run_in_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    with only_run(tmp_path), pytest.raises(SpecError, match=r"^launcher.log_dir: a run is under way in "):
        main([SCRIPT, f"config={config}", f"launcher.log_dir={tmp_path}"])
    assert not (tmp_path / "1").exists()


def test_nothing_is_submitted_for_a_directory_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, "print(1)")
    config = write_config(tmp_path / "c.yaml", launcher={"kind": "slurm"})
    with only_run(tmp_path), pytest.raises(SpecError, match=r"^launcher.log_dir: a run is under way in "):
        main([SCRIPT, f"config={config}", f"launcher.log_dir={tmp_path}"])
    assert not (tmp_path / "1").exists()
    assert not (tmp_path / "bin" / "record.json").exists()


@pytest.mark.parametrize("key", ["launcher.log_dir", "orchestration.log_dir"])
def test_the_key_that_names_an_unusable_directory_is_blamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    (tmp_path / "file").touch()
    config = write_config(tmp_path / "c.yaml")
    assert run_command(main, [SCRIPT, f"config={config}", f"{key}={tmp_path / 'file' / 'run'}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {key}: cannot write to the run directory")


def test_a_job_is_submitted_with_everything_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, "print('Welcome!'); print('4711')")
    monkeypatch.chdir(tmp_path)
    config = write_config(
        tmp_path / "c.yaml",
        orchestration__name='a "name"; $(touch owned)',
        launcher={"kind": "slurm", "slurm": {"partition": "gpu", "nb_cpus": 3, "time": 5, "nodes": 2}},
        cluster={"nproc_per_node": 2},
    )
    assert main([SCRIPT, f"config={config}", "optim.steps=7"]) == 0
    assert capsys.readouterr().out == "4711\n"
    record = json.loads((tmp_path / "bin" / "record.json").read_text())
    attempt_dir = tmp_path / "runs" / 'a "name"; $(touch owned)' / "1"
    assert record["arguments"] == [
        *["--parsable", "--no-requeue", "--open-mode=append", '--job-name=a "name"; $(touch owned)'],
        *[f"--output={attempt_dir}/stdout.log", f"--chdir={tmp_path}", "--signal=B:USR1@120"],
        *["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=6", "--partition=gpu", "--time=5"],
        str(attempt_dir / "job.sh"),
    ]
    assert subprocess.run(["bash", "-n"], input=record["script"], text=True, check=False).returncode == 0
    assert "#SBATCH" not in record["script"]
    stored = load_config(ExperimentSpec, [f"config={attempt_dir / 'config.yaml'}"])
    assert stored == load_config(ExperimentSpec, [f"config={config}", "optim.steps=7"])


def test_the_submitted_script_trains_and_a_finished_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    body = "import subprocess; subprocess.Popen(['bash', sys.argv[-1]]).wait() or print(1)"
    fake_sbatch(tmp_path / "bin", monkeypatch, body)
    monkeypatch.chdir(ROOT)
    config = write_config(tmp_path / "c.yaml", optim__steps=3, launcher={"kind": "slurm"})
    run_dir = tmp_path / "a run's $(directory)"
    assert main([SCRIPT, f"config={config}", f"launcher.log_dir={run_dir}"]) == 0
    assert result(run_dir / "1").step == 3
    capsys.readouterr()
    for kind in ("local", "slurm"):
        assert main([SCRIPT, f"config={config}", f"launcher.log_dir={run_dir}", f"launcher.kind={kind}"]) == 0
        assert capsys.readouterr().out.startswith(f"{run_dir} is finished: step 3, loss ")
    assert not (run_dir / "2").exists()


CONTACT = "sbatch: error: Batch job submission failed: Unable to contact slurm controller"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('sbatch: error: invalid partition: gpu')", "sbatch: error: invalid partition: gpu"),
        (f"sys.exit('{CONTACT} (connect failure)')", f"{CONTACT} (connect failure)"),
    ],
)
def test_a_job_that_slurm_refuses_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: str, message: str
) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, body)
    config = write_config(tmp_path / "c.yaml", launcher={"kind": "slurm"})
    assert main([SCRIPT, f"config={config}", f"launcher.log_dir={tmp_path / 'run'}"]) == 1
    assert capsys.readouterr().err == f"error: sbatch refused the job: {message}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(3)", "it ended with code 3 and said nothing"),
        (f"sys.exit('{CONTACT} (receive failure)')", f"{CONTACT} (receive failure)"),
        ("sys.exit('sbatch: error: Socket timed out on send/recv operation')", "sbatch: error: Socket timed out"),
    ],
)
def test_a_job_that_may_have_been_accepted_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: str, message: str
) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, body)
    config = write_config(tmp_path / "c.yaml", launcher={"kind": "slurm"}, orchestration__name="mine")
    assert main([SCRIPT, f"config={config}", f"launcher.log_dir={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: sbatch got no answer: {message}")
    assert error.endswith("; look for a job named mine in squeue before you start it again\n")
    assert (tmp_path / "run" / "1" / "job.sh").exists()


def test_an_answer_without_an_id_says_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, "print('done')")
    config = write_config(tmp_path / "c.yaml", launcher={"kind": "slurm"}, orchestration__name="mine")
    assert main([SCRIPT, f"config={config}", f"launcher.log_dir={tmp_path / 'run'}"]) == 1
    assert "no job id but 'done\\n'; look for a job named mine in squeue" in capsys.readouterr().err
    assert (tmp_path / "run" / "1" / "job.sh").exists()  # the job may have been accepted


def test_without_slurm_the_message_says_so_and_nothing_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = write_config(tmp_path / "c.yaml", launcher={"kind": "slurm"})
    assert run_command(main, [SCRIPT, f"config={config}", f"launcher.log_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: launcher.kind: there is no sbatch on this machine - ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "^script: no script is named - write script=nanollama.apps.gssm.train"),
        (["script=a", "script=b"], "^script: more than one script"),
        (["script=src.apps.gssm.train"], "^script: .*src.apps.gssm.train.* - did you mean 'nanollama.apps.gssm.train'"),
        (["script=nanollama.apps"], "^script: python cannot run a module 'nanollama.apps'"),
        (["script="], "^script: python cannot run"),
        (["script=nanollama.apps.gssm.train", "optim.stepz=1"], "optim.stepz: unknown key"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=f"(?m){message}"):
        main(arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_package_with_a_main_module_can_be_run() -> None:
    assert script_module(["script=json.tool"]) == "json.tool"
    assert script_module(["script=venv"]) == "venv"
