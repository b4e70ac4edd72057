"""Layered layout of a directed acyclic graph, parents above children: rows, order within a row, positions along it.

The steps are those of Sugiyama, Tagawa and Toda (1981): rows by the longest path, few crossings by sweeping with
barycentres, and positions that are the least-squares ones under minimal distances. An edge that passes a row takes a
place of its own there, shared by all edges of the same source, so that no edge ever runs through a node.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

_SWEEPS = 12
_STRAIGHT = 8.0  # how much more a passing edge wants to go straight down than a node wants to stand below its parents


@dataclass(frozen=True)
class Layout:
    """Where everything stands.

    Attributes:
        rows: vertices of each row from left to right. The first `n` vertices are the nodes, the others are places where
            edges pass through a row.
        x: centre of each vertex.
        segments: pieces (upper, lower) of edges between neighbouring rows.
    """

    rows: list[list[int]]
    x: list[float]
    segments: list[tuple[int, int]]


def layered(
    parents: Sequence[Sequence[int]], extents: Sequence[tuple[float, float]], *, last: int, max_row: int, gap: float
) -> Layout:
    """Lay out a graph.

    Args:
        parents: of each node, all listed before it.
        extents: space that each node needs to the left and to the right of its centre.
        last: a node without children, which gets the lowest row for itself.
        max_row: a row with more nodes than these goes on in the next one.
        gap: free space between neighbours in a row; half as much where both are passing edges.
    """
    row_of = _assign_rows(parents, last, max_row)
    rows, segments = _with_passages(parents, row_of)
    extents = [*extents, *((0.0, 0.0) for _ in range(sum(map(len, rows)) - len(parents)))]
    above, below = _neighbours(segments, len(extents))
    _order(rows, above, below)
    x = _positions(rows, above, below, extents, num_nodes=len(parents), gap=gap)
    return Layout(rows=rows, x=x, segments=segments)


def _assign_rows(parents: Sequence[Sequence[int]], last: int, max_row: int) -> list[int]:
    """As high as the parents allow; then roots move down to just above their highest child."""
    row_of = [0] * len(parents)
    counts: dict[int, int] = {}
    nodes = [i for i in range(len(parents)) if i != last]
    for i in nodes:
        row = 1 + max((row_of[p] for p in parents[i]), default=-1)
        while counts.get(row, 0) >= max_row:
            row += 1
        row_of[i] = row
        counts[row] = counts.get(row, 0) + 1
    row_of[last] = max(counts, default=-1) + 1
    for i in nodes:
        children = [row_of[c] for c in range(len(parents)) if i in parents[c]]
        row = min(children, default=0) - 1
        if not parents[i] and row > row_of[i] and counts.get(row, 0) < max_row:
            counts[row_of[i]] -= 1
            counts[row] = counts.get(row, 0) + 1
            row_of[i] = row
    used = {row: k for k, row in enumerate(sorted(set(row_of)))}
    return [used[row] for row in row_of]


def _with_passages(
    parents: Sequence[Sequence[int]], row_of: Sequence[int]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Rows with a vertex wherever edges of a node pass through a row, and the pieces of edges between rows."""
    rows: list[list[int]] = [[] for _ in range(max(row_of) + 1)]
    children: list[list[int]] = [[] for _ in parents]
    for child, own in enumerate(parents):
        for parent in own:
            children[parent].append(child)
    num_vertices = len(parents)
    segments = []
    for node in range(len(parents)):
        rows[row_of[node]].append(node)
        tail = node
        deepest = max((row_of[c] for c in children[node]), default=0)
        for row in range(row_of[node] + 1, deepest + 1):
            segments += [(tail, c) for c in children[node] if row_of[c] == row]
            if row < deepest:
                rows[row].append(num_vertices)
                segments.append((tail, num_vertices))
                tail = num_vertices
                num_vertices += 1
    return rows, segments


def _neighbours(segments: Sequence[tuple[int, int]], count: int) -> tuple[list[list[int]], list[list[int]]]:
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for upper, lower in segments:
        above[lower].append(upper)
        below[upper].append(lower)
    return above, below


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Reorder rows in place: sweeps that sort a row by the mean place of its neighbours; the best order is kept."""
    place = [0.0] * len(above)

    def number(row: list[int]) -> None:
        for k, vertex in enumerate(row):
            place[vertex] = (k + 0.5) / len(row)

    def mean_place(vertex: int, near: list[list[int]]) -> float:
        found = near[vertex]
        return sum(place[v] for v in found) / len(found) if found else place[vertex]

    for row in rows:
        number(row)
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(_SWEEPS):
        if fewest == 0:
            break
        near = above if sweep % 2 == 0 else below
        for row in rows[1:] if sweep % 2 == 0 else rows[-2::-1]:
            wanted = {vertex: mean_place(vertex, near) for vertex in row}
            row.sort(key=wanted.__getitem__)
            number(row)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    rows[:] = best


def _crossings(rows: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """Pairs of pieces that cross, counted row by row as inversions."""
    total = 0
    for upper, lower in itertools.pairwise(rows):
        place = {vertex: k for k, vertex in enumerate(lower)}
        seen: list[int] = []
        for vertex in upper:
            ends = sorted(place[v] for v in below[vertex])
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _positions(
    rows: Sequence[Sequence[int]],
    above: list[list[int]],
    below: list[list[int]],
    extents: Sequence[tuple[float, float]],
    *,
    num_nodes: int,
    gap: float,
) -> list[float]:
    """Centres: every row in turn takes the places nearest to the means of its neighbours."""
    distances = [
        [
            extents[a][1] + extents[b][0] + (gap if min(a, b) < num_nodes else gap / 2)
            for a, b in itertools.pairwise(row)
        ]
        for row in rows
    ]
    x = [0.0] * len(extents)
    for row, apart in zip(rows, distances, strict=True):
        _place(row, [0.0] * len(row), [1.0] * len(row), apart, x)
    both = [a + b for a, b in zip(above, below, strict=True)]
    for sweep in range(_SWEEPS):
        near = both if sweep >= _SWEEPS - 2 else above if sweep % 2 == 0 else below
        order = list(zip(rows, distances, strict=True))
        for row, apart in order if sweep % 2 == 0 else reversed(order):
            wanted, weights = [], []
            for vertex in row:
                pulls = [
                    (x[v], _STRAIGHT if v >= num_nodes and vertex >= num_nodes else 1.0) for v in near[vertex]
                ] or [(x[vertex], 0.1)]
                weight = sum(w for _, w in pulls)
                wanted.append(sum(w * value for value, w in pulls) / weight)
                weights.append(weight)
            _place(row, wanted, weights, apart, x)
    left = min((x[v] - extents[v][0] for row in rows for v in row), default=0.0)
    return [value - left for value in x]


def _place(
    row: Sequence[int], wanted: Sequence[float], weights: Sequence[float], apart: Sequence[float], x: list[float]
) -> None:
    """Set the centres of a row: least squares to the wanted ones under minimal distances, by pooling violators.

    With the distances subtracted it is isotonic regression (Ayer et al. 1955).
    """
    shifts = [0.0]
    for distance in apart:
        shifts.append(shifts[-1] + distance)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, members
    for target, weight, shift in zip(wanted, weights, shifts, strict=False):
        block = (target - shift, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, heavy, members = blocks.pop()
            total = heavy + block[1]
            block = ((mean * heavy + block[0] * block[1]) / total, total, members + block[2])
        blocks.append(block)
    values = [mean for mean, _, members in blocks for _ in range(members)]
    for vertex, value, shift in zip(row, values, shifts, strict=False):
        x[vertex] = value + shift
