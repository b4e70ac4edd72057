"""What the commands refuse: one line that names the remedy, exit code 2, nothing half-created."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import text

from backend.__main__ import main
from backend.database import Database


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("N2N_DATABASE_URL", "N2N_HOST", "N2N_PORT", "N2N_LOG_LEVEL", "N2N_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "example.org", "::"])
def test_a_host_that_is_not_loopback(capsys: pytest.CaptureFixture[str], tmp_path: Path, host: str) -> None:
    message = refusal(capsys, "serve", "--migrate", "--host", host)
    for word in (host, "tokens", "127.0.0.1"):
        assert word in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://a:secret@b/c", "not supported"),
        ("sqlite://", "memory"),
        ("sqlite:////proc/nothing/n2n.db", "cannot use"),
        ("postgresql://a:secret@127.0.0.1:1/c", "Connection refused"),
    ],
)
def test_a_bad_database_url(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str, word: str
) -> None:
    monkeypatch.setenv("N2N_DATABASE_URL", url)
    for arguments in (["serve", "--port", "0", "--migrate"], ["migrate"]):
        message = refusal(capsys, *arguments)
        assert word in message
        assert "secret" not in message


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("N2N_PORT", "many", "should be a valid integer"),
        ("N2N_PORT", "99999", "should be at most 65535, found 99999"),
        ("N2N_LOG_LEVEL", "loud", "found loud"),
        ("N2N_HOST", "0.0.0.0", "refusing to listen on '0.0.0.0'"),
    ],
)
def test_a_bad_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, value: str, word: str
) -> None:
    monkeypatch.setenv(variable, value)
    message = refusal(capsys, "serve")
    assert message.startswith(f"error: ${variable}: ")
    assert word in message


def test_a_bad_argument_is_named_as_it_was_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2N_PORT", "8420")
    assert refusal(capsys, "serve", "--port", "99999") == "error: --port: should be at most 65535, found 99999\n"
    assert refusal(capsys, "serve", "--port", "-1") == "error: --port: should be at least 0, found -1\n"
    assert refusal(capsys, "serve", "--host", "0.0.0.0").startswith("error: --host: refusing to listen on '0.0.0.0': ")


def test_tokens_are_made_listed_and_revoked(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate"]) == 0
    capfd.readouterr()
    assert main(["token", "create", "me", "--scope", "admin", "--scope", "read", "--expires-in-days", "1.5"]) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"n2n_[\w-]{43}\n", out)
    token_id = err.split()[0]
    assert "me: admin read, expires" in err
    assert main(["token", "list"]) == 0
    listed = capfd.readouterr().out
    assert listed.startswith(f"{token_id}  me: admin read, expires ")
    assert out.strip() not in listed
    assert main(["token", "revoke", token_id, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["revoked_at"] is not None
    assert main(["token", "revoke", "t0"]) == 2
    assert "there is no token 't0'" in capfd.readouterr().err
    assert main(["token", "create", "me", "--scope", "all"]) == 2
    assert "'all' is not a scope" in capfd.readouterr().err


def test_a_service_with_tokens_needs_an_admin(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "serve", "--migrate", "--tokens", "--host", "0.0.0.0", "--port", "0")
    assert "python -m backend token create NAME --scope admin" in message


def test_the_database_has_one_name_everywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["migrate"]) == 0
    capsys.readouterr()
    assert (tmp_path / ".n2n" / "n2n.sqlite").is_file()


def test_a_database_without_the_schema(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "n2n.db"
    url = f"sqlite:///{path}"
    for prepare in (path.unlink, path.touch):
        path.touch()
        prepare()
        message = refusal(capsys, "serve", "--port", "0", "--database-url", url)
        assert f"`python -m backend migrate --database-url {url}`" in message
        assert "--migrate" in message
    assert main(["migrate", "--database-url", url]) == 0
    assert "is at" in capsys.readouterr().out


def test_a_file_that_is_no_database(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "n2n.db"
    path.write_bytes(b"this is no database" * 1000)
    assert "not a database" in refusal(capsys, "serve", "--port", "0", "--database-url", f"sqlite:///{path}")


def test_a_newer_schema_than_ours_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/n2n.db"
    assert main(["migrate", "--database-url", url]) == 0
    capsys.readouterr()
    database = Database(url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.dispose()
    for arguments in (["serve", "--port", "0", "--migrate"], ["migrate"]):
        assert "9999" in refusal(capsys, *arguments, "--database-url", url)
