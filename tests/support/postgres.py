"""A real Postgres for tests: its own server on a Unix socket in a temporary folder, run by a user who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

START_SECONDS = 120


def find_binaries() -> Path | None:
    """The folder with initdb and postgres, the newest version first; None when there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    config = shutil.which("pg_config")
    if config is not None:
        reply = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        folders.insert(0, Path(reply.stdout.strip()))
    return next((f for f in folders if (f / "initdb").is_file() and (f / "postgres").is_file()), None)


_shared: PostgresServer | None = None
_users = 0


class PostgresServer:
    """A running server; databases are made and dropped by name."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # short: a Unix socket's path has at most 107 bytes
        self._folder = Path(tempfile.mkdtemp(prefix="n2n-pg-", dir=_fastest_folder()))
        self._identity = _unprivileged() if os.geteuid() == 0 else {}
        if self._identity:
            os.chown(self._folder, self._identity["user"], self._identity["group"])
        self.databases: set[str] = set()
        self._log = (self._folder / "server.log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._initialise()
            self._launch()
        except BaseException:
            self.stop()
            raise

    def url(self, name: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://n2n@/{name}?host={self._folder}"

    def create(self, name: str, template: str = "template0") -> str:
        """Make a database, a copy of `template`, and return its URL."""
        with self._connect() as connection:
            # since version 15 the default writes the whole copy into the log as well: several times slower
            strategy = sql.SQL("STRATEGY FILE_COPY" if connection.info.server_version >= 150_000 else "")
            names = sql.Identifier(name), sql.Identifier(template)
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} {}").format(*names, strategy))
        self.databases.add(name)
        return self.url(name)

    def drop(self, name: str) -> None:
        """Remove a database and whoever is connected to it."""
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        self.databases.discard(name)

    def stop(self) -> None:
        """End the server and remove what it wrote."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown: connections are cut
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def commit_for_good(self, name: str) -> None:
        """Have commits of a database survive a crash of the server, as on a durable one."""
        with self._connect() as connection:
            query = sql.SQL("ALTER DATABASE {} SET synchronous_commit = on")
            connection.execute(query.format(sql.Identifier(name)))

    def crash(self) -> None:
        """Cut it off without a checkpoint, as by a crash, and start it again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)
        self._launch()

    def _launch(self) -> None:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._folder),
            "max_connections": "200",
            "fsync": "off",  # tests crash the service, never the machine
            "full_page_writes": "off",
            "synchronous_commit": "off",
        }
        command = [self._binaries / "postgres", "-D", self._folder / "data"]
        for key, value in options.items():
            command += ["-c", f"{key}={value}"]
        self._process = subprocess.Popen(
            command, cwd=self._folder, stdout=self._log, stderr=self._log, start_new_session=True, **self._identity
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._connect().close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"postgres did not start: {error}\n{self._tail()}") from error
                time.sleep(0.05)
            else:
                return

    def _initialise(self) -> None:
        init = [self._binaries / "initdb", "-D", self._folder / "data", "-U", "n2n", "--auth=trust"]
        init += ["-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(init, cwd=self._folder, stdout=self._log, stderr=self._log, check=False, **self._identity)
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{self._tail()}")

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self._folder), user="n2n", dbname="postgres", autocommit=True)

    def _tail(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")[-2000:]


def start_or_skip() -> PostgresServer:
    """A server; without its binaries the test is skipped, or fails under CI=true."""
    binaries = find_binaries()
    if binaries is None:
        reason = "no PostgreSQL server binaries; on Debian or Ubuntu: apt-get install postgresql"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return PostgresServer(binaries)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the tests of this process."""
    global _shared, _users  # noqa: PLW0603 - each conftest that imports the fixture makes one of its own
    if _shared is None:
        _shared = start_or_skip()
    _users += 1
    yield _shared
    _users -= 1
    if _users == 0:
        _shared.stop()
        _shared = None


def _fastest_folder() -> str:
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    return str(memory) if roomy else "/tmp"


def _unprivileged() -> dict[str, Any]:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("postgres refuses to run as root, and there is no other user")
