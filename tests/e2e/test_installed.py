"""Every entry point, run from a wheel outside the checkout: what works in the checkout must work for its users."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.ports import free_ports

pytestmark = pytest.mark.xdist_group("wheel")  # one installation, compiled once

DEBUG = "import nanollama, pathlib; print(pathlib.Path(nanollama.__file__).parent / 'configs/gssm/debug.yaml')"


@pytest.fixture(scope="module")
def debug_yaml(installation: Installation) -> str:
    return installation.run("-c", DEBUG).stdout.strip()


def test_the_code_comes_from_the_wheel(installation: Installation) -> None:
    code = "import nanollama, backend, worker, dashboard; print(nanollama.__file__, backend.__file__)"
    answer = installation.run("-c", code)
    assert answer.stdout.count(str(installation.python.parent.parent)) == 2, answer.stdout + answer.stderr


@pytest.mark.parametrize("module", ["backend", "worker", "dashboard"])
def test_applications_explain_themselves(installation: Installation, module: str) -> None:
    answer = installation.run("-m", module, "--help")
    assert answer.returncode == 0, answer.stderr
    assert "usage" in answer.stdout.lower()


def test_a_packaged_config_is_valid(installation: Installation, debug_yaml: str) -> None:
    answer = installation.run_n2n("validate", debug_yaml)
    assert answer.returncode == 0, answer.stderr
    assert "valid" in answer.stdout


def test_migrations_are_packaged(installation: Installation, tmp_path: Path) -> None:
    answer = installation.run_n2n("db", "upgrade", "--home", str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "n2n.sqlite").exists()


@pytest.mark.parametrize("app", ["nanollama.apps.gssm.train", "nanollama.launcher"])
def test_training_from_the_wheel(installation: Installation, debug_yaml: str, tmp_path: Path, app: str) -> None:
    script = ["script=nanollama.apps.gssm.train"] if app.endswith("launcher") else []
    small = ["optim.steps=3", "optim.warmup=1", "data.batch_size=4", f"orchestration.log_dir={tmp_path / 'run'}"]
    answer = installation.run("-m", app, *script, f"config={debug_yaml}", *small)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "run" / "1" / "result.json").exists()


def test_a_port_in_use_is_named_with_the_remedy(installation: Installation, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in ("--api-port", "--page-port"):
            other = "--page-port" if option == "--api-port" else "--api-port"
            ports = [option, str(port), other, str(free_ports(1)[0])]
            answer = installation.run_n2n("up", "--home", str(tmp_path / "home"), *ports)
            assert answer.returncode == 2
            assert f"{option}: port {port} is not free" in answer.stderr
            assert "Traceback" not in answer.stderr
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_written_is_named(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    api, page = free_ports(2)
    ports = ["--api-port", str(api), "--page-port", str(page)]
    answer = installation.run_n2n("up", "--home", str(tmp_path / "file"), *ports)
    assert answer.returncode == 2
    assert f"cannot write {tmp_path / 'file'}" in answer.stderr
