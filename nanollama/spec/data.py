"""Where the tokens come from: sampled on the fly, read from a file, or generated into files."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag, model_validator

from nanollama.spec.base import Problem, Problems, Spec
from nanollama.spec.cluster import LauncherSpec
from nanollama.spec.gssm import GSSMSpec


class OnlineData(Spec):
    """Sequences sampled from a GSSM while training: every sequence is new."""

    union_tags: ClassVar[tuple[str, ...]] = ("online",)

    seq_len: int = Field(ge=2, le=2**20, description="tokens per sequence, the start token included")
    batch_size: int = Field(ge=1, le=2**20, description="sequences per step, over all ranks")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the kernels and of the sequences")
    prefetch: int = Field(default=0, ge=0, le=64, description="batches that are prepared while the learner computes")
    gssm: GSSMSpec = Field(description="the graph")


class FileData(Spec):
    """Sequences read from an HDF5 file; the file carries the GSSM that made them."""

    union_tags: ClassVar[tuple[str, ...]] = ("file",)

    path: str = Field(min_length=1, description="HDF5 file written by nanollama.apps.gssm.data")
    kernels_hash: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{8,64}$",
        description="first digits of the hash of the kernels that the file must be made of, as it is printed when the "
        "file is written; any file will do when absent",
    )
    n_data: int | None = Field(default=None, ge=1, description="use only the first n_data sequences; all when absent")
    batch_size: int = Field(ge=1, le=2**20, description="sequences per step, over all ranks")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the order in which sequences are visited")
    prefetch: int = Field(default=0, ge=0, le=64, description="batches that are prepared while the learner computes")


def _source(value: Any) -> str:
    present = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "file" if "path" in present else "online"


DataSpec = Annotated[
    Annotated[OnlineData, Tag("online")] | Annotated[FileData, Tag("file")],
    Discriminator(_source),
]


class DatasetFile(Spec):
    """One file of a generated dataset. Its name is the split that keys the randomness of its sequences."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="split, for example train or test")
    path: str = Field(min_length=1, description="HDF5 file to write")
    n_data: int = Field(ge=1, le=2**40, description="number of sequences")


class DatasetSpec(Spec):
    """Root of a dataset generation config."""

    seq_len: int = Field(ge=2, le=2**20, description="tokens per sequence, the start token included")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the kernels and of the sequences")
    chunk_size: int = Field(default=1024, ge=1, le=2**20, description="sequences sampled and written at a time")
    overwrite: bool = Field(default=False, description="replace files that exist; they are refused otherwise")
    gssm: GSSMSpec = Field(description="the graph")
    sets: tuple[DatasetFile, ...] = Field(strict=False, description="the files to write, at least one")
    launcher: LauncherSpec = Field(default_factory=LauncherSpec)

    @model_validator(mode="after")
    def _check_sets(self) -> DatasetSpec:
        problems = [] if self.sets else [Problem(path="sets", message="no set is listed", remedy="list at least one")]
        for key in ("name", "path"):
            values = [getattr(item, key) for item in self.sets]
            problems += [
                Problem(path=f"sets.{i}.{key}", message=f"'{value}' is used by another set", remedy="choose another")
                for i, value in enumerate(values)
                if value in values[:i]
            ]
        if problems:
            raise Problems(problems)
        return self
