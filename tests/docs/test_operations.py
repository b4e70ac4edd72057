"""docs/operations.md: its commands are run, its units start what exists."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backend import __main__ as service
from backend.database import Database
from backend.migrate import migrate
from nanollama.commands.root import MODULES
from tests.support.postgres import PostgresServer, postgres_server  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.S | re.M)


def run_block(block: str, folder: Path, **variables: str) -> str:
    script = block.replace("/srv/n2n", str(folder))
    for name, value in variables.items():
        script = re.sub(rf"^{name}=.*$", f"{name}='{value}'", script, flags=re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("N2N_")}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, env=environment | {"PATH": path} | variables, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.postgres
def test_the_commands_for_whole_databases(
    postgres_server: PostgresServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    backup, restore, move = blocks("bash")
    source = f"sqlite:///{tmp_path / 'n2n.sqlite'}"
    database = Database(source)
    migrate(database)
    database.dispose()
    (tmp_path / "backups").mkdir()
    run_block(backup, tmp_path, N2N_DATABASE_URL=source)
    run_block(restore, tmp_path, RESTORED_URL=f"sqlite:///{tmp_path / 'restored.sqlite'}")
    target = postgres_server.create("moved")
    try:
        assert "rows copied" in run_block(move, tmp_path, FROM=source, TO=target)
    finally:
        postgres_server.drop("moved")
    assert (tmp_path / "before-the-move.backup").is_file()


def test_units_start_what_exists() -> None:
    units = blocks("ini")
    assert len(units) == 2
    for unit in units:
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        parser.read_string(unit)
        _, flag, module, *arguments = shlex.split(parser["Service"]["ExecStart"])
        assert flag == "-m"
        if module == "backend":
            given = service._parser().parse_args(arguments)
            assert (given.tokens, given.log_format) == (True, "json")
        else:
            command = [sys.executable, "-m", module, "--help"]
            shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
            assert all(option in shown for option in arguments if option.startswith("--"))


def test_every_command_of_n2n_exists() -> None:
    used = set(re.findall(r"\bn2n ([a-z-]+)\b", TEXT))
    assert used <= set(MODULES), used - set(MODULES)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx to check its configuration with")
def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    (block,) = blocks("nginx")
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=n2n", "-keyout",
                   str(tmp_path / "n2n.key"), "-out", str(tmp_path / "n2n.pem")]  # fmt: skip
    subprocess.run(certificate, check=True, capture_output=True)
    block = block.replace("/etc/ssl/", f"{tmp_path}/")
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n{block}\n}}\n")
    done = subprocess.run(["nginx", "-t", "-c", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
