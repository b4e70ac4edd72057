"""Offline sets: sequences in HDF5 files that carry the GSSM that made them.

A file has one dataset `tokens` [sequences, seq_len] and the attributes of ATTRIBUTES. It is written under another name
and renamed when it is complete, so that no interruption leaves a file that looks like a set.

Chunks are compressed on several threads while the next sequences are drawn, and handed to HDF5 as they are; any HDF5
library reads them. They are small, so that single sequences are read fast. Tokens of a GSSM have little in them that
repeats, so the Huffman code alone is as small as what looks for repetitions, and twice as fast. The Adler-32 sum of
every chunk's tokens, which is part of its zlib stream, is verified when it is read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nanollama.data.bounds import Estimate
from nanollama.data.context import ContextEntropy
from nanollama.data.disk import Disk
from nanollama.data.draws import VERSION
from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.data.jit import default_threads
from nanollama.data.sampler import symbol_dtype
from nanollama.spec.base import Problem, SpecError, canonical_json, parse
from nanollama.spec.gssm import GSSMSpec

FORMAT = "nanollama.gssm.sequences"
FORMAT_VERSION = 1
ATTRIBUTES = {
    "format": "FORMAT; written last",
    "format_version": "int",
    "spec": "the graph as JSON text",
    "seed": "of the kernels and of the sequences",
    "split": "name of the set, which keys the randomness of its sequences",
    "seq_len": "tokens per sequence, the start token included",
    "stream_version": "of the way in which sequences follow from seed and split; absent before there was more than one",
    "kernels_hash": "SHA-256 of the kernels",
    "numpy_version": "of the library that drew the kernels",
    "entropy": "mean nats per token; absent where it cannot be computed",
    "entropy_stderr": "its standard error",
    "entropy_num_sequences": "the first sequences of the set, over which it is the mean",
    "entropy_lower": "a lower bound of it; this and the next where kernels are redrawn for every sequence",
    "entropy_lower_stderr": "its standard error",
    "entropy_upper": "an upper bound",
    "entropy_upper_stderr": "its standard error",
    "entropy_note": "why there is no entropy",
}

_CHUNK_BYTES = 2**14
_CHUNKS_PER_TASK = 16
_FIRST_CHUNKS = 64  # of room that is reserved; it doubles whenever it is used up


class DatasetWriter:
    """Writes one set; a context manager that leaves either the complete file or nothing.

    Sequences are appended in order; the file gets its name when the block ends without an error.
    """

    def __init__(
        self, path: str | Path, kernels: Kernels, *, split: str, seq_len: int, threads: int | None = None
    ) -> None:
        """Prepare to write; nothing is created before the block is entered.

        Args:
            path: of the file; one that exists is replaced.
            kernels: of the model, drawn from a seed.
            split: name of the set.
            seq_len: tokens per sequence.
            threads: that compress; as many as there are cores when absent.
        """
        assert kernels.seed is not None, "a set is described by its seed"
        self.path = Path(path)
        self.entropy: Estimate | ContextEntropy | str = "not computed"
        """To be set before the block ends: the entropy, its bounds, or why there is none."""
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._vocab_size = kernels.vocab_size
        self._dtype = symbol_dtype(kernels.vocab_size)
        self._seq_len = seq_len
        self._threads = default_threads() if threads is None else threads
        self._chunk_rows = max(1, _CHUNK_BYTES // (seq_len * self._dtype.itemsize))
        self._attributes: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "spec": canonical_json(kernels.spec),
            "seed": kernels.seed,
            "split": split,
            "seq_len": seq_len,
            "stream_version": VERSION,
            "kernels_hash": kernels.content_hash(),
            "numpy_version": np.__version__,
        }

    def __enter__(self) -> DatasetWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._count = self._written = 0  # sequences appended, and those that HDF5 has
        self._rest: NDArray[Any] = np.empty((0, self._seq_len), dtype=self._dtype)
        self._tasks: deque[Future[list[bytes]]] = deque()
        self._disk = Disk(self._partial)
        self._file = h5py.File(self._disk, "w")
        self._pool = ThreadPoolExecutor(self._threads)
        try:
            self._tokens = self._file.create_dataset(
                "tokens",
                shape=(_FIRST_CHUNKS * self._chunk_rows, self._seq_len),
                maxshape=(None, self._seq_len),
                chunks=(self._chunk_rows, self._seq_len),
                dtype=self._dtype,
                compression="gzip",
                compression_opts=1,
            )
        except BaseException:
            self._discard()
            raise
        return self

    def append(self, tokens: NDArray[np.integer[Any]]) -> None:
        """Append sequences, integers of shape [N, seq_len]; they are compressed later and must not be changed.

        Raises:
            ValueError: tokens of another shape, or that are no symbols.
            OSError: the disk is full, or fails.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self._seq_len:
            raise ValueError(f"the tokens have shape {list(tokens.shape)}, but the set takes [N, {self._seq_len}]")
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocab_size:
            message = f"the tokens lie in {tokens.min()} .. {tokens.max()}, but there are {self._vocab_size} symbols"
            raise ValueError(message)
        tokens = tokens.astype(self._dtype, copy=False)
        self._count += len(tokens)
        missing = (-len(self._rest)) % self._chunk_rows if len(self._rest) else 0
        self._rest = np.concatenate([self._rest, tokens[:missing]])
        if len(self._rest) == self._chunk_rows:
            self._compress(self._rest)
            self._rest = self._rest[:0]
        tokens = tokens[missing:]
        whole = len(tokens) // self._chunk_rows * self._chunk_rows
        step = _CHUNKS_PER_TASK * self._chunk_rows
        for start in range(0, whole, step):
            self._compress(tokens[start : min(start + step, whole)])
        if whole < len(tokens):
            self._rest = tokens[whole:].copy()
        self._write(most=4 * self._threads)
        self._disk.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            self._discard()

    def _compress(self, tokens: NDArray[Any]) -> None:
        """Have whole chunks compressed."""
        chunks = np.split(tokens, len(tokens) // self._chunk_rows)
        self._tasks.append(self._pool.submit(lambda: [_deflated(chunk) for chunk in chunks]))
        self._write(most=8 * self._threads)

    def _write(self, *, most: int) -> None:
        """Give HDF5 what is compressed, and wait for it until at most `most` tasks are left."""
        while self._tasks and (len(self._tasks) > most or self._tasks[0].done()):
            for chunk in self._tasks.popleft().result():
                if self._written == len(self._tokens):
                    self._tokens.resize(2 * self._written, axis=0)
                self._tokens.id.write_direct_chunk((self._written, 0), chunk)
                self._written += self._chunk_rows

    def _discard(self) -> None:
        try:
            self._pool.shutdown(cancel_futures=True)
            self._tasks.clear()
            self._file.close()
            self._disk.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def _complete(self) -> None:
        if len(self._rest):
            padding = np.zeros((self._chunk_rows - len(self._rest), self._seq_len), dtype=self._dtype)
            self._compress(np.concatenate([self._rest, padding]))
        self._write(most=0)
        self._tokens.resize(self._count, axis=0)
        found = self.entropy
        if isinstance(found, Estimate):
            self._attributes |= {"entropy": found.mean, "entropy_stderr": found.stderr}
        elif isinstance(found, ContextEntropy):
            for side in ("lower", "lower_stderr", "upper", "upper_stderr"):
                self._attributes[f"entropy_{side}"] = getattr(found, side)
        if isinstance(found, str):
            self._attributes["entropy_note"] = found
        else:
            self._attributes["entropy_num_sequences"] = found.num_sequences
        for key, value in self._attributes.items():
            self._file.attrs[key] = value
        self._file.attrs["format"] = FORMAT
        self._file.close()
        self._disk.sync()
        self._partial.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class DatasetReader:
    """Reads one set; every fault is a SpecError at `data.path`."""

    def __init__(self, path: str | Path) -> None:
        """Open and check the file.

        Raises:
            SpecError: a file that is missing, not HDF5, not a set, of another version, or with broken attributes.
        """
        self.path = Path(path)
        self._file = self._open()
        try:
            self._read_attributes()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        return self._num_sequences

    @property
    def vocab_size(self) -> int:
        """Number of symbols."""
        return self.spec.observed.state_dim

    def read(self, indices: slice | NDArray[np.int64]) -> NDArray[np.unsignedinteger[Any]]:
        """Tokens of the sequences at a slice, or at indices in any order and number, [N, seq_len] in the file's type.

        Raises:
            SpecError: data that cannot be read, or tokens that are no symbols of the graph.
        """
        try:
            if isinstance(indices, slice):
                tokens: NDArray[np.unsignedinteger[Any]] = self._tokens[indices]
            else:
                tokens = self._gather(indices)
        except OSError as error:
            raise self._error(f"{self.path} is damaged: {error}", "generate it again") from None
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            message = f"{self.path} holds the symbol {int(tokens.max())}, but its graph has {self.vocab_size} symbols"
            raise self._error(message, "generate it again")
        return tokens

    def _gather(self, indices: NDArray[np.int64]) -> NDArray[np.unsignedinteger[Any]]:
        """Read what lies in one chunk together, chunk after chunk."""
        order = np.argsort(indices, kind="stable")
        chunks = indices[order] // self._tokens.chunks[0]
        tokens = np.empty((len(indices), self.seq_len), dtype=self._tokens.dtype)
        for places in np.split(order, np.flatnonzero(np.diff(chunks)) + 1) if len(order) else []:
            first, last = indices[places[0]], indices[places[-1]]
            tokens[places] = self._tokens[first : last + 1][indices[places] - first]
        return tokens

    def kernels(self) -> Kernels:
        """The kernels that made the set, drawn again from its spec and seed.

        Raises:
            SpecError: kernels that differ from those of the file.
        """
        kernels = draw_kernels(self.spec, self.seed)
        if kernels.content_hash() != self.kernels_hash:
            message = (
                f"the kernels drawn for {self.path} are not those that made it (it was made with NumPy "
                f"{self._numpy_version}, this is {np.__version__})"
            )
            raise self._error(message, "generate it again here, or use the library versions that made it")
        return kernels

    def _open(self) -> h5py.File:
        if not self.path.exists():
            remedy = "check the path, or generate it: python -m nanollama.apps.gssm.data config=..."
            raise self._error(f"there is no file {self.path}", remedy)
        try:
            return h5py.File(self.path, "r", locking=False)
        except OSError as error:
            raise self._error(f"{self.path} is not a readable HDF5 file: {error}", "generate it again") from None

    def _read_attributes(self) -> None:
        attributes = self._file.attrs
        remedy = "use a file that nanollama.apps.gssm.data wrote"
        if attributes.get("format") != FORMAT:
            raise self._error(f"{self.path} is not a set of GSSM sequences", remedy)
        if attributes.get("format_version") != FORMAT_VERSION:
            message = f"{self.path} has format version {attributes.get('format_version')}, this is {FORMAT_VERSION}"
            raise self._error(message, "generate it again, or use the release that wrote it")
        try:
            self.spec = parse(GSSMSpec, json.loads(attributes["spec"]))
            self.seed = int(attributes["seed"])
            self.split = str(attributes["split"])
            self.seq_len = int(attributes["seq_len"])
            self.kernels_hash = str(attributes["kernels_hash"])
            self._numpy_version = str(attributes["numpy_version"])
            self.entropy = self._estimate("entropy")
            lower, upper = self._estimate("entropy_lower"), self._estimate("entropy_upper")
            self.entropy_bounds = None if lower is None or upper is None else (lower, upper)
            self._tokens = self._file["tokens"]
            if self._tokens.chunks is None:
                raise ValueError("the tokens are not stored in chunks")
            self._num_sequences, width = (int(size) for size in self._tokens.shape)
        except (KeyError, ValueError, TypeError, OSError, AttributeError) as error:
            raise self._error(f"{self.path} has broken attributes: {error}", "generate it again") from None
        if width != self.seq_len or self._tokens.dtype != symbol_dtype(self.vocab_size):
            message = f"{self.path} holds {self._tokens.dtype} {list(self._tokens.shape)}, unlike its attributes say"
            raise self._error(message, "generate it again")

    def _estimate(self, name: str) -> Estimate | None:
        """A figure of the attributes, where it is given."""
        attributes = self._file.attrs
        if name not in attributes:
            return None
        count = int(attributes["entropy_num_sequences"])
        return Estimate(float(attributes[name]), float(attributes[f"{name}_stderr"]), count)

    @staticmethod
    def _error(message: str, remedy: str) -> SpecError:
        return SpecError([Problem(path="data.path", message=message, remedy=remedy)])


def _deflated(tokens: NDArray[Any]) -> bytes:
    compressor = zlib.compressobj(level=1, strategy=zlib.Z_HUFFMAN_ONLY)
    return compressor.compress(tokens.tobytes()) + compressor.flush()


def target_problems(paths: Sequence[str], *, overwrite: bool) -> list[Problem]:
    """What stands in the way of writing these files, found without creating anything; paths are `sets.<i>.path`."""
    problems = []
    for i, name in enumerate(paths):
        path = Path(name).resolve()
        place = next(parent for parent in path.parents if parent.exists())
        message = remedy = None
        same = next((j for j in range(i) if Path(paths[j]).resolve() == path), None)
        if same is not None:
            message, remedy = f"{name} is the same file as {paths[same]} of sets.{same}", "choose another path"
        elif path.is_dir():
            message, remedy = f"{name} is a directory", "name a file"
        elif path.exists() and not overwrite:
            message, remedy = f"{name} exists", "choose another path, remove it, or set overwrite=true"
        elif not place.is_dir():
            message, remedy = f"{place} is not a directory", "choose another path"
        elif not os.access(place, os.W_OK | os.X_OK):
            message, remedy = f"{place} is not writable", "choose another path or change its permissions"
        if message:
            problems.append(Problem(path=f"sets.{i}.path", message=message, remedy=remedy))
    return problems
