from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from nanollama.spec.drawing import draw_graph
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from nanollama.spec.layout import layered
from tests.support.gssm import graphs

SVG = "{http://www.w3.org/2000/svg}"
MIXED = GSSMSpec(
    nodes=(
        NodeSpec(name="C", state_dim=3, alpha=0.2, parents=("B", "X"), mode="slow", kernel_type="fullrank"),
        NodeSpec(name="B", state_dim=2, alpha=0.5, parents=("A",), mode="context"),
        NodeSpec(name="A", state_dim=1, alpha=1e-3),
        NodeSpec(name="D", state_dim=3, alpha=0.3, parents=("A", "X"), mode="dead"),
        NodeSpec(name="X", state_dim=5, alpha=0.7, parents=("C", "A"), observed=True),
    )
)


def chain(length: int, *, feeding: int = 1) -> GSSMSpec:
    """Latents that each depend on all within reach before them, all of which feed the observed node."""
    latents = [
        NodeSpec(name=f"Z{i}", state_dim=2, alpha=0.1, parents=tuple(f"Z{j}" for j in range(max(0, i - feeding), i)))
        for i in range(length)
    ]
    names = tuple(node.name for node in latents)
    return GSSMSpec(nodes=(*latents, NodeSpec(name="X", state_dim=4, alpha=0.1, parents=names, observed=True)))


def boxes(picture: ElementTree.Element) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each node with the loop beside it, by the node's name."""
    found = {}
    for group in picture.iter(f"{SVG}g"):
        rect, name = group.find(f"{SVG}rect"), group.find(f"{SVG}text")
        assert rect is not None
        assert name is not None
        x, y, width, height = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
        loop = 16 if "latent" in group.get("class", "") else 0
        found[str(name.text)] = (x, y, x + width + loop, y + height)
    return found


def points(path: str) -> list[tuple[float, float]]:
    """Points along a path of the commands M, V and C."""
    commands = re.findall(r"([MVC])([^MVC]*)", path)
    x = y = 0.0
    found = []
    for command, text in commands:
        numbers = [float(n) for n in text.split()]
        if command == "C":
            corners = [(x, y), *zip(numbers[::2], numbers[1::2], strict=True)]
            for k in range(21):
                t = k / 20
                weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
                found.append(tuple(sum(w * c[axis] for w, c in zip(weights, corners, strict=True)) for axis in (0, 1)))
            x, y = corners[-1]
        else:
            end = (numbers[0], numbers[1]) if command == "M" else (x, numbers[0])
            found += [(x + (end[0] - x) * k / 10, y + (end[1] - y) * k / 10) for k in range(command == "V" or 10, 11)]
            x, y = end
    return found


def check_geometry(spec: GSSMSpec) -> None:
    picture = ElementTree.fromstring(draw_graph(spec))
    rects = boxes(picture)
    assert rects.keys() == {node.name for node in spec.nodes}
    width, height = float(picture.get("width", "nan")), float(picture.get("height", "nan"))
    for left, top, right, bottom in rects.values():
        assert 0 < left < right < width
        assert 0 < top < bottom < height
    rows: dict[int, list[tuple[float, float]]] = {}
    for left, top, right, bottom in rects.values():
        rows.setdefault(round(top + bottom), []).append((left, right))
    for row in rows.values():
        row.sort()
        assert all(a[1] < b[0] for a, b in itertools.pairwise(row))
    bands = sorted((top, bottom) for _, top, _, bottom in rects.values())
    ends = sorted({centre: max(b for t, b in bands if round(t + b) == centre) for centre in rows}.items())
    tops = sorted({centre: min(t for t, b in bands if round(t + b) == centre) for centre in rows}.items())
    assert all(end[1] < top[1] for end, top in zip(ends, tops[1:], strict=False))
    for path in picture.iter(f"{SVG}path"):
        if not path.get("class", "").startswith("edge"):
            continue
        for x, y in points(path.get("d", "")):
            inside = [n for n, (left, top, right, bottom) in rects.items() if left < x < right and top < y < bottom]
            assert not inside, (inside, x, y)


@settings(deadline=None, max_examples=60)
@given(spec=graphs(max_latents=8, modes=("default", "slow", "dead", "context")))
def test_nodes_never_overlap_and_edges_run_through_none(spec):
    check_geometry(spec)


