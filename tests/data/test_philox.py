from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.jit import jit
from nanollama.data.philox import multiply, philox, round_keys

WORD = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]))


@jit()
def halves(a: int, b: int) -> tuple[int, int]:
    return multiply(a, b)


@jit()
def block_of(keys: np.ndarray, block: int, index: int, purpose: int) -> tuple[int, int, int, int]:
    return philox(keys, block, index, purpose)


@settings(deadline=None, max_examples=300)
@given(a=WORD, b=WORD)
def test_both_halves_of_a_product(a, b):
    high, low = halves(np.uint64(a), np.uint64(b))
    assert int(high) << 64 | int(low) == a * b


@settings(deadline=None, max_examples=300)
@given(key=st.tuples(WORD, WORD), block=st.integers(0, 2**40), index=WORD, purpose=WORD)
def test_blocks_are_those_of_numpy(key, block, index, purpose):
    counter = np.array([block, 0, index, purpose], dtype=np.uint64)
    expected = np.random.Philox(counter=counter, key=np.array(key, dtype=np.uint64)).random_raw(4)
    words = block_of(round_keys(np.array(key, dtype=np.uint64)), *(np.uint64(x) for x in (block, index, purpose)))
    assert [int(word) for word in words] == expected.tolist()
