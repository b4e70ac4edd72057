"""What all requests and responses are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from nanollama.spec.base import Problem
from nanollama.spec.rundir import decode_number, encode_number

_WORDS = ("NaN", "Infinity", "-Infinity")


Number = Annotated[
    float,
    BeforeValidator(decode_number, json_schema_input_type=float | Literal["NaN", "Infinity", "-Infinity"]),
    PlainSerializer(encode_number, return_type=float | str, when_used="json"),
]
"""A float that survives JSON: NaN, Infinity and -Infinity travel as words."""


Label = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""One line of text that is not empty."""


class Request(BaseModel):
    """Input: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Response(BaseModel):
    """Output: readers ignore keys that a newer server added."""

    model_config = ConfigDict(extra="ignore")


class ErrorBody(Response):
    """application/problem+json (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    problems: list[Problem] = []
    expected_offset: int | None = None


Numbers = Annotated[
    list[float], WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "number"}, {"enum": list(_WORDS)}]}})
]
"""A column of such floats; the model that has it says so in its `ser_json_inf_nan`."""
