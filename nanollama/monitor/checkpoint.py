"""Checkpoints that are whole or do not exist.

A checkpoint is a directory of files and a manifest with their sizes and digests. It is written under a hidden name,
each file flushed to the disk, the manifest last; then the directory is flushed and renamed to its final name. A crash
before the rename leaves a hidden directory that no reader looks at and the next writer clears away; the rename happens
or does not; after it every byte is on the disk already. Should a disk or a copy tool damage a checkpoint later, its
digests no longer match, and readers fall back to the one before.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from nanollama.monitor.digest import DigestingFile, read_digest
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.rundir import (
    CHECKPOINTS,
    MANIFEST,
    PINNED,
    SCORE,
    Manifest,
    ManifestFile,
    Score,
    checkpoint_name,
    sync_directory,
    write_atomic,
)

MAX_NAMED = 3
"""Mismatching tensors, or damaged checkpoints, that a message names; the others are counted."""


class InvalidCheckpoint(Exception):
    """A directory that is not a whole checkpoint; the message says why."""


class UnreadableCheckpoint(InvalidCheckpoint):
    """A checkpoint that the disk does not give away now; it may be whole all the same."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint on the disk.

    Attributes:
        path: its directory.
        step: optimizer steps done when it was saved.
        size_bytes: total size of its files.
        digest: SHA-256 of its manifest.
    """

    path: Path
    step: int
    size_bytes: int
    digest: str


class Checkpoints:
    """The checkpoints of a run. Only one process, rank 0 of the live attempt, may use this to write.

    `save` and `prune` may be called from another thread than `note_score`.

    Args:
        run_dir: the run directory.
        config_hash: hash of what the run learns from; it is kept in each manifest.
        keep_last: number of newest checkpoints kept; 0 keeps all.
        keep_best: number of checkpoints with the lowest scores kept besides.
        keep_every: checkpoints of multiples of this many steps are kept besides; 0: no such rule.
    """

    def __init__(
        self, run_dir: Path, *, config_hash: str, keep_last: int = 0, keep_best: int = 0, keep_every: int = 0
    ) -> None:
        self.directory = run_dir / CHECKPOINTS
        self._config_hash = config_hash
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._keep_every = keep_every
        self._damaged: set[str] = set()
        self._unreadable: set[str] = set()
        self._scores: dict[int, float] = {}  # noted by this process; earlier ones are on the disk only
        self._lock = threading.Lock()  # over scores and the appearance of a checkpoint under its final name

    def save(self, step: int, contents: Mapping[str, Any]) -> SavedCheckpoint:
        """Write a checkpoint of this step: one file per item, bytes as they are and all else by torch.save.

        One of the same step is replaced; its pin and its score stay.

        Raises:
            OSError: the disk is full or gone; nothing is left of what was written.
        """
        self.directory.mkdir(exist_ok=True)
        self._clear_hidden()
        final = self.directory / checkpoint_name(step)
        hidden = self.directory / f".{final.name}.partial"
        try:
            hidden.mkdir()
            files = tuple(_write(hidden / name, content) for name, content in contents.items())
            manifest = Manifest(step=step, config_hash=self._config_hash, files=files)
            description = _write(hidden / MANIFEST, manifest.model_dump_json(indent=2).encode())
            self._reveal(hidden, final, step)
        except OSError:
            shutil.rmtree(hidden, ignore_errors=True)  # half a checkpoint must not keep a full disk full
            raise
        self._damaged.discard(final.name)
        self._unreadable.discard(final.name)
        size_bytes = sum(file.size_bytes for file in (*files, description))
        return SavedCheckpoint(final, step, size_bytes, description.sha256)

    def note_score(self, step: int, score: float) -> None:
        """Remember how good the learner of a step is, the lower the better, with its checkpoint if there is or will be.

        A score that is not finite is as bad as none.
        """
        if not math.isfinite(score):
            return
        with self._lock:
            self._scores[step] = score
            path = self.directory / checkpoint_name(step)
            if path.is_dir():
                with suppress(FileNotFoundError):  # another process, or the thread that prunes, has just removed it
                    _write_score(path, step, score)

    def score(self, path: Path) -> float | None:
        """The score of a checkpoint; None when it has not been evaluated."""
        try:
            return Score.model_validate_json((path / SCORE).read_bytes()).score
        except (OSError, ValidationError):
            return None

    def best(self) -> Path | None:
        """The checkpoint with the lowest score, the earliest of several; None when none has one."""
        return next(iter(self._by_score(visible(self.directory))), None)

    def prune(self) -> list[Path]:
        """Remove the checkpoints that no rule keeps, and those that were found damaged; return their paths.

        The newest one, which is whole, and pinned ones always stay, and so does one that could not be read.
        """
        if self._keep_last == 0:
            return []
        present = visible(self.directory)
        whole = [path for path in present if path.name not in self._damaged | self._unreadable]
        kept = set(whole[-self._keep_last :]) | set(self._by_score(whole)[: self._keep_best])
        if self._keep_every:
            kept |= {path for path in whole if int(path.name) % self._keep_every == 0}
        doomed = [path for path in present if path not in kept and path.name not in self._unreadable]
        removed = [path for path in doomed if _remove_unless_pinned(path)]
        self._damaged -= {path.name for path in removed}
        return removed

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, every digest verified, and why each newer one is not whole.

        Raises:
            SpecError: there are checkpoints, and none of them is whole.
        """
        reasons = []
        for path in reversed(visible(self.directory)):
            try:
                verify(path)
            except InvalidCheckpoint as error:
                group = self._unreadable if isinstance(error, UnreadableCheckpoint) else self._damaged
                group.add(path.name)
                reasons.append(f"checkpoint {path} is skipped: {error}")
                continue
            return path, reasons
        if reasons:
            found = "; ".join(reason.removeprefix("checkpoint ") for reason in reasons[:MAX_NAMED])
            message = f"none of the {len(reasons)} checkpoints of this run is whole: {found}{_and_more(len(reasons))}"
            remedy = f"restore one of them, or remove {self.directory} to train anew from the first step"
            raise SpecError([Problem(path="checkpoints", message=message, remedy=remedy)])
        return None, reasons

    def _reveal(self, hidden: Path, final: Path, step: int) -> None:
        with self._lock:
            if step in self._scores:
                _write_score(hidden, step, self._scores[step])
            for name in (PINNED, SCORE):
                if (final / name).exists() and not (hidden / name).exists():
                    shutil.copyfile(final / name, hidden / name)
            sync_directory(hidden)
            old = final.with_name(f".{final.name}.removed")
            if final.exists():
                final.rename(old)
            hidden.rename(final)
        sync_directory(self.directory)
        shutil.rmtree(old, ignore_errors=True)

    def _by_score(self, paths: list[Path]) -> list[Path]:
        scored = [(score, path) for path in paths if (score := self.score(path)) is not None]
        return [path for _, path in sorted(scored)]

    def _clear_hidden(self) -> None:
        for path in self.directory.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)  # what a reader keeps from being deleted, as on NFS, is for later


