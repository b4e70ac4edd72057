"""`python -m backend token`: tokens of a database that this machine reaches, the first one included."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pydantic import BaseModel

from backend.auth.service import TokenService
from backend.database import Database
from backend.deps import utc_now
from nanollama.api.errors import NotFound
from nanollama.api.schemas import NewToken, Token, TokenCreate
from nanollama.spec.base import SpecError, parse

EXIT_BAD_INPUT = 2


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to those of `python -m backend`."""
    token = commands.add_parser("token", help="make, list and revoke access tokens")
    actions = token.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", parents=[common], help="make a token; its secret is shown this once")
    create.add_argument("name", help="whom or what it is for")
    create.add_argument(
        "--scope", action="append", required=True, help="read, submit, admin or worker:<pool>; may be repeated"
    )
    create.add_argument("--expires-in-days", type=float, help="never when absent")
    listing = actions.add_parser("list", parents=[common], help="list tokens, newest first; never their secrets")
    revoke = actions.add_parser("revoke", parents=[common], help="let a token be good for nothing from now on")
    revoke.add_argument("id", help="id of the token, as `list` shows it")
    for action in (create, listing, revoke):
        action.add_argument("--json", action="store_true", help="print JSON for programs")


def run(database: Database, given: argparse.Namespace) -> int:
    """Carry out a command on a database at the newest schema; the exit code."""
    try:
        if given.action == "list":
            with database.read() as session:
                _show(TokenService(session, utc_now()).all(), as_json=given.json)
            return 0
        with database.write() as session:
            service = TokenService(session, utc_now())
            answer = service.revoke(given.id) if given.action == "revoke" else service.create(_wanted(given))
    except (SpecError, NotFound) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    _show(answer, as_json=given.json)
    return 0


def _wanted(given: argparse.Namespace) -> TokenCreate:
    """Raises SpecError."""
    fields = {"name": given.name, "scopes": given.scope, "expires_in_days": given.expires_in_days}
    return parse(TokenCreate, fields)


def _show(answer: BaseModel | list[Token], *, as_json: bool) -> None:
    tokens = answer if isinstance(answer, list) else [answer]
    if as_json:
        plain = [token.model_dump(mode="json") for token in tokens]
        print(json.dumps(plain if isinstance(answer, list) else plain[0]))
        return
    for token in tokens:
        assert isinstance(token, Token)
        if isinstance(token, NewToken):  # alone on standard output, for TOKEN=$(…)
            print(f"{token.id}  {_line(token)}; its secret is shown this once:", file=sys.stderr)
            print(token.secret)
        else:
            print(f"{token.id}  {_line(token)}")


def _line(token: Token) -> str:
    states = [
        f"{word} {at:%Y-%m-%d %H:%M} UTC"
        for word, at in (("expires", token.expires_at), ("revoked", token.revoked_at), ("used", token.last_used_at))
        if at is not None
    ]
    return ", ".join([f"{token.name}: {' '.join(token.scopes)}", *states])
