"""The service itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nanollama.api.schemas.base import Response


class Health(Response):
    """Liveness."""

    status: Literal["ok"] = "ok"
    version: str
    database: str = Field(description="sqlite or postgresql")