@pytest.mark.parametrize("spec", [chain(255, feeding=0), chain(60, feeding=3), chain(40, feeding=40)])
def test_large_graphs_have_room_for_all(spec):
    check_geometry(spec)


@settings(deadline=None, max_examples=60)
@given(spec=graphs(max_latents=6))
def test_every_dependence_has_its_arrow(spec):
    picture = ElementTree.fromstring(draw_graph(spec))
    paths = [path for path in picture.iter(f"{SVG}path") if path.get("marker-end")]
    kinds = [path.get("class", "").split()[0] for path in paths]
    x = spec.observed.name
    within_a_step = sum(1 for node in spec.nodes for parent in node.parents if parent != x)
    assert kinds.count("edge") == within_a_step
    assert kinds.count("feedback") == sum(x in node.parents for node in spec.nodes)
    assert kinds.count("loop") == len(spec.nodes) - 1
    rects = boxes(picture)
    for node in spec.nodes:
        for parent in node.parents:
            if parent != x:
                assert rects[parent][3] < rects[node.name][1]
    assert rects[x][1] == max(top for _, top, _, _ in rects.values())


def test_arrows_end_at_the_top_of_the_child():
    picture = ElementTree.fromstring(draw_graph(MIXED))
    tops = {top for _, top, _, _ in boxes(picture).values()}
    for path in picture.iter(f"{SVG}path"):
        if path.get("marker-end") and path.get("class", "").startswith("edge"):
            before, end = points(path.get("d", ""))[-2:]
            assert end[1] in tops
            assert before[0] == end[0]
            assert before[1] < end[1]


def test_what_a_node_is_stands_in_it():
    picture = ElementTree.fromstring(draw_graph(MIXED))
    groups = {str(group[2 if group[2].tag == f"{SVG}text" else 3].text): group for group in picture.iter(f"{SVG}g")}
    lines = {name: [text.text for text in group.iter(f"{SVG}text")] for name, group in groups.items()}
    assert lines["C"] == ["C", "3 states · α 0.2", "slow · fullrank"]
    assert lines["A"] == ["A", "1 state · α 0.001"]
    assert lines["X"] == ["X", "5 symbols · α 0.7", "product"]
    assert groups["X"].get("class") == "node observed"
    assert groups["B"].get("class") == "node latent context"
    assert groups["D"].get("class") == "node latent dead idle"
    tip = groups["C"].find(f"{SVG}title")
    assert tip is not None
    assert tip.text == (
        "C: latent of 3 states, alpha 0.2, slow mode, fullrank kernel, parents B, X; X is that of the step before"
    )


def test_the_picture_has_a_title_and_a_description_and_follows_the_theme():
    text = draw_graph(MIXED)
    picture = ElementTree.fromstring(text)
    title, description = picture.find(f"{SVG}title"), picture.find(f"{SVG}desc")
    assert title is not None
    assert description is not None
    assert picture.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text == "Graph of 4 latents and the observed node X"
    assert "B: latent of 2 states, alpha 0.5, context mode" in str(description.text)
    assert "prefers-color-scheme:dark" in text
    assert not re.search(r'(?:fill|stroke)="#', text)


def test_a_long_description_ends_with_the_number_of_the_others():
    description = ElementTree.fromstring(draw_graph(chain(40))).find(f"{SVG}desc")
    assert description is not None
    assert str(description.text).endswith("And 17 more.")


def test_two_pictures_on_one_page_share_no_identifier():
    identifiers = [set(re.findall(r'id="([^"]+)"', draw_graph(chain(n)))) for n in (1, 2)]
    assert not identifiers[0] & identifiers[1]
    assert draw_graph(chain(2)) == draw_graph(chain(2))


def test_a_graph_without_crossings_is_drawn_without_any():
    parents = [[], [], [0], [1], [0], [1], [2, 4, 3, 5]]
    layout = layered(parents, [(10.0, 10.0)] * 7, last=6, max_row=16, gap=5.0)
    middle = [[vertex in (2, 4) for vertex in row] for row in layout.rows][1]
    assert middle in ([True, True, False, False], [False, False, True, True])


def test_rows_that_are_full_go_on_in_the_next():
    layout = layered([[] for _ in range(40)], [(1.0, 1.0)] * 40, last=39, max_row=16, gap=1.0)
    assert [sum(vertex < 40 for vertex in row) for row in layout.rows] == [16, 16, 7, 1]
