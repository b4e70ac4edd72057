from __future__ import annotations

import pytest

from nanollama.spec.base import SpecError, parse
from nanollama.spec.gssm import GSSMSpec


@pytest.mark.parametrize(
    ("kernel_type", "key", "remedy"),
    [
        ("product", "state_dim", "use fewer states, here or in the largest parent"),
        ("fullrank", "kernel_type", "use `kernel_type: product`, fewer parents or fewer states"),
    ],
)
def test_a_kernel_that_is_too_large_gets_a_remedy_that_helps(kernel_type: str, key: str, remedy: str) -> None:
    latent = {"name": "Z", "state_dim": 2**16, "alpha": 1.0, "kernel_type": kernel_type}
    observed = {"name": "X", "state_dim": 2, "alpha": 1.0, "parents": ["Z"], "observed": True}
    with pytest.raises(SpecError) as error:
        parse(GSSMSpec, {"nodes": [latent, observed]})
    (problem,) = error.value.problems
    assert (problem.path, problem.remedy) == (f"nodes.0.{key}", remedy)
    assert f"the {kernel_type} kernel of 'Z' has" in problem.message
