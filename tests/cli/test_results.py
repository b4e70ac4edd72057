"""What can be fetched of runs: curves, checkpoints, archives; and the lists of everything else."""

from __future__ import annotations

import csv
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nanollama.api.calls import experiments
from nanollama.api.client import Client
from nanollama.api.errors import Unavailable
from nanollama.api.schemas import ExperimentDetail
from nanollama.api.status import AttemptState
from tests.cli.conftest import N2n
from tests.support.acting_worker import ActingWorker
from tests.support.examples import experiment
from tests.support.service import serve_new_sqlite


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as found:
        yield found


@pytest.fixture(scope="module")
def two(client: Client) -> list[str]:
    """Ids of two runs: one has succeeded, the other failed in an ugly way."""
    grid = {"optim": {"lr": [1e-3, 1e-2]}, "model": {"implementation": ["transformer"]}}
    made = client.submit(config=experiment() | {"grid": grid, "orchestration": {"name": "two"}}).runs
    worker = ActingWorker(client)
    for state, reason in ((AttemptState.SUCCEEDED, None), (AttemptState.FAILED, "\x1b]0;owned\x07 [red]")):
        held = worker.start()
        held.train(10, period=1, checkpoint_period=5)
        held.evaluate(10)
        held.report(state, reason=reason, result=state is AttemptState.SUCCEEDED)
    return [run.id for run in made]


