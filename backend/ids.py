"""Ids that sort by time and can be read out: a letter, then 9 characters of time and 5 at random."""

from __future__ import annotations

import re
import secrets
import threading
from datetime import datetime

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_RANDOM_BITS = 25
_LENGTH = 14

_ID = re.compile(rf"[a-z][{ALPHABET}]{{{_LENGTH}}}")

_lock = threading.Lock()
_last = 0


def new_id(prefix: str, now: datetime) -> str:
    """An id that is greater than every earlier one of this process, whatever the clock does."""
    global _last  # noqa: PLW0603 - the order of ids is a property of the process
    with _lock:
        value = (int(now.timestamp() * 1000) << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
        _last = value = max(value, _last + 1)
    digits = (ALPHABET[(value >> 5 * i) & 31] for i in reversed(range(_LENGTH)))
    return prefix + "".join(digits)


def is_id(prefix: str, text: str) -> bool:
    """Whether the text has the form of an id with that prefix."""
    return text.startswith(prefix) and _ID.fullmatch(text) is not None