def visible(directory: Path) -> list[Path]:
    """The checkpoints in a directory by step, valid or not."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())


def verify(path: Path) -> Manifest:
    """Read every byte of a checkpoint and return its manifest.

    Raises:
        InvalidCheckpoint: the manifest is missing or unreadable, or a file is not the one that it describes.
    """
    manifest = read_manifest(path)
    if path.name != checkpoint_name(manifest.step):
        raise InvalidCheckpoint(f"its manifest is that of step {manifest.step}")
    for expected in manifest.files:
        if expected.name != Path(expected.name).name:
            raise InvalidCheckpoint(f"its manifest names a file elsewhere: {expected.name}")
        try:
            size_bytes, sha256 = read_digest(path / expected.name)
        except FileNotFoundError:
            raise InvalidCheckpoint(f"{expected.name} is missing") from None
        except OSError as error:
            raise UnreadableCheckpoint(f"{expected.name} cannot be read: {error.strerror}") from None
        if size_bytes != expected.size_bytes:
            raise InvalidCheckpoint(f"{expected.name} has {size_bytes} bytes where {expected.size_bytes} were written")
        if sha256 != expected.sha256:
            raise InvalidCheckpoint(f"the content of {expected.name} has changed since it was written")
    return manifest


def verified(checkpoint: Path, key: str) -> Manifest:
    """The manifest of a checkpoint that a user has named by the config's `key`; every byte of it has been read.

    Raises:
        SpecError: there is no whole checkpoint.
    """
    if not checkpoint.is_dir():
        remedy = "name a directory RUN/checkpoints/<step>"
        raise SpecError([Problem(path=key, message=f"there is no directory {checkpoint}", remedy=remedy)])
    inside = visible(checkpoint / CHECKPOINTS) or visible(checkpoint)
    if inside:
        message = f"{checkpoint} holds {len(inside)} checkpoints and is none itself"
        raise SpecError([Problem(path=key, message=message, remedy=f"name one, for example {inside[-1]}")])
    try:
        return verify(checkpoint.resolve())
    except InvalidCheckpoint as error:
        message = f"{checkpoint} is not a whole checkpoint: {error}"
        raise SpecError([Problem(path=key, message=message, remedy="use another one of the run")]) from None


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        InvalidCheckpoint: there is none that can be read.
    """
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise InvalidCheckpoint(f"it has no readable {MANIFEST} ({type(error).__name__})") from None
    except OSError as error:
        raise UnreadableCheckpoint(f"{MANIFEST} cannot be read: {error.strerror}") from None


