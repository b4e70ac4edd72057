"""Typed synchronous client of the REST API: timeouts, retries where a repetition is harmless, typed errors."""

from __future__ import annotations

from nanollama.api.calls.archive import ArchiveCalls
from nanollama.api.calls.catalogue import CatalogueCalls
from nanollama.api.calls.checkpoints import CheckpointCalls
from nanollama.api.calls.experiments import ExperimentCalls
from nanollama.api.calls.metrics import MetricCalls
from nanollama.api.calls.queue import QueueCalls
from nanollama.api.calls.runs import RunCalls
from nanollama.api.calls.service import ServiceCalls
from nanollama.api.calls.specs import SpecCalls
from nanollama.api.calls.streams import StreamCalls
from nanollama.api.calls.tokens import TokenCalls
from nanollama.api.calls.transport import DEFAULT_URL, server_url
from nanollama.api.calls.workers import WorkerCalls

__all__ = ["DEFAULT_URL", "Client", "server_url"]


class Client(
    SpecCalls,
    ExperimentCalls,
    CatalogueCalls,
    RunCalls,
    CheckpointCalls,
    ArchiveCalls,
    MetricCalls,
    StreamCalls,
    WorkerCalls,
    QueueCalls,
    TokenCalls,
    ServiceCalls,
):
    """A connection to the service. Safe to share between threads; to be closed, or used as a context manager."""
