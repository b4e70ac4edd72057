"""Configs, checked by the service."""

from __future__ import annotations

from typing import Any

from nanollama.api import schemas
from nanollama.api.calls.transport import SWEEP_SECONDS, Transport, parse_replies, parse_reply


class SpecCalls(Transport):
    """Configs, checked by the service."""

    def templates(self) -> list[schemas.Template]:
        """Configs that ship with the project."""
        reply = self._call("GET", "/templates")
        return parse_replies(reply, schemas.Template)

    def validate(self, *, yaml: str | None = None, config: dict[str, Any] | None = None) -> schemas.Validation:
        """Every problem of a spec, at once; nothing is stored."""
        body = schemas.SpecInput(yaml=yaml, config=config)
        timeout = max(self._timeout, SWEEP_SECONDS)
        reply = self._call("POST", "/specs/validate", body=body, timeout=timeout, idempotent=True)
        return parse_reply(reply, schemas.Validation)
