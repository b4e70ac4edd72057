"""Frozen base model of every config, and validation that reports every problem at once with its dotted path."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class Spec(BaseModel):
    """A config section: immutable, strict about types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Problem(BaseModel):
    """One thing that is wrong with a config: where, what, and how to mend it. Lines and columns count from 1."""

    path: str
    message: str
    remedy: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = self.path or "config"
        if self.line is not None:
            place += f" (line {self.line}, column {self.column})" if self.column is not None else f" (line {self.line})"
        return f"{place}: {self.message}" + (f" - {self.remedy}" if self.remedy else "")


class Note(BaseModel):
    """Something that the reader of a config should know though nothing is wrong: a key that has moved, or is idle."""

    model_config = ConfigDict(frozen=True)

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class SpecError(ValueError):
    """A config that cannot be used; `problems` holds every reason that was found, never only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Problems(ValueError):
    """Raised inside a validator to report several problems, with paths relative to the model being validated."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


SpecT = TypeVar("SpecT", bound=BaseModel)


def parse(model: type[SpecT], data: Any) -> SpecT:
    """Validate `data` as `model`.

    Raises:
        SpecError: with every problem, each at its dotted path, and a suggestion for a misspelt key.
    """
    if not isinstance(data, Mapping):
        found = "an empty document" if data is None else f"a {type(data).__name__}"
        raise SpecError([Problem(path="", message=f"expected a mapping of keys to values, found {found}")])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SpecError(_problems(model, data, error)) from None


def canonical_json(spec: BaseModel) -> str:
    """The spec as JSON with sorted keys and no white space: equal specs give equal text on every machine."""
    return _canonical(spec.model_dump(mode="json"))


def content_hash(spec: BaseModel) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hash_data(spec.model_dump(mode="json"))


def hash_data(data: Mapping[str, Any]) -> str:
    """As content_hash, of a spec that has been made plain data."""
    return hashlib.sha256(_canonical(data).encode()).hexdigest()


def _canonical(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """A remedy for a misspelt word: the nearest choice, or the list of choices when none is near."""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(sorted(choices)[:30]) if choices else "remove it"


def _problems(model: type[BaseModel], data: Any, error: ValidationError) -> list[Problem]:
    problems = []
    for item in error.errors(include_url=False):
        path, owners = _locate(model, data, item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Problems):
            problems += [p.model_copy(update={"path": ".".join(filter(None, [path, p.path]))}) for p in cause.problems]
            continue
        problems.append(_problem(path, owners, item))
    return problems


def _problem(path: str, owners: list[type[BaseModel]], item: Any) -> Problem:
    name = path.rsplit(".", 1)[-1]
    if item["type"] == "extra_forbidden":
        choices = sorted({field for owner in owners for field in owner.model_fields})
        return Problem(path=path, message="unknown key", remedy=did_you_mean(name, choices))
    if item["type"] == "missing":
        return Problem(path=path, message="this key is required", remedy=f"add `{name}:`")
    value = item["input"]
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if item["type"] in ("model_type", "model_attributes_type"):
        message = "should be a section of `key: value` lines"
    remedy = _remedy(item["type"], value)
    if item["type"] == "string_pattern_mismatch":
        message = "is not accepted here"
        described = [owner.model_fields[name].description for owner in owners if name in owner.model_fields]
        remedy = (
            f"it is the {described[0]}" if described and described[0] else f"it should match {item['ctx']['pattern']}"
        )
    if not isinstance(value, Mapping):
        message += f", found {'nothing' if value is None else _short(value)}"
    return Problem(path=path, message=message[0].lower() + message[1:], remedy=remedy)


def _remedy(kind: str, value: Any) -> str | None:
    if kind.startswith("bool"):
        return "write true or false"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if kind == "finite_number" or (isinstance(value, str) and value.lower().lstrip("+-.") in ("nan", "inf")):
        return "write a finite number"
    if kind in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
        return "write the number without quotes"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _locate(model: type[BaseModel], data: Any, loc: Sequence[str | int]) -> tuple[str, list[type[BaseModel]]]:
    """The dotted path of a pydantic location, without the tags of unions, and the models that own its last key."""
    path: list[str] = []
    owners: list[type[BaseModel]] = [model]
    parents = owners
    for i, part in enumerate(loc):
        present = part in data if isinstance(data, Mapping) else isinstance(part, int) and isinstance(data, list)
        tagged = [o for o in owners if part in _tags(o)]
        if not present and tagged:
            owners = parents = tagged
            continue
        path.append(str(part))
        parents = owners
        if isinstance(part, str):
            owners = [m for o in owners if part in o.model_fields for m in _models(o.model_fields[part].annotation)]
        if present:
            data = data[part]
        elif i < len(loc) - 1:
            data = None
    return ".".join(path), parents


def _tags(model: type[BaseModel]) -> set[str]:
    tags = set(getattr(model, "union_tags", ()))
    for field in model.model_fields.values():
        tags.update(a for a in get_args(field.annotation) if isinstance(a, str))
    return tags


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in get_args(annotation) for m in _models(arg)]