def test_curves_as_csv(n2n_there: N2n, two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "curves.csv"
    assert n2n_there("pull", *two, "--keys", "loss,excess", "-o", path) == 0
    assert "40 points of 2 runs" in capsys.readouterr().err
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {(row["run"], row["optim.lr"]) for row in rows} == {(two[0], "0.001"), (two[1], "0.01")}
    assert [int(row["step"]) for row in rows if (row["run"], row["key"]) == (two[0], "loss")] == list(range(1, 11))
    assert n2n_there("pull", two[0], "--keys", "loss", "--x", "relative_time") == 0
    shown = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert (len(shown), float(shown[0]["x"])) == (10, 0.0)
    assert [float(row["value"]) for row in shown] == [
        float(row["value"]) for row in rows if (row["run"], row["key"]) == (two[0], "loss")
    ]


def test_curves_as_parquet_and_json(
    n2n_there: N2n, two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "curves.parquet"
    assert n2n_there("pull", "--filter", "name~lr", "--keys", "loss", "-o", path) == 0
    table = pq.read_table(path)
    assert table.num_rows == 20
    assert {str(table.schema.field(name).type) for name in ("optim.lr", "value", "time")} == {"double"}
    assert str(table.schema.field("step").type) == "int64"
    assert set(table["optim.lr"].to_pylist()) == {1e-3, 1e-2}
    assert set(table["run"].to_pylist()) == set(two)
    capsys.readouterr()
    assert n2n_there("pull", two[1], "--keys", "loss", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["series"]["loss"]["step"] == list(range(1, 11))


def test_what_cannot_be_pulled_leaves_files_as_they_are(
    n2n_there: N2n, two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "curves.csv"
    path.write_text("precious")
    for wrong, message in (
        (("--keys", "los"), "none of the runs has the metric 'los' - did you mean 'loss'?"),
        (("--x", "moons"), "moons"),
        (("--json",), "JSON goes to standard output"),
    ):
        assert n2n_there("pull", two[0], "-o", path, *wrong) == 2
        assert message in capsys.readouterr().err
    assert n2n_there("pull", two[0], "-o", tmp_path / "curves.xls") == 2
    assert n2n_there("pull", two[0], "-o", tmp_path / "no" / "curves.csv") == 2
    assert "cannot write" in capsys.readouterr().err
    assert n2n_there("pull", "--filter", "name:nothing", "-o", path) == 2

    def away(*_: object) -> None:
        raise Unavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Client, "curves", away)
        assert n2n_there("pull", two[0], "-o", path) == 1
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        assert n2n_there("pull", two[0], "-o", tmp_path / "curves.parquet") == 2
        assert "Parquet needs pyarrow, which is not installed - install it with `pip install" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert [each.name for each in tmp_path.iterdir()] == ["curves.csv"]


def test_checkpoints(n2n_there: N2n, two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert n2n_there("checkpoints", "list", two[0]) == 0
    shown = capsys.readouterr().out
    assert "1.2 MiB" in shown
    assert n2n_there("checkpoints", "pin", two[0], 5) == 0
    assert "pin is pending" in capsys.readouterr().out  # the service does not reach the files
    assert n2n_there("checkpoints", "unpin", two[0], 5, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pending"] == "unpin"
    assert n2n_there("checkpoints", "delete", two[0], 10) == 2
    assert f"delete the checkpoint of step 10 of {two[0]}, 1.2 MiB?" in capsys.readouterr().err
    assert n2n_there("checkpoints", "delete", two[0], 10, "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pending"] == "delete"
    assert n2n_there("checkpoints", "delete", two[0], 7, "--yes") == 1
    monkeypatch.chdir(tmp_path)
    assert n2n_there("checkpoints", "download", two[0], 5) != 0
    assert list(tmp_path.iterdir()) == []


def test_archives(n2n_there: N2n, client: Client, two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    whole = client.run(two[0]).experiment_id
    assert n2n_there("export", "--experiment", whole) == 0
    assert n2n_there("export", two[0], "-o", "one.tar.gz", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"file": "one.tar.gz", "bytes": Path("one.tar.gz").stat().st_size}
    assert tarfile.is_tarfile(f"{whole}.tar.gz")
    assert n2n_there("export", "r-none") == 1
    assert n2n_there("export") == 2
    assert n2n_there("export", two[0], "--experiment", whole) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"one.tar.gz", f"{whole}.tar.gz"}
    (tmp_path / "other").mkdir()
    with serve_new_sqlite(tmp_path / "other") as elsewhere:
        capsys.readouterr()
        assert n2n_there("import", f"{whole}.tar.gz", "--url", elsewhere) == 0
        assert f"run {two[1]} is new" in capsys.readouterr().out
        assert n2n_there("import", "one.tar.gz", "--url", elsewhere, "--json") == 0
        assert json.loads(capsys.readouterr().out)["runs"] == []
        assert n2n_there("show", two[1], "--url", elsewhere) == 0
        (tmp_path / "broken").write_bytes(b"rubbish")
        assert n2n_there("import", "broken", "--url", elsewhere) == 2
        assert n2n_there("import", "absent", "--url", elsewhere) == 2
        assert "cannot read absent" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [("runs",), ("experiments",), ("experiments", "list"), ("queue",), ("workers",), ("gssms",), ("datasets",),
     ("templates",), ("templates", "show", "debug"), ("version",)],
)  # fmt: skip
def test_lists_for_people_and_for_programs(
    n2n_there: N2n, two: list[str], command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert n2n_there(*command) == 0
    shown = capsys.readouterr().out
    assert shown.strip()
    assert "\x1b" not in shown
    assert n2n_there(*command, "--json") == 0
    json.loads(capsys.readouterr().out)


def test_pages_go_on(n2n_there: N2n, two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert n2n_there("runs", "--limit", "1", "--sort", "excess") == 0
    printed = capsys.readouterr()
    cursor = printed.err.split("--cursor ")[1].split()[0]
    assert n2n_there("runs", "--limit", "1", "--sort", "excess", "--cursor", cursor) == 0
    assert {printed.out.split()[8], capsys.readouterr().out.split()[8]} == set(two)


def test_experiments(n2n_there: N2n, client: Client, two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    whole = client.run(two[0]).experiment_id
    assert n2n_there("experiments", "pause", whole) == 0
    assert "since" in capsys.readouterr().out
    assert n2n_there("experiments", "resume", whole, "--json") == 0
    assert json.loads(capsys.readouterr().out)["paused_since"] is None
    assert n2n_there("experiments", "show", whole) == 0
    shown = capsys.readouterr().out
    assert "1 succeeded  1 failed" in shown
    assert all(run in shown for run in two)
    assert n2n_there("watch", "--experiment", whole) == 1
    assert "1 succeeded  1 failed; `n2n runs --experiment" in capsys.readouterr().out
    assert n2n_there("watch", "--experiment", whole, "--json") == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"SUCCEEDED": 1, "FAILED": 1}
    assert n2n_there("watch") == 2
    assert n2n_there("watch", two[0], "--experiment", whole) == 2


def test_gssms_and_their_bound(n2n_there: N2n, client: Client, two: list[str],
                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    found = client.gssms().items[0]
    assert n2n_there("gssms", "show", found.hash) == 0
    assert "Z, Y, X" in capsys.readouterr().out
    assert n2n_there("gssms", "bound", found.hash, "--json") == 0
    assert json.loads(capsys.readouterr().out)["bound"]["state"] == "queued"
    assert n2n_there("gssms", "show", "f" * 64) == 1


def test_workers_by_name(n2n_there: N2n, client: Client, two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (worker, *_) = client.workers()
    assert n2n_there("workers", "drain", "acting") == 0
    assert "draining" in capsys.readouterr().out
    assert n2n_there("workers", "resume", worker.id, "--json") == 0
    assert json.loads(capsys.readouterr().out)["drain_requested"] is False
    assert n2n_there("workers", "drain", "nobody") == 1
    assert "there is no worker 'nobody'" in capsys.readouterr().err


def test_hostile_words_stay_words(n2n_there: N2n, two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("show", two[1]), ("watch", two[1])):
        n2n_there(*command)
        shown = capsys.readouterr().out
        assert "\\x1b]0;owned\\x07 [red]" in shown
        assert "\x1b" not in shown
    n2n_there("show", two[1], "--json")
    text = capsys.readouterr().out
    assert json.loads(text)["reason"] == "\x1b]0;owned\x07 [red]"
    assert text.replace("\n", "").isprintable()


def test_waiting_ends_with_the_runs_or_the_time(client: Client, two: list[str]) -> None:
    whole = client.run(two[0]).experiment_id
    assert client.wait(whole).counts == {"SUCCEEDED": 1, "FAILED": 1}
    waiting = client.submit(config=experiment()).id
    with pytest.raises(TimeoutError, match=waiting):
        client.wait(waiting, timeout=0)
    client.cancel(client.experiment(waiting).runs[0].id)
    assert client.wait(waiting).counts == {"CANCELLED": 1}


def test_waiting_outlasts_a_service_that_is_away(
    client: Client, two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, look, away = client.run(two[0]).experiment_id, client.experiment, [True, True]

    def sometimes(experiment_id: str) -> ExperimentDetail:
        if away:
            away.pop()
            raise Unavailable("gone")
        return look(experiment_id)

    monkeypatch.setattr(client, "experiment", sometimes)
    assert client.wait(whole, poll=0).id == whole
    monkeypatch.setattr(experiments, "AWAY_SECONDS", -1.0)
    away += [True]
    with pytest.raises(Unavailable):
        client.wait(whole, poll=0)