def snapshot(value: Any) -> Any:
    """A copy of nested mappings and lists in which every tensor has memory of its own, on the CPU.

    Tensors that are one and the same, as tied weights are, stay so: they are saved once.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            view = (value.device, value.dtype, value.data_ptr(), value.shape, value.stride())
            if view not in copies:
                copies[view] = value.detach().to("cpu", copy=True)
            return copies[view]
        if isinstance(value, Mapping):
            return {key: copy(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copy(item) for item in value)
        return value

    return copy(value)


def tensor_problems(model: Mapping[str, Tensor], stored: Mapping[str, Tensor], checkpoint: Path) -> list[Problem]:
    """Why the tensors of a checkpoint do not fit a model: the first ones that differ, in the model's order."""
    differences = []
    for name in dict.fromkeys([*model, *stored]):
        if name not in stored:
            differences.append(f"it has no {name}, which is {list(model[name].shape)} here")
        elif name not in model:
            differences.append(f"it has a {name} of shape {list(stored[name].shape)}, for which there is no place here")
        elif model[name].shape != stored[name].shape:
            differences.append(f"its {name} is {list(stored[name].shape)}, here it is {list(model[name].shape)}")
    if not differences:
        return []
    message = f"{checkpoint} is of another architecture: {'; '.join(differences[:MAX_NAMED])}"
    remedy = "use the model section of the config.yaml inside it, or a run directory of its own"
    return [Problem(path="model", message=message + _and_more(len(differences)), remedy=remedy)]


def _and_more(count: int) -> str:
    return f"; and {count - MAX_NAMED} more" if count > MAX_NAMED else ""


def _write(path: Path, content: Any) -> ManifestFile:
    """Write a file down to the disk and describe it.

    Raises:
        OSError: it could not be written.
    """
    with DigestingFile(path) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)  # type: ignore[arg-type] # all that it asks for is `write`
        size_bytes, sha256 = file.finish()
    return ManifestFile(name=path.name, size_bytes=size_bytes, sha256=sha256)


def _write_score(path: Path, step: int, score: float) -> None:
    write_atomic(path / SCORE, Score(step=step, score=score).model_dump_json().encode())


def _remove_unless_pinned(path: Path) -> bool:
    """Make a checkpoint vanish at once, then delete its files: a crash in between leaves nothing that looks whole."""
    if (path / PINNED).exists():
        return False
    hidden = path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    if (hidden / PINNED).exists():  # pinned at the very last moment
        hidden.rename(path)
        return False
    shutil.rmtree(hidden, ignore_errors=True)  # it is gone; the next save clears away what could not be deleted yet
    return True
