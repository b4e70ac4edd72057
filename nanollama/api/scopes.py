"""What a token allows: scopes, and which of them a need is met by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

READ: Final = "read"
SUBMIT: Final = "submit"
WORKER: Final = "worker"
ADMIN: Final = "admin"
POOL_PREFIX: Final = f"{WORKER}:"
MAX_POOL_CHARS: Final = 500


def check_scope(scope: str) -> str:
    """The scope as it is stored.

    Raises:
        ValueError: a word that is no scope.
    """
    pool = scope.removeprefix(POOL_PREFIX)
    if scope in (READ, SUBMIT, ADMIN) or (pool != scope and 0 < len(pool) <= MAX_POOL_CHARS and pool.isprintable()):
        return scope
    raise ValueError(f"{scope[:60]!r} is not a scope; use read, submit, admin or worker:<pool>")


def allows(scopes: Iterable[str], needed: str) -> bool:
    """Whether scopes meet a need: read, submit, worker (of any pool), worker:<pool> or admin.

    admin allows everything, and submit allows to read; a worker's token is for the work alone.
    """
    return any(
        scope in (ADMIN, needed)
        or (scope == SUBMIT and needed == READ)
        or (needed == WORKER and scope.startswith(POOL_PREFIX))
        for scope in scopes
    )
