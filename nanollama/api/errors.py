"""Errors of the API: the code on the wire and the exception that the client raises for it."""

from __future__ import annotations

from collections.abc import Sequence

from nanollama.spec.base import Problem


class ApiError(Exception):
    """An answer of the service that is not a success. `code` is stable and meant for programs, `detail` for people."""

    status = 500
    code = "internal"

    def __init__(self, detail: str, problems: Sequence[Problem] = (), *, expected_offset: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problems = tuple(problems)
        self.expected_offset = expected_offset

    def __str__(self) -> str:
        if [problem.message for problem in self.problems] == [self.detail]:
            return str(self.problems[0])
        return "\n".join([self.detail, *(f"  {problem}" for problem in self.problems)])


class InvalidRequest(ApiError):
    """The request or the spec in it is invalid; `problems` holds every reason."""

    status, code = 422, "invalid"


class NotFound(ApiError):
    """No such resource."""

    status, code = 404, "not_found"


class Conflict(ApiError):
    """The resource's state does not allow this."""

    status, code = 409, "conflict"


class AlreadySucceeded(ApiError):
    """Runs of the submission would learn what earlier ones have learnt; `problems` names both. Nothing was created."""

    status, code = 409, "already_succeeded"


class StaleEpoch(ApiError):
    """The caller's lease is gone: another worker, or a later life of this one, holds the attempt."""

    status, code = 409, "stale_epoch"


class OffsetMismatch(ApiError):
    """Bytes beyond the end of a stream; `expected_offset` is where the next ones belong."""

    status, code = 416, "offset_mismatch"


class TooLarge(ApiError):
    """The body exceeds a limit."""

    status, code = 413, "too_large"


class Unauthorized(ApiError):
    """The service asks for a token, and there was none that it accepts."""

    status, code = 401, "unauthorized"


class Forbidden(ApiError):
    """The caller may not do this."""

    status, code = 403, "forbidden"


class TooManyRequests(ApiError):
    """The caller asks more often, or for more at once, than the service allows."""

    status, code = 429, "too_many_requests"


class Unavailable(ApiError):
    """The service cannot be reached, or answered with something that is not ours."""

    status, code = 503, "unavailable"


ERRORS: dict[str, type[ApiError]] = {
    error.code: error
    for error in (
        InvalidRequest,
        NotFound,
        Conflict,
        AlreadySucceeded,
        StaleEpoch,
        OffsetMismatch,
        TooLarge,
        Unauthorized,
        Forbidden,
        TooManyRequests,
        Unavailable,
        ApiError,
    )
}
"""Exception by code."""
