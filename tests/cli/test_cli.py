"""n2n against a real service: what it prints, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nanollama.api.client import Client
from nanollama.api.errors import Unavailable
from nanollama.api.schemas import Held, SyncRequest, TransitionRequest, WorkerRegistration
from nanollama.api.status import AttemptState, RunState
from nanollama.commands.following import Patience
from tests.cli.conftest import N2n
from tests.support.examples import experiment
from tests.support.ports import free_ports


@pytest.fixture
def n2n(n2n_there: N2n) -> N2n:
    return n2n_there


def submitted(n2n: N2n, config: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert n2n("submit", config, "--json", *arguments) == 0
    return str(json.loads(capsys.readouterr().out)["runs"][0]["id"])


def number_of_runs(url: str) -> int:
    with Client(url) as client:
        return sum(client.runs().counts.values())


def test_submit_show_list_and_cancel(n2n: N2n, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = submitted(n2n, config, capsys, "optim.steps=77", "--tag", "blue")
    assert n2n("show", run_id) == 0
    shown = capsys.readouterr().out
    assert "tiny [red]" in shown
    assert "0 of 77" in shown
    assert n2n("runs", "--search", "blue", "--json") == 0
    assert [run["id"] for run in json.loads(capsys.readouterr().out)["items"]] == [run_id]
    assert n2n("cancel", run_id) == 0
    assert "CANCELLED" in capsys.readouterr().out
    assert n2n("watch", run_id) == 1
    assert "cancelled while it was queued" in capsys.readouterr().out


def test_variables_come_from_the_shell(
    n2n: N2n, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WIDTH_OF_TODAY", "wide")
    run_id = submitted(n2n, config, capsys, "orchestration.name=net-$WIDTH_OF_TODAY")
    assert n2n("show", run_id) == 0
    assert "net-wide" in capsys.readouterr().out


def test_bad_input_is_listed_whole_and_ends_with_2(
    n2n: N2n, url: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = number_of_runs(url)
    for command in ("submit", "validate"):
        assert n2n(command, config, "optim.steps=0", "modle.emb_dim=3", "data.batch_size=many") == 2
        errors = capsys.readouterr().err
        assert "optim.steps" in errors
        assert "did you mean 'model'?" in errors
        assert "'many'" in errors
        assert "Traceback" not in errors
    assert number_of_runs(url) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: 2", "line 2, column 5"),
        ("", "data: this key is required"),
        ("x: " + "y" * 5_000_000, "1,048,576 bytes"),
    ],
)
def test_broken_files(n2n: N2n, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert n2n("validate", path) == 2
    assert message in capsys.readouterr().err


def test_missing_file_and_unknown_run(n2n: N2n, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert n2n("submit", tmp_path / "none.yaml") == 2
    assert "none.yaml: No such file" in capsys.readouterr().err
    for command in ("show", "logs", "cancel", "watch"):
        assert n2n(command, "r-unknown") == 1
        assert "r-unknown" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--name", "x" * 300), ("--tag", ""), ("--notes", "x" * 10_001)])
def test_options_of_submit_are_checked(
    n2n: N2n, url: str, config: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    before = number_of_runs(url)
    assert n2n("submit", config, option, value) == 2
    errors = capsys.readouterr().err
    assert option.removeprefix("--") in errors
    assert "Traceback" not in errors
    assert number_of_runs(url) == before


def test_relative_data_is_that_of_the_shell(
    n2n: N2n, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(experiment() | {"data": {"path": "sets/train.h5", "batch_size": 8}}))
    monkeypatch.chdir(tmp_path)
    run_id = submitted(n2n, path, capsys)
    with Client(url) as client:
        assert client.run(run_id).config["data"]["path"] == str(tmp_path / "sets" / "train.h5")


def test_a_grid_is_submitted_whole(n2n: N2n, url: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = number_of_runs(url)
    assert n2n("submit", config, "grid.optim.lr=[1e-3, 1e-2]", "grid.orchestration.utils.seed=range(0, 15)") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["lr=0.001,seed=0", "lr=0.001,seed=1"]
    assert lines[-2] == "and 10 more"
    assert lines[-1].startswith("experiment e")
    assert lines[-1].endswith(": 30 runs")
    assert number_of_runs(url) == before + 30
    assert n2n("submit", config, "grid.model.emb_dim=[16, 15]") == 2
    assert "emb_dim=15" in capsys.readouterr().err
    assert number_of_runs(url) == before + 30


@pytest.mark.parametrize("run_id", ["", "..", "../workers", "a/../b"])
def test_ids_lead_nowhere_else(n2n: N2n, capsys: pytest.CaptureFixture[str], run_id: str) -> None:
    assert n2n("cancel", run_id) == 1
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["rubbish", "ftp://x", "http://"])
def test_an_address_that_is_none_is_bad_input(n2n: N2n, capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert n2n("runs", "--url", address) == 2
    assert f"'{address}' is not the URL of a service" in capsys.readouterr().err


def test_whoever_follows_waits_for_a_service_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    patience = Patience()

    def away() -> str:
        raise Unavailable("no answer")

    assert [patience(away), patience(away), patience(lambda: "back"), patience(away)] == [None, None, "back", None]
    assert capsys.readouterr().err == "no answer; waiting for it\n" * 2


def test_no_service_names_the_remedy(n2n: N2n, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    assert n2n("runs", "--url", f"http://127.0.0.1:{port}") == 1
    errors = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in errors
    assert "n2n up" in errors


def test_logs_and_watch_of_a_run_that_a_worker_executes(
    n2n: N2n, url: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(url) as client:
        for run in client.runs(state=[RunState.QUEUED], limit=500).items:
            client.cancel(run.id)
        run_id = submitted(n2n, config, capsys)
        registration = WorkerRegistration(
            name="w",
            pool="p",
            executor="fake",
            host="here",
            user="me",
            run_root=str(tmp_path),
            slots=1,
            version="1",
        )
        client.register("w-cli", registration)
        (lease,) = client.sync("w-cli", SyncRequest(free_slots=1)).leases
        assert lease.run_id == run_id
        client.transition(
            lease.attempt_id,
            TransitionRequest(
                transition_id="running-1", epoch=lease.epoch, to=AttemptState.RUNNING, attempt_dir=str(tmp_path / "1")
            ),
        )
        client.put_stream(lease.attempt_id, "stdout.log", epoch=lease.epoch, offset=0, data="grüße\n".encode())
        line = b'{"seq":0,"step":10,"tokens":80,"time":1.0,"loss":2.5,"bound":2.0,"excess":0.5}\n'
        client.put_stream(lease.attempt_id, "metrics/rank0.jsonl", epoch=lease.epoch, offset=0, data=line)
        assert n2n("logs", run_id) == 0
        assert capsys.readouterr().out == "grüße\n"
        assert n2n("workers") == 0
        assert "1/1" in capsys.readouterr().out
        held = [Held(attempt_id=lease.attempt_id, epoch=lease.epoch)]
        assert not client.sync("w-cli", SyncRequest(held=held)).lost
        client.transition(
            lease.attempt_id,
            TransitionRequest(
                transition_id="done-1234",
                epoch=lease.epoch,
                to=AttemptState.SUCCEEDED,
                exit_code=0,
                result={"loss": 2.5, "bound": 2.0, "excess": 0.5, "excess_stderr": 0.01},
            ),
        )
    assert n2n("logs", "-f", run_id) == 0
    assert capsys.readouterr().out == "grüße\n"
    assert n2n("watch", run_id) == 0
    watched = capsys.readouterr().out
    assert "step 10/10" in watched
    assert "0.5000 ± 0.0100 nats/token" in watched
