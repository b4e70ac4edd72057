"""Names and record types of the files in a run directory: the contract between training and worker.

<root>/<run id>/                      the run directory; <root>/<run id>/<attempt>/ is an attempt directory
    checkpoints/<step, 10 digits>/    belong to the run: every attempt continues from the newest valid one
        manifest.json                 written last; a checkpoint without a valid one does not exist
        model.pt, trainer.pt, config.yaml   weights, all else that training needs, and the config that it came from
        score.json                    Score, by temporary file and rename, once the checkpoint has been evaluated
        pinned                        its existence forbids training to remove the checkpoint; made and removed by the
                                      service or by hand at any time, with any content (who, why)
    evaluations/<step, 10 digits>.json   of an evaluated step: means with standard errors, by position too, and probes;
                                      by temporary file and rename, a newer evaluation of the step replaces it
    .lock                             locked (flock) by a run that no worker has started, as long as it is under way
    <attempt>/
        config.yaml                   the full resolved config, written before the start
        provenance.json               Provenance, written beside it
        metrics/rank<k>.jsonl         MetricLine records, append-only, whole lines
        events.jsonl                  EventLine records, the same rules
        logs/rank<k>.log, stdout.log  append-only text
        profile/rank<k>.jsonl, profile/rank<k>.json.gz   figures of single steps, or a trace of them, where asked for
        tensorboard/, wandb/          mirrors of the metrics, where asked for
        result.json                   Result, by temporary file and rename, the last thing a finished run writes
        stopped.json                  Stopped, written likewise by rank 0 before it deliberately exits non-zero:
                                      torchrun turns every code of a rank into 1, here the code can still be read
        stop_requested                its existence asks the training loop to save and exit 75 between two steps
        start.claim, proc.json, exit.json   the executor's own files
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nanollama.spec import files

write_atomic = files.write_atomic
sync_directory = files.sync_directory

CHECKPOINTS = "checkpoints"
LOCK = ".lock"
MANIFEST = "manifest.json"
SCORE = "score.json"
EVALUATIONS = "evaluations"
PINNED = "pinned"
CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
METRICS = "metrics"
EVENTS = "events.jsonl"
LOGS = "logs"
PROFILE = "profile"
TENSORBOARD = "tensorboard"
WANDB = "wandb"
STDOUT = files.STDOUT
RESULT = "result.json"
STOPPED = "stopped.json"
STOP_REQUESTED = "stop_requested"
START_CLAIM = files.START_CLAIM
PROC = files.PROC
EXIT = files.EXIT

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75
EXIT_CLAIM_LOST = files.EXIT_CLAIM_LOST

RESERVED_METRIC_KEYS = ("seq", "step", "tokens", "time")


class _Record(BaseModel):
    """Records of peers: unknown keys are kept out, so that an older reader accepts a newer writer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class MetricLine(BaseModel):
    """One line of metrics/rank<k>.jsonl. Further keys are metrics; loss, bound, excess in nats/token."""

    model_config = ConfigDict(frozen=True, extra="allow")

    seq: int = Field(ge=0, description="number of the line in this file")
    step: int = Field(ge=0, description="optimizer steps done")
    tokens: int = Field(ge=0, description="tokens trained on since the start of the run")
    time: float = Field(description="Unix time, seconds")

    @property
    def values(self) -> dict[str, float]:
        """The metrics of the line, non-finite ones decoded."""
        return {k: decode_number(v) for k, v in (self.model_extra or {}).items()}


EventKind = Literal[
    "started",
    "resumed",
    "checkpoint_saved",
    "checkpoint_removed",
    "evaluated",
    "profiled",
    "preempted",
    "failed",
    "finished",
    "warning",
]


