"""Profiles of a window of steps: light, a line of figures for each step, or heavy, a trace of every operation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from nanollama.monitor.hardware import GIB, memory_in_use
from nanollama.monitor.logger import JsonLines
from nanollama.monitor.stopwatch import StepTime
from nanollama.spec.monitor import ProfilerSpec
from nanollama.spec.rundir import PROFILE


@dataclass(frozen=True)
class Load:
    """What one step asks of one rank.

    Attributes:
        tokens: predicted ones.
        flops_per_token: of matrix products, forward and backward.
        peak: FLOP/s of the device at best, where that is known.
    """

    tokens: float
    flops_per_token: float
    peak: float | None = None


class Profiler:
    """Profiles steps wait + 1 .. wait + steps of an attempt, or all from wait + 1 on where steps is -1.

    `begin_step` and `record` are called for every step; what they return is where a profile has been written to, once,
    when it is complete.
    """

    def __init__(self, spec: ProfilerSpec, attempt_dir: Path, rank: int, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._folder = attempt_dir / PROFILE
        self._trace_path = self._folder / f"rank{rank}.json.gz"
        self._lines_path = self._folder / f"rank{rank}.jsonl"
        self._begun = self._recorded = 0  # steps of this attempt
        self._trace: profile | None = None
        self._lines: JsonLines | None = None

    @property
    def wants_steps(self) -> bool:
        """Whether a step should be recorded as soon as it has been measured."""
        return self._spec.active and not self._spec.heavy and not self._is_after(self._recorded + 1)

    def begin_step(self) -> Path | None:
        """A step begins now."""
        if not self._spec.active or not self._spec.heavy:
            return None
        self._begun += 1
        written = None
        if self._trace is not None and self._is_after(self._begun):
            written = self.close()
        if self._begun == self._spec.wait + 1 and self._spec.steps:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._folder.mkdir(exist_ok=True)
            self._trace = profile(activities=activities, record_shapes=True)
            self._trace.start()
        return written

    def record(self, times: Iterable[StepTime], load: Load) -> Path | None:
        """Steps that have been measured."""
        if not self.wants_steps:
            return None
        written = None
        for each in times:
            self._recorded += 1
            if self._recorded <= self._spec.wait or self._is_after(self._recorded):
                continue
            if self._lines is None:
                self._lines = JsonLines(self._lines_path)
            self._lines.write(self._figures(each, load))
            if self._is_after(self._recorded + 1):
                written = self.close()
        return written

    def close(self) -> Path | None:
        """End a profile that has begun."""
        if self._trace is not None:
            trace, self._trace = self._trace, None
            trace.stop()
            trace.export_chrome_trace(str(self._trace_path))
            return self._trace_path
        if self._lines is not None:
            self._lines.close()
            self._lines = None
            return self._lines_path
        return None

    def _is_after(self, number: int) -> bool:
        return self._spec.steps >= 0 and number > self._spec.wait + self._spec.steps

    def _figures(self, each: StepTime, load: Load) -> dict[str, Any]:
        tokens = load.tokens / max(each.total, 1e-9)
        flops = tokens * load.flops_per_token
        figures: dict[str, Any] = {"step": each.step, "seconds": each.total}
        figures |= {f"time_{phase}": seconds for phase, seconds in each.seconds.items()}
        figures |= {"tokens_per_second": tokens, "flops_per_second": flops}
        if load.peak is not None:
            figures["mfu"] = flops / load.peak
        figures["memory"] = memory_in_use(self._device)
        if self._device.type == "cuda":
            figures["memory_reserved"] = torch.cuda.max_memory_reserved(self._device) / GIB
        return figures
