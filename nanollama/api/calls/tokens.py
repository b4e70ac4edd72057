"""Access tokens."""

from __future__ import annotations

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport, parse_replies, parse_reply, segment
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import SpecError, parse


class TokenCalls(Transport):
    """Access tokens."""

    def create_token(self, name: str, scopes: list[str], *, expires_in_days: float | None = None) -> schemas.NewToken:
        """Make a token; the answer holds the secret, which is shown this once. Raises InvalidRequest."""
        given = {"name": name, "scopes": scopes, "expires_in_days": expires_in_days}
        try:
            body = parse(schemas.TokenCreate, given)
        except SpecError as error:
            raise InvalidRequest("the token is invalid", error.problems) from None
        return parse_reply(self._call("POST", "/tokens", body=body), schemas.NewToken)

    def tokens(self) -> list[schemas.Token]:
        """Every token, newest first, without secrets."""
        return parse_replies(self._call("GET", "/tokens"), schemas.Token)

    def revoke_token(self, token_id: str) -> schemas.Token:
        """Let a token be good for nothing from now on."""
        reply = self._call("DELETE", f"/tokens/{segment(token_id)}", idempotent=True)
        return parse_reply(reply, schemas.Token)