class EventLine(_Record):
    """One line of events.jsonl."""

    seq: int = Field(ge=0)
    kind: EventKind
    step: int = Field(ge=0)
    time: float
    path: str | None = Field(
        default=None, description="checkpoint directory, or file of an evaluation, relative to the run directory"
    )
    size_bytes: int | None = None
    digest: str | None = Field(default=None, description="SHA-256 of the checkpoint's manifest")
    message: str | None = None
    values: dict[str, float | None] | None = Field(
        default=None, description="of an evaluation: its metrics as in its line; null where one is not finite"
    )
    by_position: dict[str, tuple[float | None, ...]] | None = Field(
        default=None,
        description="of an evaluation: `positions`, and loss, bound, excess, kl and their _stderr there, in nats",
    )


class ManifestFile(_Record):
    """One file of a checkpoint."""

    name: str
    size_bytes: int
    sha256: str


class Manifest(_Record):
    """manifest.json of a checkpoint."""

    step: int
    config_hash: str
    files: tuple[ManifestFile, ...]


class Score(_Record):
    """score.json of a checkpoint: lower is better."""

    step: int
    score: float


class Result(_Record):
    """result.json: loss, bound and excess are means over the last `num_points` metric lines, in nats per token."""

    step: int
    tokens: int
    seconds: float
    loss: float | None = None
    bound: float | None = None
    excess: float | None = None
    excess_stderr: float | None = None
    num_points: int = 0


class Stopped(_Record):
    """stopped.json: a deliberate early end, with the exit code that torchrun hides.

    An attempt has at most one of result.json and stopped.json; with neither it crashed or was killed.
    """

    exit_code: int = Field(description="EXIT_FAILED, EXIT_BAD_INPUT or EXIT_INTERRUPTED")
    step: int = Field(ge=0, description="optimizer steps done")
    message: str | None = None


class Provenance(_Record):
    """provenance.json: where an attempt runs, and with which code."""

    version: str = Field(description="of this project")
    python: str
    host: str
    platform: str
    git_sha: str | None = Field(default=None, description="commit of the checkout; None where there is none")
    git_diff_sha256: str | None = Field(default=None, description="of `git diff HEAD`; None when nothing differs")
    packages: dict[str, str] = Field(default={}, description="installed distributions and their versions")
    snapshot: str | None = Field(default=None, description="folder with the code, under the run root's .code")


class Proc(_Record):
    """proc.json: the process group that executes an attempt."""

    pid: int = Field(description="the supervisor")
    start_time: float = Field(description="of the supervisor, seconds since boot: tells a reused pid apart")
    boot_id: str
    pgid: int = Field(description="process group of torchrun")


class Exit(_Record):
    """exit.json: how torchrun ended, written by the supervisor."""

    exit_code: int | None = Field(default=None, description="None when a signal ended it")
    signal: int | None = None
    time: float
    terminated: bool = Field(
        default=False, description="the supervisor was told to stop (SIGTERM) before torchrun had ended"
    )
    oom_kills: int | None = Field(
        default=None,
        description="processes of its control group, or without one of the machine, that the kernel ended meanwhile "
        "for lack of memory; None where it does not count them",
    )
    disk_full: bool = Field(
        default=False, description="at the end there was no room: less than 1 MB, or this record could not be written"
    )


def checkpoint_name(step: int) -> str:
    """Directory name of the checkpoint of a step."""
    return f"{step:010d}"


def evaluation_name(step: int) -> str:
    """File name of the evaluation of a step."""
    return f"{step:010d}.json"


def metrics_file(attempt_dir: Path, rank: int) -> Path:
    """Metric stream of a rank."""
    return attempt_dir / METRICS / f"rank{rank}.jsonl"


def encode_number(value: float) -> float | str:
    """A float for JSON: non-finite ones become the words NaN, Infinity and -Infinity."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def decode_number(value: Any) -> float:
    """Undo encode_number; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"not a number: {value!r}")
    if isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"not a number: {value!r}")
    return float(value)


def encode_line(record: dict[str, Any]) -> bytes:
    """One JSON object as one line, without NaN literals."""
    clean = {k: encode_number(v) if isinstance(v, float) else v for k, v in record.items()}
    return json.dumps(clean, separators=(",", ":"), allow_nan=False).encode() + b"\n"
