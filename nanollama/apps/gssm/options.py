"""What the scripts about entropies share: `name=value` options beside the config, and the model that a config names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.spec.base import Problem, Spec, SpecError, parse
from nanollama.spec.data import DatasetSpec, FileData
from nanollama.spec.evaluation import EntropySpec
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.load import load_config, read_document
from nanollama.spec.rundir import write_atomic
from nanollama.spec.yaml_text import load_yaml

OptionsT = TypeVar("OptionsT", bound=Spec)


def split_options(model: type[OptionsT], arguments: Sequence[str]) -> tuple[OptionsT, list[str]]:
    """The options among the arguments, and the other arguments, which are those of the config.

    Values are YAML, but for options that are text: these are taken as they stand.

    Raises:
        SpecError: every value that an option does not accept.
    """
    given: dict[str, Any] = {}
    problems: list[Problem] = []
    rest = []
    for argument in arguments:
        name, _, text = argument.partition("=")
        field = model.model_fields.get(name)
        if field is None:
            rest.append(argument)
            continue
        try:
            given[name] = text if field.annotation in (str, str | None) else load_yaml(text)
        except SpecError as error:
            problems += [Problem(path=name, message=p.message, remedy=p.remedy) for p in error.problems]
    if problems:
        raise SpecError(problems)
    return parse(model, given), rest


@dataclass(frozen=True)
class Source:
    """What a config's data come from.

    Attributes:
        spec: the graph.
        seed: of the kernels.
        seq_len: tokens per sequence, the start token included.
        path: the file of sequences that holds the graph; None where the config itself does.
        place: key of the config under which the graph, or that file, stands.
        num_sequences: how many fresh sequences the config wants to have scored; None where it does not say.
        max_seconds: how long that may take; None for any time.
    """

    spec: GSSMSpec
    seed: int
    seq_len: int
    path: str | None
    place: str
    num_sequences: int | None = None
    max_seconds: float | None = None

    def kernels(self) -> Kernels:
        """The kernels that make the sequences.

        Raises:
            SpecError: kernels that differ from those of the file.
        """
        if self.path is None:
            return draw_kernels(self.spec, self.seed)
        from nanollama.data.hdf5 import DatasetReader  # noqa: PLC0415 - HDF5 takes long to load, few need it

        reader = DatasetReader(self.path)
        try:
            return reader.kernels()
        finally:
            reader.close()

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Problems of the graph that are raised within name the key of the config that holds it."""
        try:
            yield
        except SpecError as error:
            here = self.place if self.path else None
            paths = [here or ".".join(filter(None, [self.place, p.path])) for p in error.problems]
            placed = zip(error.problems, paths, strict=True)
            raise SpecError(problem.model_copy(update={"path": path}) for problem, path in placed) from None


def read_source(arguments: Sequence[str]) -> Source:
    """Graph, seed and length that `config=FILE key.sub=value …` names, in any config that has data or makes sets.

    Raises:
        SpecError: every problem of the config, or a file of sequences that cannot be used.
    """
    root = read_document(arguments).data
    if "sets" in root or ("gssm" in root and "data" not in root):
        made = load_config(DatasetSpec, arguments)
        return Source(spec=made.gssm, seed=made.seed, seq_len=made.seq_len, path=None, place="")
    wanted: dict[str, Any] = {}
    if root.keys().isdisjoint(("model", "optim")) and "data" in root:
        spec = load_config(EntropySpec, arguments)
        data, wanted = spec.data, {"num_sequences": spec.num_sequences, "max_seconds": spec.max_seconds}
    else:
        data = load_config(ExperimentSpec, arguments).data
    if not isinstance(data, FileData):
        return Source(data.gssm, data.seed, data.seq_len, path=None, place="data", **wanted)
    from nanollama.data.hdf5 import DatasetReader  # noqa: PLC0415 - as above

    reader = DatasetReader(data.path)
    reader.close()
    return Source(reader.spec, reader.seed, reader.seq_len, path=data.path, place="data.path", **wanted)


def check_targets(targets: dict[str, str | None], inputs: Sequence[str | None] = ()) -> None:
    """Refuse files that could not be written, before any work; a file that exists will be replaced.

    Args:
        targets: files to write, by the name of their option.
        inputs: files that are read, which no target may be.

    Raises:
        SpecError: every target that is no use.
    """
    problems = []
    seen = {Path(name).resolve(): "is read by this command" for name in inputs if name}
    for option, name in targets.items():
        if not name:
            if name is not None:
                problems.append(Problem(path=option, message="no file is named", remedy=f"write {option}=FILE"))
            continue
        path = Path(name).resolve()
        message = _target_fault(path) or seen.get(path)
        seen[path] = f"is written by {option}= too"
        if message:
            remedy = "name another file" if path.parent.is_dir() else "make the directory first, or name another"
            problems.append(Problem(path=option, message=f"{name} {message}", remedy=remedy))
    if problems:
        raise SpecError(problems)


def _target_fault(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"cannot be written: there is no directory {path.parent}"
    if path.is_dir():
        return "is a directory"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"cannot be written: {path.parent} is not writable"
    return None


@contextmanager
def writing(option: str, name: str) -> Iterator[None]:
    """An error of the disk while a file is written becomes a problem of its option."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {name}: {error.strerror or error}"
        remedy = "check the space that is left and the permissions"
        raise SpecError([Problem(path=option, message=message, remedy=remedy)]) from None


def write_json(option: str, name: str, content: dict[str, Any]) -> None:
    """Write a result whole or not at all; it holds no NaN."""
    with writing(option, name):
        write_atomic(Path(name), json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
