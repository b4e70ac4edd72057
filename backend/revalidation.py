"""Tells whoever has an answer that it still holds, without building it again: nothing was committed since."""

from __future__ import annotations

import threading
from collections import OrderedDict
from datetime import timedelta

from fastapi import Depends, Request
from starlette.responses import Response

from backend.deps import ContextDep
from nanollama.api.filters import parse_filter
from nanollama.spec.base import SpecError

REMEMBERED = 1000
TAG_HEADERS = {"Cache-Control": "private, no-cache"}


class Answers:
    """By question, the tag of the newest answer, and the version of the database from before it was built."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def remember(self, question: str, version: str, tag: str) -> None:
        """Note an answer."""
        with self._lock:
            self._known[question] = version, tag
            self._known.move_to_end(question)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def tag(self, question: str, version: str) -> str | None:
        """The tag of what would be answered now, if that is known."""
        with self._lock:
            known = self._known.get(question)
        return known[1] if known is not None and known[0] == version else None


class NotModified(Exception):
    """The caller has the answer already."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.tag = tag


async def not_modified(_request: Request, error: Exception) -> Response:
    """The response for it."""
    assert isinstance(error, NotModified)
    return Response(status_code=304, headers=TAG_HEADERS | {"ETag": error.tag})


def tags_of(header: str) -> set[str]:
    """The tags in If-None-Match."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def question_of(request: Request) -> str:
    """What an answer depends on, besides the database."""
    return f"{request.headers.get('accept', '')} {request.url.path}?{request.url.query}"


def _check(request: Request, context: ContextDep) -> None:
    """Raises NotModified.

    The version is read before the answer is built, so that a commit in between makes the tag too old, never too new.
    """
    if _knows_ages(request.query_params.get("filter")):
        return
    version = context.database.version()
    request.state.version = version
    answers: Answers = request.app.state.answers
    tag = answers.tag(question_of(request), version)
    if tag is not None and tag in tags_of(request.headers.get("if-none-match", "")):
        raise NotModified(tag)


def _knows_ages(text: str | None) -> bool:
    """Whether time alone changes what a filter matches."""
    try:
        return any(isinstance(value, timedelta) for term in parse_filter(text or "") for value in term.values)
    except SpecError:
        return True


Revalidated = Depends(_check)
"""For the endpoints whose answers follow from path, query and database alone, and not from the time or files."""
