"""An MLflow server beside ours, from an environment of its own under .bench, on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.ports import free_ports
from tests.support.waiting import eventually

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".bench" / "mlflow"
BATCH = 1000  # values: what its API takes at most in one request
START_SECONDS = 120


def install() -> str | None:
    """Install it unless it is there; why that was not possible."""
    if (ENVIRONMENT / "bin" / "mlflow").exists():
        return None
    commands = (
        [sys.executable, "-m", "venv", str(ENVIRONMENT)],
        [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-q", "mlflow"],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode != 0:
            return f"MLflow could not be installed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}"
    return None


@contextlib.contextmanager
def serve_mlflow(folder: Path) -> Iterator[httpx.Client]:
    """A tracking server on a new SQLite database, with one worker as ours has; a client of its REST API."""
    (port,) = free_ports(1)
    command = [str(ENVIRONMENT / "bin" / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--default-artifact-root", str(folder / "artifacts")]
    environment = os.environ | {
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                _await(client, process)
                yield client
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait(30)


def new_run(client: httpx.Client) -> str:
    """A run in the default experiment; its id."""
    reply = client.post("/api/2.0/mlflow/runs/create", json={"experiment_id": "0", "start_time": 1})
    reply.raise_for_status()
    identifier: str = reply.json()["run"]["info"]["run_id"]
    return identifier


def log_batch(client: httpx.Client, run_id: str, metrics: list[dict[str, object]]) -> None:
    """Store up to BATCH values."""
    client.post("/api/2.0/mlflow/runs/log-batch", json={"run_id": run_id, "metrics": metrics}).raise_for_status()


def _await(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        assert process.poll() is None, "MLflow did not start"
        with contextlib.suppress(httpx.TransportError):
            return client.get("/health").is_success
        return False

    eventually(answers, within=START_SECONDS, every=0.2, what="MLflow")
