"""Checkpoints that are whole or do not exist.

A checkpoint is a directory of files and a manifest with their sizes and digests. It is written under a hidden name,
each file flushed to the disk, the manifest last; then the directory is flushed and renamed to its final name. A crash
before the rename leaves a hidden directory that no reader looks at and the next writer clears away; the rename happens
or does not; after it every byte is on the disk already. Should a disk or a copy tool damage a checkpoint later, its
digests no longer match, and readers fall back to the one before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.rundir import CHECKPOINTS, MANIFEST, Manifest, ManifestFile, checkpoint_name, sync_directory


class InvalidCheckpoint(Exception):
    """A directory that is not a whole checkpoint; the message says why."""


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

    Args:
        run_dir: the run directory.
        config_hash: hash of what the run learns from; it is kept in each manifest.
        keep_only: number of newest checkpoints kept; 0 keeps all.
    """

    def __init__(self, run_dir: Path, *, config_hash: str, keep_only: int = 0) -> None:
        self.directory = run_dir / CHECKPOINTS
        self._config_hash = config_hash
        self._keep_only = keep_only
        self._invalid: set[str] = set()

    def save(self, step: int, contents: Mapping[str, Any]) -> SavedCheckpoint:
        """Write a checkpoint of this step: one file per item, by torch.save. One of the same step is replaced.

        Raises:
            OSError: the disk is full or gone; no part of the checkpoint is visible to a reader.
        """
        self.directory.mkdir(exist_ok=True)
        self._clear_hidden()
        final = self.directory / checkpoint_name(step)
        hidden = self.directory / f".{final.name}.partial"
        hidden.mkdir()
        for name, content in contents.items():
            with open(hidden / name, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
        files = tuple(_describe(hidden / name) for name in contents)
        manifest = Manifest(step=step, config_hash=self._config_hash, files=files).model_dump_json(indent=2).encode()
        with open(hidden / MANIFEST, "wb") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(hidden)
        if final.exists():
            _remove(final)
        hidden.rename(final)
        sync_directory(self.directory)
        self._invalid.discard(final.name)
        size_bytes = sum(file.size_bytes for file in files) + len(manifest)
        return SavedCheckpoint(final, step, size_bytes, hashlib.sha256(manifest).hexdigest())

    def prune(self) -> list[Path]:
        """Remove all but the `keep_only` newest checkpoints, and those that were found invalid; return their paths."""
        if self._keep_only == 0:
            return []
        valid = [path for path in visible(self.directory) if path.name not in self._invalid]
        doomed = [path for path in visible(self.directory) if path not in valid[-self._keep_only :]]
        for path in doomed:
            _remove(path)
        self._invalid.clear()
        return doomed

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, every digest verified, and why each newer one is not whole.

        Raises:
            SpecError: it was written by a run that learns from something else.
        """
        reasons = []
        for path in reversed(visible(self.directory)):
            try:
                manifest = verify(path)
            except InvalidCheckpoint as error:
                self._invalid.add(path.name)
                reasons.append(f"checkpoint {path} is skipped: {error}")
                continue
            if manifest.config_hash != self._config_hash:
                message = f"{path} was written with another config"
                remedy = "choose another run directory"
                raise SpecError([Problem(path="orchestration.log_dir", message=message, remedy=remedy)])
            return path, reasons
        return None, reasons

    def _clear_hidden(self) -> None:
        for path in self.directory.glob(".*"):
            shutil.rmtree(path)


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
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise InvalidCheckpoint(f"it has no readable {MANIFEST} ({type(error).__name__})") from None
    if path.name != checkpoint_name(manifest.step):
        raise InvalidCheckpoint(f"its manifest is that of step {manifest.step}")
    for expected in manifest.files:
        if expected.name != Path(expected.name).name:
            raise InvalidCheckpoint(f"its manifest names a file elsewhere: {expected.name}")
        try:
            found = _describe(path / expected.name)
        except OSError as error:
            raise InvalidCheckpoint(f"{expected.name} cannot be read: {error.strerror}") from None
        if found.size_bytes != expected.size_bytes:
            raise InvalidCheckpoint(
                f"{expected.name} has {found.size_bytes} bytes where {expected.size_bytes} were written"
            )
        if found.sha256 != expected.sha256:
            raise InvalidCheckpoint(f"the content of {expected.name} has changed since it was written")
    return manifest


def _describe(path: Path) -> ManifestFile:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return ManifestFile(name=path.name, size_bytes=file.tell(), sha256=digest.hexdigest())


def _remove(path: Path) -> None:
    """Make a checkpoint vanish at once, then delete its files: a crash in between leaves nothing that looks whole."""
    hidden = path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    shutil.rmtree(hidden)
