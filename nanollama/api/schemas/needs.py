"""What runs need of a worker, and how often they are tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from nanollama.api.schemas.base import Label, Request


class Resources(Request):
    """What each run needs; what is not asked for is not looked at."""

    executor: Literal["local", "slurm", "fake"] | None = None
    accelerators: int = Field(default=0, ge=0, le=10_000)
    cpus: int = Field(default=0, ge=0, le=100_000)
    memory_gb: float = Field(default=0, ge=0, le=1e6)
    labels: list[Annotated[Label, Field(max_length=64)]] = Field(
        default=[], max_length=32, description="each has to be one of the worker's"
    )

    @classmethod
    def stored(cls, data: Mapping[str, Any]) -> Resources:
        """What was stored, perhaps by another version: keys that this one does not know are passed over."""
        return cls.model_validate({key: value for key, value in data.items() if key in cls.model_fields})


class Budgets(Request):
    """How often a run is tried again by itself, from its checkpoints."""

    retries: int = Field(default=0, ge=0, le=1000, description="attempts that may fail without ending the run")
    max_interruptions: int | None = Field(
        default=None, ge=0, le=1_000_000, description="attempts that may be interrupted; any number when absent"
    )
