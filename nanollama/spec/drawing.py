"""A picture of a graph: GSSMSpec to SVG text, without any other program.

Parents stand above their children and the observed node, shaded, at the bottom. A loop marks a latent's dependence on
its own past, dashed arrows carry the token before, x(t-1). Nodes that influence no token are pale. Colours follow the
reader's theme; a page that holds the picture may set the CSS variable --n2n-ink instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from nanollama.spec.base import content_hash
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from nanollama.spec.layout import layered

_MARGIN = 20.0
_NAME_PX, _TEXT_PX = 14, 11  # font sizes
_CHARACTER = 0.61  # width of a character of a monospaced font, in font sizes
_LINE = 15.0  # height of a line of text
_PADDING = 11.0
_LOOP = 22.0  # room that a loop takes on the right of its node
_GAP = 22.0  # between neighbours in a row
_ROW_GAP, _MAX_ROW_GAP = 58.0, 190.0
_MAX_ROW = 16  # nodes
_PORT = 13.0  # between the points of two arrows
_TITLE_NODES = 24  # that the description tells one by one

_STYLE = """
.n2n-graph{color:var(--n2n-ink,#1f2328);color-scheme:light dark;font-family:ui-monospace,SFMono-Regular,Menlo,\
"DejaVu Sans Mono","Liberation Mono",Consolas,monospace}
@media (prefers-color-scheme:dark){.n2n-graph{color:var(--n2n-ink,#e6edf3)}}
.n2n-graph text{fill:currentColor;text-anchor:middle}
.n2n-graph path,.n2n-graph rect{fill:none;stroke:currentColor;stroke-width:1.3}
.n2n-graph .edge,.n2n-graph .loop{opacity:.62}
.n2n-graph .feedback{opacity:.75;stroke-dasharray:5 4}
.n2n-graph .observed rect{fill:currentColor;fill-opacity:.16;stroke-width:1.8}
.n2n-graph .context rect{stroke-dasharray:1.5 3;stroke-linecap:round;stroke-width:1.8}
.n2n-graph .slow .loop{stroke-width:2.6;opacity:.9}
.n2n-graph .dead .loop{stroke-dasharray:2 2}
.n2n-graph .idle{opacity:.45}
.n2n-graph marker path{fill:currentColor;stroke:none}
"""


@dataclass(frozen=True)
class _Box:
    """A node on the paper: its centre, its size, and the points where arrows come in, from left to right."""

    x: float
    top: float
    width: float
    height: float
    ports: tuple[float, ...]

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def right(self) -> float:
        return self.x + self.width / 2


def draw_graph(spec: GSSMSpec) -> str:
    """The graph as the text of an SVG file; equal graphs give equal text."""
    nodes = _parents_first(spec)
    drawing = _Drawing(spec, nodes)
    identity = f"n2n-{content_hash(spec)[:10]}"
    width, height = drawing.width, drawing.height
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="n2n-graph" role="img" width="{_n(width)}" '
            f'height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}" aria-labelledby="{identity}-t {identity}-d">'
        ),
        f'<title id="{identity}-t">{escape(_title(spec))}</title>',
        f'<desc id="{identity}-d">{escape(_description(spec))}</desc>',
        f"<style>{_STYLE}</style>",
        (
            f'<defs><marker id="{identity}-a" viewBox="0 0 8 8" refX="7.2" refY="4" markerWidth="7" markerHeight="7" '
            'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 .6 8 4 0 7.4z"/></marker></defs>'
        ),
        *drawing.edges(f"url(#{identity}-a)"),
        *drawing.nodes(f"url(#{identity}-a)"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


class _Drawing:
    def __init__(self, spec: GSSMSpec, nodes: Sequence[NodeSpec]) -> None:
        self._spec = spec
        self._nodes = nodes
        self._relevant = _relevant(spec)
        observed = spec.observed.name
        self._fed = [i for i, node in enumerate(nodes) if observed in node.parents]
        index = {node.name: i for i, node in enumerate(nodes)}
        parents = [[index[p] for p in node.parents if p != observed or node.observed] for node in nodes]
        self._texts = [_texts(spec, node) for node in nodes]
        widths = [_width(texts, len(node.parents)) for node, texts in zip(nodes, self._texts, strict=True)]
        extents = [
            (width / 2, width / 2 + (0 if n.observed else _LOOP)) for n, width in zip(nodes, widths, strict=True)
        ]
        self._layout = layered(parents, extents, last=index[observed], max_row=_MAX_ROW, gap=_GAP)
        self._tops, self._heights = self._rows()
        self._boxes = self._place(widths)
        edge = max(self._layout.x[v] + (extents[v][1] if v < len(nodes) else 0) for v in range(len(self._layout.x)))
        self._gutter = _MARGIN + edge + (24 if self._fed else 0)
        self.width = self._gutter + (52 if self._fed else 0) + _MARGIN
        self.height = self._tops[-1] + self._heights[-1] + _MARGIN

    def _rows(self) -> tuple[list[float], list[float]]:
        """Top and height of each row; the distance grows with how far the edges between two rows lead sideways."""
        layout, rows = self._layout, self._layout.rows
        row_of = {vertex: r for r, row in enumerate(rows) for vertex in row}
        sideways = [0.0] * len(rows)
        for upper, lower in layout.segments:
            r = row_of[lower]
            sideways[r] = max(sideways[r], abs(layout.x[upper] - layout.x[lower]))
        heights = [max(_height(self._texts[v]) for v in row if v < len(self._nodes)) for row in rows]
        tops = [_MARGIN + (18 if any(v in self._fed for v in rows[0]) else 0)]
        for r in range(1, len(rows)):
            gap = min(_ROW_GAP + 0.12 * sideways[r], _MAX_ROW_GAP)
            tops.append(tops[-1] + heights[r - 1] + gap)
        return tops, heights

    def _place(self, widths: Sequence[float]) -> list[_Box]:
        layout = self._layout
        row_of = {vertex: r for r, row in enumerate(layout.rows) for vertex in row}
        entries = [0] * len(self._nodes)
        for _, lower in layout.segments:
            if lower < len(self._nodes):
                entries[lower] += 1
        boxes = []
        for i, width in enumerate(widths):
            count = entries[i] + (i in self._fed)
            step = min(_PORT, (width - 2 * _PADDING) / max(1, count - 1))
            x = _MARGIN + layout.x[i]
            ports = tuple(x + (k - (count - 1) / 2) * step for k in range(count))
            height = _height(self._texts[i])
            top = self._tops[row_of[i]] + (self._heights[row_of[i]] - height) / 2
            boxes.append(_Box(x=x, top=top, width=width, height=height, ports=ports))
        return boxes

    def edges(self, arrow: str) -> Iterator[str]:
        """One path for each piece between two rows; a piece that ends at a node carries the arrow."""
        layout, count = self._layout, len(self._nodes)
        row_of = {vertex: r for r, row in enumerate(layout.rows) for vertex in row}
        incoming: dict[int, list[int]] = {}
        matters = [v < count and self._nodes[v].name in self._relevant for v in range(len(layout.x))]
        for upper, lower in sorted(layout.segments, key=lambda piece: -row_of[piece[0]]):
            incoming.setdefault(lower, []).append(upper)
            matters[upper] |= matters[lower]  # it matters where it leads: on from a passing edge to a node
        for lower, uppers in incoming.items():
            for k, upper in enumerate(sorted(uppers, key=lambda v: (layout.x[v], v))):
                start, above = _MARGIN + layout.x[upper], row_of[upper]
                begin = self._boxes[upper].bottom if upper < count else self._tops[above]
                leave = self._tops[above] + self._heights[above]
                end, stop = _MARGIN + layout.x[lower], self._tops[row_of[lower]]
                straight = ""
                if lower < count:  # the last bit goes straight down: it gives the arrow its direction
                    end, stop = self._boxes[lower].ports[k], stop - 7
                    straight = f"V{_n(self._boxes[lower].top)}"
                middle = _n((leave + stop) / 2)
                path = f"M{_n(start)} {_n(begin)}V{_n(leave)}C{_n(start)} {middle} {_n(end)} {middle} {_n(end)} "
                path += f"{_n(stop)}{straight}"
                head = f' marker-end="{arrow}"' if lower < count else ""
                yield f'<path class="edge{"" if matters[lower] else " idle"}" d="{path}"{head}/>'
        yield from self._feedback(arrow)

    def _feedback(self, arrow: str) -> Iterator[str]:
        """From the observed node to the right, up beside everything, and down onto the latents that see the past."""
        if not self._fed:
            return
        observed = next(box for box, node in zip(self._boxes, self._nodes, strict=True) if node.observed)
        middle, x = observed.top + observed.height / 2, self._gutter
        row_of = {vertex: r for r, row in enumerate(self._layout.rows) for vertex in row}
        for i in self._fed:
            box, bus = self._boxes[i], self._tops[row_of[i]] - 17
            port = box.ports[-1]
            path = f"M{_n(observed.right)} {_n(middle)}H{_n(x - 8)}q8 0 8 -8V{_n(bus + 8)}q0 -8 -8 -8"
            path += f"H{_n(port + 6)}q-6 0 -6 6V{_n(box.top)}"
            idle = "" if self._nodes[i].name in self._relevant else " idle"
            yield f'<path class="feedback{idle}" d="{path}" marker-end="{arrow}"/>'
        y = min(middle - 22, self._tops[-1] - 20)
        yield f'<text x="{_n(x + 30)}" y="{_n(y)}" font-size="{_TEXT_PX}">x(t−1)</text>'

    def nodes(self, arrow: str) -> Iterator[str]:
        """Boxes with their text, loops and tooltips."""
        for node, box, texts in zip(self._nodes, self._boxes, self._texts, strict=True):
            classes = ["node", "observed" if node.observed else "latent"]
            classes += [] if node.mode == "default" else [node.mode]
            classes += [] if node.name in self._relevant or node.observed else ["idle"]
            radius = 8 if node.observed else min(22.0, box.height / 2)
            yield f'<g class="{" ".join(classes)}"><title>{escape(_sentence(self._spec, node))}</title>'
            yield (
                f'<rect x="{_n(box.x - box.width / 2)}" y="{_n(box.top)}" width="{_n(box.width)}" '
                f'height="{_n(box.height)}" rx="{_n(radius)}"/>'
            )
            if not node.observed:
                y, x = box.top + box.height / 2, box.right
                path = f"M{_n(x)} {_n(y + 9)}C{_n(x + 20)} {_n(y + 17)} {_n(x + 20)} {_n(y - 17)} {_n(x)} {_n(y - 9)}"
                yield f'<path class="loop" d="{path}" marker-end="{arrow}"/>'
            for k, text in enumerate(texts):
                size, weight = (_NAME_PX, ' font-weight="600"') if k == 0 else (_TEXT_PX, "")
                y = box.top + _PADDING + (k + 0.72) * _LINE
                yield f'<text x="{_n(box.x)}" y="{_n(y)}" font-size="{size}"{weight}>{escape(text)}</text>'
            yield "</g>"


def _parents_first(spec: GSSMSpec) -> list[NodeSpec]:
    """All nodes, those without influence on the tokens too, each after its latent parents, else as listed."""
    observed = spec.observed.name
    taken: dict[str, NodeSpec] = {}
    while len(taken) < len(spec.nodes):
        for node in spec.nodes:
            if node.name not in taken and all(p in taken for p in node.parents if p != observed):
                taken[node.name] = node
    return list(taken.values())


def _relevant(spec: GSSMSpec) -> set[str]:
    """Names of the nodes that the tokens depend on, the observed one included."""
    found, waiting = set(), [spec.observed.name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += spec.node(name).parents
    return found


def _texts(spec: GSSMSpec, node: NodeSpec) -> list[str]:
    """The lines inside a node: its name, its size and concentration, and what is not plain about it."""
    states = "symbols" if node.observed else "state" if node.state_dim == 1 else "states"
    lines = [node.name, f"{node.state_dim} {states}", f"α {node.alpha:g}"]
    kinds: list[str] = [] if node.mode == "default" else [node.mode]
    if len(spec.inputs(node)) > 1:  # with one input both types are the same
        kinds.append(node.kernel_type)
    return [*lines[:1], " · ".join(lines[1:]), *([" · ".join(kinds)] if kinds else [])]


def _width(texts: Sequence[str], num_parents: int) -> float:
    name, *others = texts
    letters = max(len(name) * _NAME_PX, *(len(text) * _TEXT_PX for text in others))
    return max(letters * _CHARACTER + 2 * _PADDING, min(3.0 * num_parents, 600.0))


def _height(texts: Sequence[str]) -> float:
    return len(texts) * _LINE + 2 * _PADDING


def _sentence(spec: GSSMSpec, node: NodeSpec) -> str:
    kind = f"observed, {node.state_dim} symbols" if node.observed else f"latent of {node.state_dim} states"
    parts = [f"{node.name}: {kind}, alpha {node.alpha:g}"]
    parts += [] if node.mode == "default" else [f"{node.mode} mode"]
    parts += [f"{node.kernel_type} kernel"] if len(spec.inputs(node)) > 1 else []
    observed = spec.observed.name
    parts += [f"parents {', '.join(node.parents)}"] if node.parents else []
    text = ", ".join(parts)
    return text + (f"; {observed} is that of the step before" if observed in node.parents else "")


def _title(spec: GSSMSpec) -> str:
    latents = len(spec.nodes) - 1
    return f"Graph of {latents} latent{'' if latents == 1 else 's'} and the observed node {spec.observed.name}"


def _description(spec: GSSMSpec) -> str:
    told = [_sentence(spec, node) for node in spec.nodes[:_TITLE_NODES]]
    rest = len(spec.nodes) - len(told)
    return ". ".join(told) + (f". And {rest} more." if rest else ".")


def _n(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
