"""n2n as a process: what it loads, how it ends, and what a terminal and a shell see of it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from backend.app import create_app
from backend.auth.service import TokenService
from backend.database import Database
from backend.migrate import migrate
from backend.settings import Settings
from nanollama.api.client import Client
from nanollama.api.schemas import TokenCreate
from nanollama.api.status import AttemptState
from nanollama.commands import extras
from tests.cli.conftest import N2n
from tests.support.acting_worker import ActingWorker
from tests.support.examples import experiment
from tests.support.service import serve

N2N = [sys.executable, "-m", "nanollama.cli"]
SECONDS = 120
LOG = "50%\r100%\r\n\x1b]0;owned\x07\tgrüße\n".encode()


def environment(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("N2N_", "_N2N")) and k != "NO_COLOR"}
    return kept | {"TERM": "xterm-256color"} | variables


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*N2N, *arguments], env=environment(**variables), capture_output=True, text=True, timeout=SECONDS, check=False
    )


@contextlib.contextmanager
def terminal(*arguments: str, **variables: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The command on a terminal of 80 columns; the other end of it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*N2N, *arguments], env=environment(COLUMNS="80", **variables), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(ours: int, word: bytes | None) -> bytes:
    """What comes up to a word, or to the end."""
    found = b""
    while word is None or word not in found:
        assert select.select([ours], [], [], SECONDS)[0], found
        try:
            piece = os.read(ours, 4096)
        except OSError:  # of a terminal whose other end is closed
            piece = b""
        if not piece:
            assert word is None, found
            return found
        found += piece
    return found


def shown(*arguments: str, **variables: str) -> str:
    with terminal(*arguments, **variables) as (ours, process):
        text = read_until(ours, None).decode()
        process.wait(SECONDS)
    return text


@pytest.fixture(scope="module")
def failed(url: str) -> str:
    """Id of a run that has ended with words that a terminal would obey."""
    with Client(url) as client:
        client.submit(config=experiment() | {"orchestration": {"name": "a rather long name " * 5}})
        held = ActingWorker(client).start()
        held.send("stdout.log", LOG)
        held.report(AttemptState.FAILED, reason="\x1b[2J\u202egone")
        return held.lease.run_id


def test_help_and_names_are_there_without_loading_the_rest() -> None:
    code = "import sys; sys.argv = ['n2n', *sys.argv[1:]]\nfrom nanollama.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print({'httpx', 'rich', 'yaml', 'nanollama.api'} & set(sys.modules), file=sys.stderr)"
    for arguments, variables in (
        (["--help"], {}),
        ([], {"_N2N_COMPLETE": "complete_bash", "COMP_WORDS": "n2n ca", "COMP_CWORD": "1"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment(**variables), capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
        assert "cancel" in done.stdout
        assert done.stderr == "set()\n"


def test_an_interrupt_while_it_loads_is_no_traceback() -> None:
    code = (
        "import builtins, os, signal\nfrom nanollama.cli import main\nplain = builtins.__import__\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which tests in the background may lack
        "def load(name, *rest):\n    if name.startswith('nanollama.commands'): os.kill(os.getpid(), signal.SIGINT)\n"
        "    return plain(name, *rest)\nbuiltins.__import__ = load\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_whoever_watches_may_leave(url: str) -> None:
    with Client(url) as client:
        made = client.submit(config=experiment())
        for command in (("watch", made.runs[0].id), ("watch", "--experiment", made.id)):
            process = subprocess.Popen(
                [*N2N, *command], env=environment(N2N_URL=url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
            assert (process.returncode, out) == (130, b"")
            assert b" on; `n2n cancel" in err
            assert b"Traceback" not in err
        client.cancel(made.runs[0].id)


def test_a_reader_that_leaves(url: str, failed: str) -> None:
    for command in ("templates show sweeps/exp2", "runs --json", "templates --json", "pull --filter state:failed"):
        script = f"set +o pipefail; {' '.join(N2N)} {command} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", script], env=environment(N2N_URL=url), capture_output=True, text=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stderr  # 0 where all of it had been written before
        assert done.stderr == ""


def test_pipes_get_plain_and_whole_lines(url: str, failed: str) -> None:
    with Client(url) as client:
        name = client.run(failed).name
    done = run("runs", "--filter", f"id:{failed}", N2N_URL=url, COLUMNS="40", FORCE_COLOR="")
    assert done.returncode == 0
    assert name in done.stdout
    assert "\x1b" not in done.stdout
    raw = subprocess.run([*N2N, "logs", failed], env=environment(N2N_URL=url), capture_output=True, check=True)
    assert raw.stdout == LOG


def test_a_terminal_is_told_words_only(url: str, failed: str) -> None:
    text = shown("show", failed, N2N_URL=url)
    assert "\\x1b[2J\\u202egone" in text
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    log = shown("logs", failed, N2N_URL=url)
    assert log.replace("\r\n", "\n") == "50%\n100%\n\\x1b]0;owned\\x07\tgrüße\n"
    table = shown("runs", N2N_URL=url)
    assert failed in table
    assert "…" in table  # the name gives way, not the id
    assert "\x1b[1m" in table
    assert "\x1b[3" not in shown("runs", N2N_URL=url, NO_COLOR="1")


def test_a_question_is_asked_at_a_terminal(url: str) -> None:
    with Client(url) as client:
        made = client.submit(config=experiment() | {"grid": {"optim": {"lr": [1e-3, 1e-2]}}})
        for answer, code, state in ((b"n\n", 1, "QUEUED"), (b"y\n", 0, "CANCELLED")):
            with terminal("cancel", "--experiment", made.id, N2N_URL=url) as (ours, process):
                read_until(ours, b"cancel 2 runs? [y/N]")
                os.write(ours, answer)
                rest = read_until(ours, None)
                assert process.wait(SECONDS) == code
                assert (b"nothing was changed" in rest) is (code == 1)
            assert {run.state.value for run in client.runs(experiment=made.id).items} == {state}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_runs(url: str, failed: str, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "n2n"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(N2N)} "$@"\n')
    program.chmod(0o755)
    home = environment(HOME=str(tmp_path), PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}", N2N_URL=url)
    script = r"""
    n2n --install-completion >/dev/null || exit 9
    . ~/.bashrc
    complete -p n2n
    ask() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _n2n_completion n2n
        printf '%s\n' "${COMPREPLY[@]}"
    }
    ask n2n che; ask n2n checkpoints un; ask n2n submit --reu; ask n2n show "$RUN"; ask n2n templates show deb
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=home | {"RUN": failed[:-1]}, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("\n")
    assert {"checkpoints", "unpin", "--reuse", failed, "debug"} <= set(words), done.stdout
    nobody = subprocess.run(
        ["bash", "--norc", "-c", ". ~/.bashrc; COMP_WORDS=(n2n show r); COMP_CWORD=2; _n2n_completion n2n; echo done"],
        env=home | {"N2N_URL": "http://127.0.0.1:9"}, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert (nobody.stdout, nobody.stderr) == ("done\n", "")


def test_a_worker_is_called_as_it_is() -> None:
    done = run("worker", "--help")
    assert done.returncode == 0
    assert "--run-root" in done.stdout
    assert run("worker", "--config", "/no/such/file.yaml").returncode == 2


def test_the_page_is_opened(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/seen\n')
    browser.chmod(0o755)
    done = run("open", "r 1", N2N_PAGE_URL="http://there:1/", BROWSER=str(browser))
    assert done.stdout == "http://there:1/run?run=r%201\n"
    assert (tmp_path / "seen").read_text() == "http://there:1/run?run=r%201\n"
    assert json.loads(run("open", "--json").stdout) == {"url": "http://127.0.0.1:8421"}
    assert run("open", "--page-url", "javascript:1").returncode == 2


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A service that asks for tokens, and one that may submit."""
    url = f"sqlite:///{tmp_path / 'n2n.db'}"
    database = Database(url)
    migrate(database)
    with database.write() as session:
        service = TokenService(session, datetime.now(timezone.utc))
        secret = service.create(TokenCreate(name="t", scopes=["submit", "read"])).secret
    with serve(create_app(Settings(database_url=url, tokens=True))) as address:
        yield address, secret
    database.dispose()


def test_tokens_come_from_a_file_or_the_environment(
    n2n: N2n, closed: tuple[str, str], tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    url, secret = closed
    monkeypatch.delenv("N2N_TOKEN", raising=False)
    monkeypatch.setenv("N2N_URL", url)
    file = tmp_path / "token"
    file.write_text(f"{secret}\n")
    assert n2n("runs") == 1
    assert "token" in capsys.readouterr().err
    assert n2n("runs", "--token-file", file) == 0
    assert n2n("submit", config, "--token-file", file) == 0
    monkeypatch.setenv("N2N_TOKEN_FILE", str(file))
    assert n2n("queue") == 0
    monkeypatch.delenv("N2N_TOKEN_FILE")
    monkeypatch.setenv("N2N_TOKEN", secret)
    assert n2n("runs") == 0
    capsys.readouterr()
    for content, message in ((None, "cannot read"), ("", "is empty"), ("a b", "holds more than one word")):
        other = tmp_path / "other"
        if content is not None:
            other.write_text(content)
        assert n2n("runs", "--token-file", other) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "missing"),
    [(("worker",), "psutil"), (("db", "upgrade"), "alembic"), (("token", "list"), "alembic"), (("up",), "streamlit"),
     (("demo",), "torch")],
)  # fmt: skip
def test_a_part_that_is_not_installed_is_named(
    n2n: N2n, command: tuple[str, ...], missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == missing else name)
    assert n2n(*command) == 2
    assert f"{missing} is not installed here - pip install 'nodes-to-narratives[" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
