"""What all viewers share: answers that have not changed, and what was made of them.

An answer is read anew at every tick, and is seldom another than before. `steady` gives the earlier object in place of
an equal one, so that `once` makes something of it only when there is something new. What comes from here belongs to
everybody: nobody changes it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, TypeVar

IDLE_SECONDS = 60.0
"""Nobody looks any more at what was not asked for in that time."""
MAX_KEPT = 8192

T = TypeVar("T")


class _Slot:
    """One thing that is kept, what it was made of, and when it was asked for last."""

    __slots__ = ("inputs", "lock", "used", "value")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inputs: tuple[object, ...] | None = None
        self.value: Any = None
        self.used = 0.0


_slots: OrderedDict[Hashable, _Slot] = OrderedDict()
_lock = threading.Lock()


def steady(key: Hashable, value: T) -> T:
    """The object that was given under this key before, if it equals the value; otherwise the value itself."""
    slot = _slot(("steady", key))
    with slot.lock:
        before = slot.value
        if before is not value and not (type(before) is type(value) and before == value):
            slot.value = value
        return slot.value  # type: ignore[no-any-return] # it equals the value


def once(key: Hashable, inputs: tuple[object, ...], build: Callable[[], T]) -> T:
    """What was built of these very objects before, or is built now.

    Several viewers that ask at once wait for the first of them.

    Args:
        key: what it is, with all that it depends on but the inputs.
        inputs: compared by identity.
        build: makes it of the inputs, and draws nothing.
    """
    slot = _slot(("once", key))
    with slot.lock:
        known = slot.inputs
        if known is None or len(known) != len(inputs) or any(a is not b for a, b in zip(known, inputs, strict=True)):
            slot.value = build()
            slot.inputs = inputs
        return slot.value  # type: ignore[no-any-return] # what build returned


def forget() -> None:
    """Keep nothing."""
    with _lock:
        _slots.clear()


def _slot(key: Hashable) -> _Slot:
    """The newest slot of a key, with those that are long idle, or too many, removed."""
    now = monotonic()
    with _lock:
        slot = _slots.get(key)
        if slot is None:
            slot = _slots[key] = _Slot()
        slot.used = now
        _slots.move_to_end(key)
        while len(_slots) > MAX_KEPT or next(iter(_slots.values())).used < now - IDLE_SECONDS:
            _slots.popitem(last=False)
        return slot
