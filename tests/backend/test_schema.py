from __future__ import annotations

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from backend.app import SCOPES
from tests.support.service import Caller, checkpoint_line

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ENDLESS = ("/events/stream", "/logs/stream")  # followed in tests of their own
OPERATIONS = sorted((method, path) for method, path in SCOPES if not path.endswith(ENDLESS))
EXAMPLES = 6


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_service_does_what_its_documentation_says(
    served: tuple[FastAPI, str], caller: Caller, method: str, path: str
) -> None:
    lease = caller.start()
    caller.put(lease, "events.jsonl", checkpoint_line(0, 5))
    real = {
        "run_id": lease["run_id"],
        "attempt_id": lease["attempt_id"],
        "experiment_id": caller.run(lease["run_id"])["experiment_id"],
        "worker_id": "w",
        "content_hash": caller.get("/gssms")["items"][0]["hash"],
        "step": 5,
        "name": "stdout.log",
        "token_id": "t0",
    }
    operation = schemathesis.openapi.from_dict(served[0].openapi())[path][method]
    known = {name: value for name, value in real.items() if f"{{{name}}}" in path}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(path_parameters=known or None))
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and "wait_seconds" in case.body:
            case.body["wait_seconds"] = 0
        case.call_and_validate(base_url=served[1], checks=CHECKS)

    check()
