"""n2n doctor: what it finds where all is well, and in each way in which it is not."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from backend.app import create_app
from backend.auth.service import TokenService
from backend.database import Database
from backend.migrate import migrate
from backend.settings import Settings
from nanollama import cli
from nanollama.api.client import Client
from nanollama.api.schemas import TokenCreate, WorkerRegistration
from nanollama.commands import doctor
from nanollama.commands.doctor import Finding
from tests.support.ports import free_ports
from tests.support.service import serve


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'n2n.db'}"
    database = Database(url)
    migrate(database)
    database.dispose()
    return url


@pytest.fixture
def url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("N2N_TOKEN", raising=False)
    with serve(create_app(Settings(database_url=database_url))) as address:
        yield address


def states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def register(url: str, token: str | None = None) -> None:
    with Client(url, token=token) as client:
        client.register(
            "w", WorkerRegistration(name="w", pool="p", executor="fake", host="h", user="u", run_root="/r", slots=1,
                                    version="1"),
        )  # fmt: skip


def executable(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_all_is_well(url: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    register(url)
    api, page = free_ports(2)
    monkeypatch.setattr(doctor, "API_PORT", api)
    monkeypatch.setattr(doctor, "PAGE_PORT", page)
    monkeypatch.setattr(doctor, "SLURM", ("no-such-program",))
    arguments = ["n2n", "doctor", "--json", "--url", url, "--database-url", database_url, "--home", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    findings = json.loads(capsys.readouterr().out)
    assert {f["name"] for f in findings if f["state"] != "ok"} <= {"disk", "torch"}, findings
    assert {"python", "train", "torch", "disk", "database", "service", "version", "clock", "ready", "workers", "slurm",
            f"port {api}"} <= {f["name"] for f in findings}  # fmt: skip
    assert ended.value.code in (0, None) or any(f["state"] == "bad" for f in findings)


def test_a_service_that_is_away() -> None:
    (port,) = free_ports(1)
    (finding,) = doctor.check_service(f"http://127.0.0.1:{port}")
    assert (finding.name, finding.state) == ("service", "bad")
    assert "is the service up?" in finding.message


def test_another_version_another_clock_and_no_worker(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "__version__", "9.9")
    late = datetime.now(timezone.utc) - timedelta(minutes=5)
    monkeypatch.setattr(Client, "server_time", lambda _: late)
    found = states(doctor.check_service(url))
    assert found == {"service": "ok", "version": "warn", "clock": "warn", "ready": "ok", "workers": "warn"}


def test_the_clock_is_asked_anew(url: str) -> None:
    with Client(url) as client:
        client.health()
        assert abs((client.server_time() - datetime.now(timezone.utc)).total_seconds()) < 5
        assert client.server_time().tzinfo is not None


def test_tokens(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(database_url)

    def make(*scopes: str) -> str:
        with database.write() as session:
            service = TokenService(session, datetime.now(timezone.utc))
            return service.create(TokenCreate(name="t", scopes=list(scopes))).secret

    reader, worker = make("read"), make("worker:p")
    with serve(create_app(Settings(database_url=database_url, tokens=True))) as url:
        register(url, worker)
        for token, expected in ((reader, ("workers", "ok")), (worker, ("token", "warn")), ("n2n_x", ("token", "bad")),
                                ("", ("token", "bad"))):  # fmt: skip
            monkeypatch.setenv("N2N_TOKEN", token)
            *_, last = doctor.check_service(url)
            assert (last.name, last.state) == expected
            assert expected[1] == "ok" or last.remedy
    database.dispose()


def test_databases(database_url: str, tmp_path: Path) -> None:
    assert states(doctor.check_database(database_url, made_by_up=False)) == {"database": "ok"}
    absent = f"sqlite:///{tmp_path / 'absent.db'}"
    for made_by_up, state in ((True, "warn"), (False, "bad")):
        (finding,) = doctor.check_database(absent, made_by_up=made_by_up)
        assert (finding.state, "there is no database" in finding.message) == (state, True)
        assert finding.remedy is not None
    assert not (tmp_path / "absent.db").exists()
    database = Database(database_url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    database.dispose()
    (finding,) = doctor.check_database(database_url, made_by_up=True)
    assert finding.state == "bad"
    assert "has the schema 0001" in finding.message
    assert "migrate" in str(finding.remedy)


def test_ports(url: str) -> None:
    ours = int(url.rpartition(":")[2])
    (free,) = free_ports(1)
    assert states(doctor.check_ports(ours, free)) == {f"port {ours}": "ok", f"port {free}": "ok"}
    found = list(doctor.check_ports(free, ours))  # what answers there is not the page
    assert [finding.state for finding in found] == ["ok", "warn"]
    assert "--page-port" in str(found[1].remedy)


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert states(doctor.check_slurm()) == {"slurm": "ok"}
    executable(tmp_path, "sbatch", "echo slurm 23.11.4")
    (finding,) = doctor.check_slurm()
    assert (finding.state, "squeue" in finding.message) == ("warn", True)
    for name in ("scancel", "scontrol"):
        executable(tmp_path, name, "exit 0")
    executable(tmp_path, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    (finding,) = doctor.check_slurm()
    assert (finding.state, "Unable to contact" in finding.message) == ("warn", True)
    executable(tmp_path, "squeue", "exit 0")
    (finding,) = doctor.check_slurm()
    assert (finding.state, finding.message.startswith("slurm 23.11.4, without sacct")) == ("ok", True)


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((1 << 20, "bad"), (5 << 30, "warn"), (50 << 30, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert states(doctor.check_disk(tmp_path / "not" / "yet")) == {"disk": state}


def test_torch_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    (finding,) = doctor.check_torch()
    assert (finding.state, "libcudart" in finding.message) == ("bad", True)
    blind = 'print(\'{"version": "2.9", "built": null, "names": []}\')'
    monkeypatch.setattr(doctor, "_ASK_TORCH", blind)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (finding,) = doctor.check_torch()
    assert (finding.state, "built without CUDA" in finding.message) == ("warn", True)


def test_a_part_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in doctor.required("train")
    assert "torch" not in doctor.required("server")
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "streamlit")
    found = list(doctor.check_python())
    assert [finding.name for finding in found if finding.state == "warn"] == ["dashboard"]
