"""Read an archive and check all of it, before anything is stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from backend.archive.documents import (
    FORMAT,
    HEADER,
    MANIFEST,
    MAX_DOCUMENT,
    VERSION,
    AttemptDocument,
    ExperimentDocument,
    Header,
    Manifest,
    RunDocument,
    experiment_file,
    run_file,
    stream_file,
)
from backend.archive.tar import Member, read_members, refusal
from backend.catalogue.repository import BOUNDS
from backend.streams.names import check_name, metrics_rank
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import hash_data

_STREAM = re.compile(r"runs/(r[0-9a-z]{14})/([1-9]\d{0,8})/(.+)")

DocumentT = TypeVar("DocumentT", bound=BaseModel)


@dataclass
class Contents:
    """An archive whose every byte has been compared with its manifest."""

    header: Header
    experiments: dict[str, ExperimentDocument] = field(default_factory=dict)
    runs: dict[str, RunDocument] = field(default_factory=dict)
    digests: dict[str, tuple[int, str]] = field(default_factory=dict)

    def streams(self) -> Iterator[tuple[RunDocument, AttemptDocument, str]]:
        """Run, attempt and name of every stream."""
        for run in self.runs.values():
            for attempt in run.attempts:
                for name in attempt.streams:
                    yield run, attempt, name


def read_contents(file: IO[bytes], max_bytes: int, max_stream_bytes: int) -> Contents:
    """Read an archive, streams only to compare their digests.

    Raises:
        InvalidRequest: it is no archive, damaged, of a newer version, or contradicts itself.
        TooLarge: it is larger than it may be.
    """
    members = read_members(file, max_bytes)
    first = next(members, None)
    if first is None:
        raise refusal("the archive is empty")
    contents = Contents(_header(first))
    contents.digests[first.name] = (first.size, first.sha256())
    manifest: Manifest | None = None
    for member in members:
        if manifest is not None:
            raise refusal(f"the archive holds {member.name} behind {MANIFEST}, which is the last file")
        if member.name == MANIFEST:
            manifest = _parse(Manifest, member)
            continue
        _read_member(contents, member, max_stream_bytes)
        contents.digests[member.name] = (member.size, member.sha256())
    if manifest is None:
        raise refusal(f"the archive has no {MANIFEST}: it is cut off", remedy="copy or download it again")
    _check_digests(contents, manifest)
    for experiment in contents.experiments.values():
        if experiment.id == BOUNDS:
            raise refusal("the archive holds jobs of bounds, which are computed anew wherever they are asked for")
    for run in contents.runs.values():
        _check_run(contents, run)
    _check_streams(contents)
    return contents


def _header(member: Member) -> Header:
    if member.name != HEADER:
        raise refusal(f"the archive does not begin with {HEADER}: it is none of this service's")
    header = _parse(Header, member)
    if header.format != FORMAT:
        raise refusal(f"the archive is of the format {header.format[:40]!r}, not {FORMAT}")
    if header.version != VERSION:
        message = f"the archive is of version {header.version}, and this service reads version {VERSION}"
        raise refusal(message, remedy="update the older of the two services")
    return header


def _read_member(contents: Contents, member: Member, max_stream_bytes: int) -> None:
    """Take in a file; a stream is only measured."""
    kind, _, rest = member.name.partition("/")
    if kind == "experiments":
        experiment = _parse(ExperimentDocument, member)
        _check_place(member, experiment_file(experiment.id))
        contents.experiments[experiment.id] = experiment
    elif kind == "runs" and rest.endswith("/run.json") and rest.count("/") == 1:
        run = _parse(RunDocument, member)
        _check_place(member, run_file(run.id))
        contents.runs[run.id] = run
    else:
        match = _STREAM.fullmatch(member.name)
        if match is None:
            raise refusal(f"the archive holds {member.name}, which belongs to no run or experiment")
        check_name(match.group(3))
        # metric lines beyond the cap are kept as columns, and exported as lines again
        if metrics_rank(match.group(3)) is None and member.size > max_stream_bytes:
            raise refusal(f"{member.name} has {member.size:,} bytes; a stream has at most {max_stream_bytes:,}")


def _parse(model: type[DocumentT], member: Member) -> DocumentT:
    try:
        return model.model_validate_json(member.read(MAX_DOCUMENT))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise refusal(f"{place}: {first['msg']}" if place else first["msg"], path=member.name) from None
    except RecursionError:
        raise refusal("it is nested too deeply", path=member.name) from None


def _check_place(member: Member, expected: str) -> None:
    if member.name != expected:
        raise refusal(f"{member.name} holds what belongs into {expected}")


def _check_digests(contents: Contents, manifest: Manifest) -> None:
    said = {file.name: (file.size_bytes, file.sha256) for file in manifest.files}
    for name in sorted(said.keys() | contents.digests.keys()):
        if name not in contents.digests:
            raise refusal(f"{name} is missing from the archive", remedy="copy or download it again")
        if said.get(name) != contents.digests[name]:
            message = f"{name} is not what the manifest of the archive describes"
            raise refusal(message, remedy="copy or download it again")


def _check_run(contents: Contents, run: RunDocument) -> None:
    """A run that contradicts itself. Raises InvalidRequest."""

    def wrong(message: str) -> InvalidRequest:
        return refusal(message, path=run_file(run.id))

    if run.experiment_id not in contents.experiments:
        raise wrong(f"its experiment {run.experiment_id} is missing from the archive")
    if hash_data(run.config) != run.config_hash:
        raise wrong("config_hash is not that of the config")
    numbers = [attempt.number for attempt in run.attempts]
    if not numbers or len(numbers) != run.attempt or numbers != list(range(1, len(numbers) + 1)):
        raise wrong(f"its attempts are {numbers[:10]}, and the newest is said to be {run.attempt}")
    if any(not attempt.state.terminal for attempt in run.attempts[:-1]):
        raise wrong("an attempt that was followed by another has not ended")
    if run.state.terminal and not run.attempts[-1].state.terminal:
        raise wrong(f"it is {run.state.value}, and its newest attempt {run.attempts[-1].state.value}")
    for name, steps in (("checkpoints", run.checkpoints), ("evaluations", run.evaluations)):
        if len({one.step for one in steps}) < len(steps):
            raise wrong(f"{name} holds a step twice")


def _check_streams(contents: Contents) -> None:
    """Every stream of an attempt is a file, and the other way round. Raises InvalidRequest."""
    attempt_ids = [attempt.id for run in contents.runs.values() for attempt in run.attempts]
    if len(set(attempt_ids)) < len(attempt_ids):
        raise refusal("two attempts in the archive have the same id")
    expected = {
        stream_file(run.id, attempt.number, name): (name, attempt.streams[name])
        for run, attempt, name in contents.streams()
    }
    found = {name for name in contents.digests if _STREAM.fullmatch(name)}
    for name in sorted(found ^ expected.keys()):
        raise refusal(f"{name} is {'a file of no attempt' if name in found else 'missing from the archive'}")
    for file, (name, length) in expected.items():
        if metrics_rank(name) is None and contents.digests[file][0] > length:
            raise refusal(f"{file} holds more bytes than were sent, {length:,}")
