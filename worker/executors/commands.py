"""What is ever run for an attempt: a registered app on a checked config, never a command line from outside."""

from __future__ import annotations

import sys

from nanollama.spec.base import Spec, SpecError, parse
from nanollama.spec.experiment import APPS, ExperimentSpec
from nanollama.spec.rundir import CONFIG
from worker.executors.base import Attempt, Refused


def read_spec(attempt: Attempt) -> Spec:
    """The config of an attempt, checked: of the class that its app is registered with.

    Raises:
        Refused: an app that is not registered here, or a config that this version cannot read.
    """
    if attempt.app not in APPS:
        raise Refused(f"this worker knows no app '{attempt.app}'; it runs: {', '.join(sorted(APPS))}")
    named = attempt.config.get("app", attempt.app)
    if named != attempt.app:
        raise Refused(f"the config is of the app '{named}', the lease of '{attempt.app}'")
    try:
        return parse(APPS[attempt.app].spec, attempt.config)
    except SpecError as error:
        raise Refused(f"this worker cannot use the config: {error}") from None


def app_arguments(attempt: Attempt) -> list[str]:
    """What every app is told: its config and where to write."""
    return [f"config={attempt.directory / CONFIG}", f"attempt_dir={attempt.directory}"]


def nproc_per_node(spec: Spec) -> int:
    """Ranks of a node; one for an app that does not run as ranks."""
    return spec.cluster.nproc_per_node if isinstance(spec, ExperimentSpec) else 1


def app_command(attempt: Attempt, spec: Spec) -> list[str]:
    """The one command that is run on this machine.

    An app that runs as ranks is started by torchrun with a free rendezvous port of its own, any other as one process.
    """
    app = APPS[attempt.app]
    if not app.torchrun:
        return [sys.executable, "-m", app.module, *app_arguments(attempt)]
    torchrun = [sys.executable, "-m", "nanollama.cluster.torchrun", "--standalone"]
    ranks = ["--nproc-per-node", str(nproc_per_node(spec))]
    return [*torchrun, *ranks, "-m", app.module, *app_arguments(attempt)]
