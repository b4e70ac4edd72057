"""The training app that kills one of its ranks, as `kill -9` does, at a moment that is chosen by number.

`python -m tests.support.dying_training RANK MOMENT ARGUMENTS…`: the moments of a rank are counted from 0. They are the
beginnings of its steps, and whatever changes the disk while a checkpoint is being written.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from nanollama.apps.gssm.train import Trainer, main
from nanollama.cluster.cluster import leave, this_rank
from nanollama.monitor.digest import DigestingFile
from nanollama.spec.command import run_command

MOMENTS = ((Trainer, "train_step"), (DigestingFile, "finish"), (os, "fsync"), (Path, "rename"), (Path, "mkdir"))


def die_at(moment: int) -> None:
    """Have this process killed at the moment."""
    count = itertools.count()

    def patch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if next(count) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    for owner, name in MOMENTS:
        patch(owner, name)


if __name__ == "__main__":
    victim, moment, *arguments = sys.argv[1:]
    if int(victim) == this_rank():
        die_at(int(moment))
    leave(run_command(main, arguments))
