"""Ways to do a step of exact inference, and what is chosen and computed for each latent; see `plan`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.data.gssm import Array

Ints32 = NDArray[np.int32]


@dataclass(frozen=True)
class Option:
    """A way to do a step, with what one token of one sequence costs."""

    method: str
    multiplications: int
    nanoseconds: float
    bytes: int

    def __str__(self) -> str:
        cost = f"{self.multiplications:,} multiplications, {self.nanoseconds / 1e3:,.2f} us"
        return f"{self.method}: {cost} a token, {self.bytes:,} bytes of tables"


@dataclass(frozen=True)
class Sparse:
    """Matrices [blocks, old, new] as excess over the rows' smallest entries, sorted by (block, old, new)."""

    block: NDArray[np.int64]
    old: NDArray[np.int64]
    new: NDArray[np.int64]
    value: Array
    background: Array  # [blocks, old]

    @classmethod
    def of(cls, table: Array) -> Sparse:
        """Split rows into background and excess; what is kept is at least one rounding above the background."""
        background = table.min(axis=2)
        block, old, new = np.nonzero(table > background[:, :, None])
        value = table[block, old, new] - background[block, old]
        return cls(block=block, old=old, new=new, value=value, background=background)


@dataclass(frozen=True)
class Step:
    """One step of the recursion: the joint distribution is viewed as [before, states, after].

    Attributes:
        names: of the latents, one or several fused ones.
        parents: for each of the `before` states the joint state of the parents; None without parents.
        num_parents: joint states of the parents.
        feedback: symbols of x(t-1) where the tables depend on it, else 1.
        option: how it is done.
        options: all ways that were weighed.
    """

    names: tuple[str, ...]
    before: int
    states: int
    after: int
    parents: Ints32 | None
    num_parents: int
    feedback: int
    option: Option
    options: tuple[Option, ...]

    @property
    def sparse(self) -> bool:
        """Whether the matrix is kept as background and excess."""
        return self.option.method.endswith("sparse")

    @property
    def factored(self) -> bool:
        """Whether the parents act by scaling."""
        return self.option.method.startswith("factored")


@dataclass(frozen=True)
class Tables:
    """What a step computes with: `matrix` [blocks, old, new], and for a factored step the scalings [blocks, states].

    Blocks are joint states of (x(t-1), parents); a single one holds for all.
    """

    matrix: Array
    pre: Array | None = None
    post: Array | None = None


@dataclass(frozen=True)
class Observation:
    """P(x | parents), as a table [V, P] or as lead [V, A] * trail [V, C] * inverse [P = A * C].

    `parents` is the parents' joint state of each of the S states; None where both are the same.
    """

    num_parents: int
    factored: bool
    bytes: int
    parents: Ints32 | None
