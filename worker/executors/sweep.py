"""`python -m worker.executors.sweep ATTEMPT_ID`: end everything that an attempt has left on this node.

A job of Slurm calls it when its supervisor was killed outright. Where Slurm tells the processes of a job by their
parents (proctrack/linuxproc), what such a supervisor leaves behind would go on, though the job has ended.
"""

from __future__ import annotations

import sys

from worker.executors.processes import find_tree, kill_tree


def main(attempt_id: str) -> None:
    """Return when nothing is left."""
    kill_tree(lambda: find_tree(attempt_id))


if __name__ == "__main__":
    main(sys.argv[1])
