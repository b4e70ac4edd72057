"""Parts of the project that are installed only where they are wanted."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from nanollama.spec.base import Problem, SpecError

TELLING: Final = {"train": "torch", "server": "alembic", "worker": "psutil", "dashboard": "streamlit"}
"""Extra of the project, and a module that is there only with it."""


def need(*extras: str) -> None:
    """Go on if parts of the project are installed.

    Raises:
        SpecError: one is not, and how it is installed.
    """
    missing = [extra for extra in extras if find_spec(TELLING[extra]) is None]
    if missing:
        message = f"{', '.join(TELLING[extra] for extra in missing)} is not installed here"
        remedy = f"pip install 'nodes-to-narratives[{','.join(missing)}]'"
        raise SpecError([Problem(path="install", message=message, remedy=remedy)])
