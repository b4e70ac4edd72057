"""A worker that only talks: it reports to a real service what a training would have written."""

from __future__ import annotations

import math
import random
import secrets
import time
from dataclasses import dataclass, field

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.status import AttemptState
from nanollama.spec.rundir import EVENTS, checkpoint_name, encode_line


@dataclass
class ActingRun:
    """A run that it holds."""

    client: Client
    lease: schemas.Lease
    entropy: float = 1.9184
    step: int = 0
    num_lines: int = 0
    num_events: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    noise: random.Random = field(default_factory=lambda: random.Random(0))

    def send(self, stream: str, data: bytes) -> None:
        """Append to a stream."""
        offset = self.lengths.get(stream, 0)
        info = self.client.put_stream(self.lease.attempt_id, stream, epoch=self.lease.epoch, offset=offset, data=data)
        self.lengths[stream] = info.length

    def train(self, until: int, *, period: int = 10, checkpoint_period: int = 0, bound: bool = True) -> None:
        """Report metrics, log lines and checkpoints up to a step."""
        lines, log = b"", ""
        steps = range(self.step + period, until + 1, period)
        for step in steps:
            bound_now = self.entropy + self.noise.gauss(0, 0.016)
            excess = 0.9 * (1 + step / 12) ** -0.75 * math.exp(self.noise.gauss(0, 0.05))
            values = {
                "loss": bound_now + excess,
                "lr": 3e-4 * min(1.0, step / 50),
                "grad_norm": 0.4 + 2 / (1 + step / 20) + abs(self.noise.gauss(0, 0.05)),
                "tokens_per_second": 61_000 + self.noise.gauss(0, 900),
                "memory": 1.5,
            }
            if bound:
                values |= {"bound": bound_now, "excess": excess}
            record = {"seq": self.num_lines, "step": step, "tokens": step * 504, "time": time.time(), **values}
            lines += encode_line(record)
            log += f"step {step} loss {values['loss']:.4f}\n"
            self.num_lines += 1
        self.send("metrics/rank0.jsonl", lines)
        self.send("logs/rank0.log", log.encode())
        for step in steps:
            if checkpoint_period and step % checkpoint_period == 0:
                self.save(step)
        self.step = until

    def save(self, step: int) -> None:
        """Report a checkpoint."""
        record = {
            "seq": self.num_events,
            "kind": "checkpoint_saved",
            "step": step,
            "time": time.time(),
            "path": f"checkpoints/{checkpoint_name(step)}",
            "size_bytes": 1_234_567,
            "digest": secrets.token_hex(32),
        }
        self.num_events += 1
        self.send(EVENTS, encode_line(record))

    def evaluate(self, step: int, *, num_positions: int = 63) -> None:
        """Report an evaluation on held-out sequences, with curves by position and probes of two latents."""
        excess = 0.9 * (1 + step / 12) ** -0.75
        positions = [float(t) for t in range(1, num_positions + 1)]
        bound = [self.entropy + 0.6 / t for t in positions]
        over = [excess * (1 + 1 / t) for t in positions]
        curves = {
            "positions": positions,
            "loss": [b + e for b, e in zip(bound, over, strict=True)],
            "loss_stderr": [0.01 for _ in positions],
            "bound": bound,
            "bound_stderr": [0.01 for _ in positions],
            "excess": over,
            "excess_stderr": [0.1 * e for e in over],
            "kl": [0.97 * e for e in over],
            "kl_stderr": [0.05 * e for e in over],
        }
        values = {"loss": self.entropy + excess, "bound": self.entropy, "excess": excess, "kl": 0.98 * excess}
        probes = {f"layer{i}/{name}": 1 - 0.5 / (i + k) for i in range(3) for k, name in ((1, "Z"), (2, "C"))}
        record = {
            "seq": self.num_events,
            "kind": "evaluated",
            "step": step,
            "time": time.time(),
            "path": f"evaluations/{step:010d}.json",
            "values": {f"eval/{k}": v for k, v in values.items()}
            | {f"eval/{k}_stderr": 0.03 * excess for k in values}
            | {f"probe/{k}": v for k, v in probes.items()},
            "by_position": curves,
        }
        self.num_events += 1
        self.send(EVENTS, encode_line(record))

    def report(self, to: AttemptState, *, reason: str | None = None, result: bool = False) -> None:
        """Report a transition."""
        finished = {
            "step": self.step,
            "tokens": self.step * 504,
            "seconds": 1.0,
            "loss": 1.95,
            "bound": 1.9,
            "excess": 0.05,
            "excess_stderr": 0.001,
            "num_points": 20,
        }
        self.client.transition(
            self.lease.attempt_id,
            schemas.TransitionRequest(
                transition_id=secrets.token_hex(16),
                epoch=self.lease.epoch,
                to=to,
                reason=reason,
                exit_code=0 if result else None,
                result=finished if result else None,
            ),
        )


class ActingWorker:
    """A registered worker."""

    def __init__(self, client: Client, run_root: str = "/runs") -> None:
        self.client = client
        self.id = secrets.token_hex(8)
        self.held: list[schemas.Held] = []
        registration = schemas.WorkerRegistration(
            name="acting", pool=self.id, executor="local", host="h", user="u", run_root=run_root, slots=8, version="0"
        )
        client.register(self.id, registration)

    def start(self) -> ActingRun:
        """Claim the next run and report that it runs."""
        reply = self.client.sync(self.id, schemas.SyncRequest(held=self.held, free_slots=1, wait_seconds=5))
        (lease,) = reply.leases
        self.held.append(schemas.Held(attempt_id=lease.attempt_id, epoch=lease.epoch))
        run = ActingRun(self.client, lease)
        run.report(AttemptState.RUNNING)
        return run
