"""The service itself."""

from __future__ import annotations

from datetime import datetime
from email.utils import parsedate_to_datetime

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport, parse_reply
from nanollama.api.errors import Unavailable


class ServiceCalls(Transport):
    """The service itself."""

    def health(self) -> schemas.Health:
        """Whether the service answers."""
        return self._get("/health", schemas.Health)

    def ready(self) -> schemas.Health:
        """Whether the service can work: its database answers and has the schema that it needs. Raises Unavailable."""
        return parse_reply(self._call("GET", "/health/ready"), schemas.Health)

    def server_time(self) -> datetime:
        """The clock of the service's machine, to a second. Raises Unavailable when the answer has none."""
        reply = self._call("GET", "/health", headers={"Cache-Control": "no-cache"})
        try:
            return parsedate_to_datetime(reply.headers["Date"])
        except (KeyError, ValueError) as error:
            raise Unavailable(f"{self.url} does not say what time it has") from error
