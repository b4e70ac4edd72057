"""The service itself."""

from __future__ import annotations

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport


class ServiceCalls(Transport):
    """The service itself."""

    def health(self) -> schemas.Health:
        """Whether the service answers."""
        return self._get("/health", schemas.Health)
