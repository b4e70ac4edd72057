"""Every answer that is not a success: application/problem+json (RFC 9457) with a code, problems and a remedy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import IntegrityError, OperationalError, TimeoutError  # noqa: A004 - the pool's own
from starlette.exceptions import HTTPException

from backend.columns import dump_json
from nanollama.api import schemas
from nanollama.api.errors import ApiError, Conflict, InvalidRequest, NotFound, TooLarge, TooManyRequests, Unavailable
from nanollama.spec.base import Problem, did_you_mean

MEDIA_TYPE = "application/problem+json"

_JSON_NAMES = {list: "list", str: "string", int: "number", float: "number", bool: "boolean"}

logger = logging.getLogger(__name__)


def problem_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """The error as a response."""
    return _response(
        error.status,
        error.code,
        error.detail,
        problems=error.problems,
        expected_offset=error.expected_offset,
        headers=headers,
    )


def install_error_handlers(app: FastAPI) -> None:
    """Map every exception that can leave an endpoint to a problem."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(TimeoutError, _database_error)
    app.add_exception_handler(IntegrityError, _integrity_error)
    app.add_exception_handler(Exception, _bug)


def _response(
    status: int,
    code: str,
    detail: str,
    *,
    problems: Sequence[Problem] = (),
    expected_offset: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = schemas.ErrorBody(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        problems=list(problems),
        expected_offset=expected_offset,
    )
    return Response(dump_json(body.model_dump()), status, headers=headers, media_type=MEDIA_TYPE)


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return problem_response(error, {"Retry-After": "5"} if isinstance(error, TooManyRequests) else None)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    keys = _body_keys(request)
    content_type = request.headers.get("content-type", "")
    problems = [_body_problem(item, keys, content_type) or _request_problem(item, keys) for item in error.errors()]
    first = "; ".join(str(problem) for problem in problems[:3])
    return problem_response(InvalidRequest(f"the request is invalid: {first}", problems))


def _body_problem(item: Mapping[str, Any], keys: Sequence[str], content_type: str) -> Problem | None:
    """What is wrong with the body as a whole; None when it is something else."""
    if item["type"] == "json_invalid":
        place = f"at character {item['loc'][-1]}: {item['ctx']['error']}"
        return Problem(path="body", message=f"this is not JSON {place}", remedy="check the quotes and commas")
    if tuple(item["loc"]) != ("body",) or item["type"] == "value_error":
        return None
    remedy = f"its keys: {', '.join(keys)}" if keys else None
    found = item.get("input")
    if isinstance(found, bytes):
        message = (
            f"expected JSON, found {f'the content type {content_type[:80]!r}' if content_type else 'no content type'}"
        )
        return Problem(path="body", message=message, remedy="send the header Content-Type: application/json")
    name = "nothing" if found is None else f"a {_JSON_NAMES.get(type(found), 'value')}"
    return Problem(path="body", message=f"expected a JSON object, found {name}", remedy=remedy)


def _request_problem(item: Mapping[str, Any], keys: Sequence[str]) -> Problem:
    kind, message = str(item["type"]), str(item["msg"]).removeprefix("Value error, ")
    where, *rest = item["loc"]
    path = ".".join(str(part) for part in rest)
    if kind == "missing":
        place = f"{where} parameter" if where != "body" else "key"
        return Problem(path=path, message=f"this {place} is required")
    if kind == "extra_forbidden":
        remedy = did_you_mean(str(rest[-1]), keys) if len(rest) == 1 else "remove it"
        return Problem(path=path, message="unknown key", remedy=remedy)
    message = message.replace("Input should", "should")
    value = item.get("input")
    if isinstance(value, str | int | float | bool) and kind != "value_error":
        text = repr(value)
        message += f", found {text if len(text) <= 80 else text[:77] + '...'}"
    return Problem(path=path, message=message[:1].lower() + message[1:])


def _body_keys(request: Request) -> list[str]:
    """The keys that the body of this endpoint may have."""
    endpoint = request.scope.get("endpoint")
    hints = get_type_hints(endpoint).values() if endpoint else ()
    models = [hint for hint in hints if isinstance(hint, type) and issubclass(hint, schemas.Request)]
    return [key for model in models for key in model.model_fields]


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem_response(NotFound(f"there is nothing at {request.url.path}; /docs lists what there is"))
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return problem_response(_unreadable(error))
    detail = str(error.detail)
    if error.status_code == TooLarge.status:
        return problem_response(TooLarge(detail))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible at {request.url.path}"
    return _response(error.status_code, InvalidRequest.code, detail, headers=error.headers)


def _unreadable(error: HTTPException) -> InvalidRequest:
    """FastAPI could not read the body, and keeps why as the cause."""
    reasons = {UnicodeDecodeError: "it is not UTF-8", RecursionError: "it is nested too deeply"}
    reason = reasons.get(type(error.__cause__), "it ended early")
    problem = Problem(path="body", message=f"expected JSON, but {reason}", remedy="send a JSON object as UTF-8")
    return InvalidRequest(f"the request is invalid: {problem}", [problem])


async def _database_error(_request: Request, error: Exception) -> Response:
    logger.error("the database did not answer: %s", error)
    return problem_response(
        Unavailable("the database is not available at the moment; try again"), headers={"Retry-After": "1"}
    )


async def _integrity_error(_request: Request, error: Exception) -> Response:
    logger.warning("conflicting write: %s", error)
    return problem_response(Conflict("this conflicts with another request; look at the current state and try again"))


async def _bug(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("state", {}).get("request_id")
    logger.error("request %s failed: %s %s: %r", request_id, request.method, request.url.path, error)
    return problem_response(
        ApiError(f"the service failed to answer; this is a fault of ours, see its log for the request {request_id}")
    )
