"""What a worker agrees to run, whatever the service leases to it: only registered apps, and only some of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from nanollama.spec.base import Spec
from worker.executors.base import Attempt, Refused

_PATH_KEYS = ("path", "log_dir", "start_from")


class AllowSpec(Spec):
    """The section `allow`. What is absent is not limited."""

    apps: list[str] | None = Field(default=None, description="apps that may run")
    roots: list[str] | None = Field(
        default=None, description="folders that paths in configs may lead to, beside the run root"
    )


class Allowed:
    """The limits of a worker.

    Args:
        apps: names of the apps that may run; None for every one that is registered.
        roots: folders that paths in configs may lead to; None for any.
    """

    def __init__(self, apps: Sequence[str] | None = None, roots: Sequence[Path] | None = None) -> None:
        self._apps = None if apps is None else tuple(apps)
        self._roots = None if roots is None else tuple(root.resolve() for root in roots)

    def check(self, attempt: Attempt) -> None:
        """Look at an attempt before it is started.

        Raises:
            Refused: its app or a path in its config is beyond the limits.
        """
        if self._apps is not None and attempt.app not in self._apps:
            listed = ", ".join(self._apps) or "none"
            raise Refused(f"this worker does not run the app '{attempt.app}'; its allow.apps are: {listed}")
        if self._roots is None:
            return
        for key, text in _paths(attempt.config):
            # resolved: neither .. nor a link leads out. A job starts in another folder than this, so what a .. at the
            # beginning means there is not known here
            place = Path(text)
            leads_up = not place.is_absolute() and ".." in place.parts
            if leads_up or not any(place.resolve().is_relative_to(root) for root in self._roots):
                listed = ", ".join(map(str, self._roots)) or "none"
                raise Refused(f"{key}: '{text}' is not below one of the worker's allow.roots: {listed}")


def _paths(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every path in a config: what stands at a key that holds one, and whatever else is written as an absolute one."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _paths(value, f"{key}.{name}".lstrip("."))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from _paths(value, f"{key}.{i}")
    elif isinstance(config, str) and (key.rpartition(".")[2] in _PATH_KEYS or _looks_like_path(config)):
        yield key, config


def _looks_like_path(text: str) -> bool:
    return text.startswith(("/", "~")) or ".." in text.split("/")
