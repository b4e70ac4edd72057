from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.spec.expression import NotAList, read_list

plain = st.recursive(
    st.one_of(
        st.integers(-(2**40), 2**40),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
        st.booleans(),
        st.none(),
    ),
    lambda items: st.lists(items, max_size=4),
    max_leaves=10,
)


@given(st.lists(plain, max_size=5))
def test_what_python_writes_is_read_back(values: list[Any]) -> None:
    assert read_list(repr(values)) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("range(3)", [0, 1, 2]),
        ("list(range(10, 0, -5))", [10, 5]),
        ("[1, 2] + [3]", [1, 2, 3]),
        ("range(0, 4, 2) + range(1, 4, 2)", [0, 2, 1, 3]),
        ("(8, 16)", [8, 16]),
        ("1e-3, 1e-2", [1e-3, 1e-2]),
        ("[2**i for i in range(3, 6)]", [8, 16, 32]),
        ("[-1.5 * i // 2 for i in [1, 2]]", [-1.0, -2.0]),
        ("[int(10 ** (i / 2)) for i in range(3)]", [1, 3, 10]),
        ("[[i, j] for i in range(2) for j in (5, 6)]", [[0, 5], [0, 6], [1, 5], [1, 6]]),
        ("[round(1 / 3, 2), float(2), 7 % 4]", [0.33, 2.0, 3]),
    ],
)
def test_forms(text: str, values: list[Any]) -> None:
    assert read_list(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mamba", "uses `mamba`"),
        ("3", "not a list"),
        ("[1, 2", "cannot be read"),
        ("__import__('os').system('true')", "has no meaning"),
        ("open('x')", "calls `open`"),
        ("np.logspace(0, 1)", "has no meaning"),
        ("[i for i in range(3) if i]", "comprehension with more"),
        ("[x.real for x in [1]]", "has no meaning"),
        ("range(10**9)", "1,000,000,000 values"),
        ("[i for i in range(9999) for j in range(9999)]", "values; the limit is 10,000"),
        ("[9**9**9**9]", "to the power of"),
        ("['a' * 3]", "computes with 'a'"),
        ("[1 / 0]", "cannot be read"),
        ("[(-1) ** 0.5]", "too large"),
        ("range(0.5)", "cannot be read"),
        ("[1 << 3]", "has no meaning"),
        ("[" * 5000, "cannot be read"),
        ("[1," * 9999, "longer than"),
    ],
)
def test_what_has_no_meaning_is_refused(text: str, message: str) -> None:
    with pytest.raises(NotAList, match=message.replace("(", r"\(").replace("*", r"\*")):
        read_list(text)
