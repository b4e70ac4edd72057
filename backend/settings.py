"""Settings of the service, from arguments and the environment."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

DEFAULT_DATABASE_URL = "sqlite:///.n2n/n2n.sqlite"
ENVIRONMENT = {
    "N2N_DATABASE_URL": "database_url",
    "N2N_HOST": "host",
    "N2N_PORT": "port",
    "N2N_LOG_LEVEL": "log_level",
    "N2N_LOG_FORMAT": "log_format",
    "N2N_TOKENS": "tokens",
    "N2N_RUN_ROOTS": "run_roots",
}
"""Setting by environment variable; an argument wins over it."""


class SettingsError(ValueError):
    """Settings that cannot be used, as one line that names the remedy."""


class LeaseTerms(BaseModel):
    """How long a worker may be silent, and how often it should speak; seconds."""

    model_config = ConfigDict(frozen=True)

    lease_seconds: float = Field(gt=0)
    heartbeat_seconds: float = Field(gt=0)


class Settings(BaseModel):
    """Everything that the service can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: str = DEFAULT_DATABASE_URL
    tokens: bool = Field(default=False, description="every request but health needs an access token")
    host: str = "127.0.0.1"
    port: int = Field(default=8420, ge=0, le=65535, description="0: any free one")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    log_format: Literal["text", "json"] = Field(default="text", description="of lines on standard error")
    local_terms: LeaseTerms = LeaseTerms(lease_seconds=90, heartbeat_seconds=20)
    slurm_terms: LeaseTerms = LeaseTerms(lease_seconds=300, heartbeat_seconds=60)
    upload_seconds: float = Field(default=1, gt=0, description="pause between two uploads of a stream, when idle")
    uploads_per_second: float = Field(default=50, gt=0, description="uploads over all attempts before the pause grows")
    poll_seconds: float = Field(
        default=1, gt=0, description="how often a waiting sync looks for what other server processes did"
    )
    requests_per_second: float = Field(default=100, gt=0, description="of one token, where tokens are on")
    heartbeat_seconds: float = Field(default=15, gt=0, description="between two signs of life of an event stream")
    stall_seconds: float = Field(default=30, gt=0, description="after which a client that takes nothing is let go")
    max_stream_bytes: int = Field(default=256 << 20, ge=1024, description="kept of each stream; the rest is counted")
    run_roots: tuple[Path, ...] = Field(default=(), description="folders of workers whose checkpoints it may touch")
    max_body_bytes: int = Field(default=8 << 20, ge=1024)
    max_import_bytes: int = Field(default=2 << 30, ge=1024, description="of an archive, packed and unpacked")

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str, info: ValidationInfo) -> str:
        if not is_loopback(host) and not info.data.get("tokens", False):
            raise ValueError(
                f"refusing to listen on '{host}': without access tokens anyone who reaches the port could start runs; "
                "add --tokens, or use 127.0.0.1 and an SSH tunnel"
            )
        return host

    @field_validator("run_roots", mode="before")
    @classmethod
    def _absolute(cls, roots: Any) -> Any:
        """From the environment they come as one text, separated by colons."""
        parts = [part for part in roots.split(os.pathsep) if part] if isinstance(roots, str) else list(roots)
        for part in parts:
            if not Path(part).is_absolute() or ".." in Path(part).parts:
                raise ValueError(f"'{part}' is not an absolute path; name the run root as the worker has it")
        return parts

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: str) -> str:
        parse_database_url(url)
        return url

    def terms(self, executor: str) -> LeaseTerms:
        """The lease terms of a worker with that executor."""
        return self.slurm_terms if executor == "slurm" else self.local_terms


def load_settings(environment: Mapping[str, str], **arguments: Any) -> Settings:
    """Settings from the environment, overridden by the arguments that are not None.

    Raises:
        SettingsError: with the first problem, as one line.
    """
    values = {field: environment[name] for name, field in ENVIRONMENT.items() if environment.get(name)}
    values |= {name: value for name, value in arguments.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, arguments) from None


def _refusal(error: ValidationError, arguments: Mapping[str, Any]) -> SettingsError:
    """The first problem, by the name under which the value was given."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])
    variable = next((name for name, known in ENVIRONMENT.items() if known == field), None)
    given = arguments.get(field) is not None or variable is None
    place = f"--{field.replace('_', '-')}" if given else f"${variable}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":  # ours say what they have found, and keep passwords to themselves
        message = message.replace("Input should", "should")
        for long, short in (("less than or equal to", "at most"), ("greater than or equal to", "at least")):
            message = message.replace(long, short)
        message += f", found {first['input']}"
    return SettingsError(f"{place}: {message}")


def parse_database_url(text: str) -> URL:
    """The URL with our driver for Postgres.

    Raises:
        ValueError: not a URL, or not of SQLite or Postgres; the message never holds a password.
    """
    example = "use sqlite:///path/to/n2n.sqlite or postgresql://user@host/name"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"this is not a database URL; {example}") from None
    name = url.drivername
    if name in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if name in ("sqlite", "sqlite+pysqlite"):
        if url.database in (None, "", ":memory:") or "mode=memory" in text:
            raise ValueError("a database in memory would be lost, and each connection would see its own; " + example)
        return url
    raise ValueError(f"'{name}' is not supported; {example}")


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
