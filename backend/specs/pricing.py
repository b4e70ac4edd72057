"""What it costs to score a batch with the true model, without scoring one: the engine's own cost model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from nanollama.data.gssm import draw_kernels, relevant_latents, table_shapes
from nanollama.data.plan import Plan
from nanollama.spec.gssm import GSSMSpec

MEMORY_BUDGET, MAX_OPERATIONS = 2**30, 2**28
"""The engine's limits, of nanollama.data.filter, which is not imported here: it compiles."""

PRICED_STATES, PRICED_ENTRIES = 2**18, 2**21
"""Joint states, and entries of kernels, up to which a request draws the kernels to price them: below a second, once."""

_ITEM = 8  # bytes of a probability


@dataclass(frozen=True)
class Price:
    """Of a batch.

    Attributes:
        method: how it would be scored; None where it is not known.
        states: joint states of the latents that the tokens depend on.
        seconds_per_batch: of one core; None where it is not known.
        reason: why it is not scored, or not priced.
    """

    method: str | None
    states: int
    seconds_per_batch: float | None
    reason: str | None


@lru_cache(maxsize=256)
def price_bound(graph: GSSMSpec, seed: int, seq_len: int, batch_size: int) -> Price:
    """What it costs to score `batch_size` sequences of `seq_len` tokens, the start token included."""
    latents = relevant_latents(graph)
    dims = [node.state_dim for node in latents if node.state_dim > 1]
    states = math.prod(dims)
    redrawn = [node.name for node in (*latents, graph.observed) if node.mode == "context"]
    if redrawn:
        why = f"the kernels of {', '.join(redrawn)} are redrawn for every sequence: batches are scored where a formula"
        return Price(None, states, None, f"{why} applies; elsewhere a job bounds the entropy from both sides")
    if states * (2 * len(dims) + 1) > MAX_OPERATIONS or 2 * _ITEM * states > MEMORY_BUDGET:
        return Price(None, states, None, _out_of_reach(states))
    entries = sum(rows * columns for node in graph.build_order() for rows, columns in table_shapes(graph, node))
    if states > PRICED_STATES or entries > PRICED_ENTRIES:
        command = "`python -m nanollama.apps.gssm.entropy config=FILE explain=true`"
        return Price(None, states, None, f"too large to be priced here; {command} prices it")
    plan = Plan(draw_kernels(graph, seed), item=_ITEM, table_bytes=MEMORY_BUDGET // 2)
    if plan.multiplications > MAX_OPERATIONS or plan.fixed_bytes > MEMORY_BUDGET:
        return Price(None, states, None, _out_of_reach(states))
    methods = list(dict.fromkeys(step.option.method for step in plan.steps))
    seconds = plan.nanoseconds() * (seq_len - 1) * batch_size / 1e9
    return Price(f"forward filter: {' and '.join(methods) or 'no latents'}", states, seconds, None)


def _out_of_reach(states: int) -> str:
    count = f"{states:,}" if states < 2**63 else f"about 10^{math.log10(states):.0f}"
    return f"the exact bound is out of reach: {count} joint states; use fewer or smaller latents, or fewer parents"
