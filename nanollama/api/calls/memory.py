"""Answers that the service has tagged, kept so that it need not send them again while they hold."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import httpx

MAX_ANSWERS, MAX_BYTES = 64, 16 << 20

Question = tuple[str, str]
"""Path and query."""


class Memory:
    """The newest answers, least recently used out first. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: OrderedDict[Question, httpx.Response] = OrderedDict()
        self._bytes = 0

    def get(self, question: Question) -> httpx.Response | None:
        """The answer that is known."""
        with self._lock:
            known = self._answers.get(question)
            if known is not None:
                self._answers.move_to_end(question)
            return known

    def keep(self, question: Question, reply: httpx.Response) -> None:
        """Remember an answer, if it has a tag and is not too large."""
        if "ETag" not in reply.headers or len(reply.content) > MAX_BYTES // 4:
            return
        with self._lock:
            before = self._answers.pop(question, None)
            self._bytes += len(reply.content) - (len(before.content) if before is not None else 0)
            self._answers[question] = reply
            while len(self._answers) > MAX_ANSWERS or self._bytes > MAX_BYTES:
                self._bytes -= len(self._answers.popitem(last=False)[1].content)


def question(path: str, params: Mapping[str, str | int | float | Sequence[str]] | None) -> Question:
    """What an answer is remembered by."""
    return path, str(httpx.QueryParams(params))
