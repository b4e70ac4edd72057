"""A worker that claims and finishes jobs, as a process: python -m tests.support.claiming URL NAME SLOTS.

Prints `ready`, waits for a line, and prints the attempts that it had as one line of JSON once no job is left.
"""

from __future__ import annotations

import json
import sys

from nanollama.api.client import Client
from nanollama.api.schemas import SyncRequest, TransitionRequest, WorkerRegistration
from nanollama.api.status import AttemptState


def claim_all(url: str, name: str, slots: int) -> list[str]:
    """Attempts, in the order in which they came."""
    done: list[str] = []
    with Client(url, timeout=300) as client:
        registration = WorkerRegistration(
            name=name, pool=name, executor="fake", host="h", user="u", run_root="/r", slots=slots, version="1"
        )
        client.register(name, registration)
        print("ready", flush=True)
        sys.stdin.readline()
        while leases := client.sync(name, SyncRequest(free_slots=slots)).leases:
            for lease in leases:
                assert lease.epoch == 1, "delivered again: an earlier reply was lost"
                done.append(lease.attempt_id)
                end = TransitionRequest(
                    transition_id=f"{name}-{len(done):08}", epoch=1, to=AttemptState.SUCCEEDED, exit_code=0, result={}
                )
                client.transition(lease.attempt_id, end)
    return done


if __name__ == "__main__":
    print(json.dumps(claim_all(sys.argv[1], sys.argv[2], int(sys.argv[3]))), flush=True)
