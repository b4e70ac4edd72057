"""Older shapes of a config, brought into the shape of today before it is validated.

The established shape of this field's configs has a `launcher` beside a `run_config` that nests everything else, a grid
inside the launcher, data files that list several graphs and seeds, and keys that no longer mean anything. Nothing here
is an error: what is not understood is passed on to validation, which says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanollama.spec.base import Note, Problem, SpecError

_BATCHES = "is idle: data.prefetch says how many batches are prepared ahead"
_METHOD = "is idle: the bound is computed by the cheapest exact method that fits into memory"

IDLE = {
    "launcher.overwrite": "is idle: nothing is overwritten, each start is the next attempt in its run directory",
    "launcher.copy_code": "is idle: the full config is stored with the run; keep the code under version control",
    "launcher.torchrun": "is idle: every run goes through torchrun, with cluster.nproc_per_node ranks",
    "launcher.python_env": "is idle: a run uses the interpreter of the launcher",
    "launcher.slurm.script_extra": "is idle: load modules before the launcher is called, jobs inherit its environment",
    "cluster.os_environment": "is idle: export variables in the shell; cluster.cpu_threads limits threads",
    "orchestration.checkpoint.sync_step": "is idle: all parts of a checkpoint are of one step",
    "orchestration.utils.period": "is idle: Python collects its garbage by itself",
    "optim.fused": "is idle: AdamW is always fused",
    "data.asynchronous": _BATCHES,
    "data.buffer_size": _BATCHES,
    "model.block.seq_len": "is idle: rotary positions have no longest sequence",
    "low_memory_hmm": _METHOD,
    "fast_calculation": _METHOD,
    "low_memory": _METHOD,
    "evaluation.data.asynchronous": _BATCHES,
    "evaluation.data.buffer_size": _BATCHES,
    "evaluation.data.seed": "is idle: an evaluation visits every sequence once, in order",
    "evaluation.slurm.script_extra": "is idle: load modules before the launcher is called",
    "evaluation.cluster.os_environment": "is idle: export variables in the shell",
    "evaluation.orchestration": "is idle: an evaluation writes into the run that it evaluates",
}
"""Keys that are accepted and mean nothing any more, by their place in today's shape, and what there is instead."""

_SLURM = ("launcher.slurm", "evaluation.slurm")
_EMPTY_IS_ABSENT = (
    *(f"{place}.{key}" for place in _SLURM for key in ("partition", "mem", "constraint", "exclude", "account", "qos")),
    *("launcher.log_dir", "orchestration.log_dir", "orchestration.wandb.entity", "evaluation.data.path"),
    *("cluster.device", "cluster.backend", "model.implementation", "evaluation.cluster.device"),
)
_MINUS_ONE_IS_ABSENT = tuple(f"{place}.time" for place in _SLURM)
_LAUNCHERS = {"sbatch": "slurm", "slurm": "slurm", "bash": "local", "local": "local", "torchrun": "local"}
_ESTABLISHED_WARMUP = 2000
_ESTABLISHED_SLURM = {"nb_gpus": 1, "nb_cpus": 10}


@dataclass(frozen=True)
class Translation:
    """A config in today's shape.

    Attributes:
        data: the config; the sections that were touched are copies.
        notes: what was found idle or was moved; none for a config that had today's shape already.
        origins: from a dotted path of today to the one in the user's own text, for what has moved, subtrees included.
    """

    data: dict[str, Any]
    notes: tuple[Note, ...]
    origins: Mapping[str, str]


def translate(data: Mapping[str, Any]) -> Translation:
    """Bring a config into today's shape.

    Raises:
        SpecError: a key that stands both inside and beside `run_config`, or a launcher that is not known.
    """
    translator = _Translator(_copy(data))
    translator.unnest()
    translator.drop_idle()
    translator.normalise()
    translator.translate_launcher()
    translator.translate_entropy()
    translator.translate_lists()
    if translator.problems:
        raise SpecError(translator.problems)
    return Translation(translator.data, tuple(translator.notes), translator.origins)


def origin(path: str, origins: Mapping[str, str]) -> str:
    """The place in the user's text of a dotted path of today: that of its nearest parent which has moved."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        moved = origins.get(".".join(parts[:end]))
        if moved is not None:
            return ".".join([moved, *parts[end:]])
    return path


class _Translator:
    """One config under translation; every step leaves alone what it does not know."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.notes: list[Note] = []
        self.problems: list[Problem] = []
        self.origins: dict[str, str] = {}
        self.established = isinstance(data.get("run_config"), dict)

    def unnest(self) -> None:
        """Move what stands in `run_config` to the root."""
        if not self.established:
            return
        nested = self.data.pop("run_config")
        for key, value in nested.items():
            if key in self.data:
                message = f"'{key}' stands both inside and beside run_config"
                self.problems.append(Problem(path=f"run_config.{key}", message=message, remedy="remove one"))
            self.data[key] = value
            self.origins[key] = f"run_config.{key}"

    def drop_idle(self) -> None:
        """Take out the keys that mean nothing any more, axes of the grid included."""
        for path, text in IDLE.items():
            if self._pop(path) is not None:
                self._note(path, text)
        launcher = self._section("launcher")
        for grid, place in ((self.data.get("grid"), "grid"), (launcher.get("grid"), "launcher.grid")):
            if isinstance(grid, dict):
                self._drop_axes(grid, "", place)

    def normalise(self) -> None:
        """Leave out values that only said 'not set'."""
        for path in _EMPTY_IS_ABSENT:
            if self._get(path) == "":
                self._pop(path)
        for path in _MINUS_ONE_IS_ABSENT:
            if self._get(path) == -1:
                self._pop(path)

    def translate_launcher(self) -> None:
        """Names, kinds and the grid; and the defaults of the established shape that would change a run."""
        launcher = self._section("launcher")
        self._move_name(launcher)
        if "grid" in launcher and "grid" not in self.data:
            self.data["grid"] = launcher.pop("grid")
            self.origins["grid"] = "launcher.grid"
        if not self.data.get("grid", True):
            del self.data["grid"]
        script = launcher.get("script")
        if isinstance(script, str) and script.startswith("src."):
            launcher["script"] = "nanollama." + script.removeprefix("src.").removeprefix("nanollama.")
            self._note("launcher.script", f"is {launcher['script']} here")
        if "launcher" in launcher:
            self._translate_kind(launcher)
        if self.established and isinstance(self.data.get("optim"), dict):
            self._state_warmup(self.data["optim"])

    def translate_entropy(self) -> None:
        """An entropy file names the graph beside its data; a set carries its own."""
        graph, data = self.data.get("gssm"), self.data.get("data")
        if not (self.established and isinstance(graph, dict) and isinstance(data, dict)) or "model" in self.data:
            return
        del self.data["gssm"]
        if "path" in data:
            self._note("gssm", "is idle: the file at data.path carries the graph and the seed that made it")
            return
        inner = graph.pop("gssm", {})
        seed = graph.pop("seed", None)
        data["gssm"] = {**graph, **inner}
        self.origins["data.gssm"] = "run_config.gssm"
        if seed is not None:
            data["seed"] = seed
            self.origins["data.seed"] = "run_config.gssm.seed"

    def translate_lists(self) -> None:
        """A data file that lists seeds and graphs is a grid over them, graphs slowest; its sets are named."""
        sets = self.data.get("sets")
        if not isinstance(sets, list):
            return
        taken = {item["name"] for item in sets if isinstance(item, dict) and isinstance(item.get("name"), str)}
        for i, item in enumerate(sets):
            if isinstance(item, dict) and "name" not in item and isinstance(item.get("path"), str):
                item["name"] = name = _set_name(item["path"], i, taken)
                taken.add(name)
                self._note(f"sets.{i}.name", f"is '{name}', after its file; it keys the randomness of the set")
        axes: dict[str, Any] = {}
        gssm = self.data.get("gssm")
        nodes = gssm.get("nodes") if isinstance(gssm, dict) else None
        if isinstance(gssm, dict) and isinstance(nodes, list) and nodes and all(isinstance(n, list) for n in nodes):
            axes["gssm.nodes"] = gssm.pop("nodes")
        if isinstance(self.data.get("seed"), list):
            axes["seed"] = self.data.pop("seed")
        for key in axes:
            self.origins[f"grid.{key}"] = origin(key, self.origins)
        if axes:
            given = self.data.get("grid")
            self.data["grid"] = {**axes, **(given if isinstance(given, dict) else {})}

    def _move_name(self, launcher: dict[str, Any]) -> None:
        name = launcher.pop("name", None)
        if name is None:
            return
        orchestration = self.data.setdefault("orchestration", {})
        if not isinstance(orchestration, dict) or "name" in orchestration:
            self._note("launcher.name", "is idle: orchestration.name names the run")
            return
        orchestration["name"] = name
        self.origins["orchestration.name"] = "launcher.name"
        self._note("launcher.name", "is orchestration.name now")

    def _translate_kind(self, launcher: dict[str, Any]) -> None:
        word = launcher.pop("launcher")
        kind = _LAUNCHERS.get(word.lower()) if isinstance(word, str) else None
        if kind is None:
            message = f"no launcher is called {word!r}"
            self.problems.append(Problem(path="launcher.launcher", message=message, remedy="use sbatch or local"))
            return
        if "kind" in launcher:
            self._note("launcher.launcher", "is idle: launcher.kind is given")
            return
        launcher["kind"] = kind
        self.origins["launcher.kind"] = "launcher.launcher"
        self._note("launcher.launcher", f"is launcher.kind: {kind} now")
        slurm = launcher.setdefault("slurm", {})
        if kind == "slurm" and isinstance(slurm, dict):
            self._state_resources(slurm)

    def _state_resources(self, slurm: dict[str, Any]) -> None:
        for key, value in _ESTABLISHED_SLURM.items():
            if key not in slurm:
                slurm[key] = value
                self._note(f"launcher.slurm.{key}", f"is {value}, as where this shape of configs comes from")
        cluster = self.data.setdefault("cluster", {})
        ranks = slurm["nb_gpus"]
        if isinstance(cluster, dict) and "nproc_per_node" not in cluster and isinstance(ranks, int) and ranks > 1:
            cluster["nproc_per_node"] = ranks
            self.origins["cluster.nproc_per_node"] = "launcher.slurm.nb_gpus"
            text = f"gives cluster.nproc_per_node {ranks} too; data.batch_size counts the sequences of all ranks"
            self._note("launcher.slurm.nb_gpus", text)

    def _state_warmup(self, optim: dict[str, Any]) -> None:
        steps = optim.get("steps")
        if "warmup" not in optim and isinstance(steps, int) and steps > 0:
            optim["warmup"] = min(_ESTABLISHED_WARMUP, steps)
            text = f"is {optim['warmup']}, as where this shape of configs comes from; the default here is shorter"
            self._note("optim.warmup", text)

    def _drop_axes(self, grid: dict[str, Any], prefix: str, place: str) -> None:
        for key in list(grid):
            path = f"{prefix}{key}"
            if path in IDLE:
                del grid[key]
                self._note(f"{place}.{path}", f"{IDLE[path]}; the grid goes on without it")
            elif isinstance(grid[key], dict):
                self._drop_axes(grid[key], f"{path}.", place)
                if not grid[key]:
                    del grid[key]

    def _section(self, name: str) -> dict[str, Any]:
        """A section that may be changed; one that is absent, or is no section, stays out of the config."""
        section = self.data.get(name)
        return section if isinstance(section, dict) else {}

    def _parent(self, path: str) -> tuple[dict[str, Any], str]:
        *sections, key = path.split(".")
        target: Any = self.data
        for section in sections:
            target = target.get(section) if isinstance(target, dict) else None
        return target if isinstance(target, dict) else {}, key

    def _get(self, path: str) -> Any:
        section, key = self._parent(path)
        return section.get(key)

    def _pop(self, path: str) -> tuple[Any] | None:
        """Take a key out; its value as a tuple of one, or None where there is no such key."""
        section, key = self._parent(path)
        return (section.pop(key),) if key in section else None

    def _note(self, path: str, text: str) -> None:
        self.notes.append(Note(path=origin(path, self.origins), text=text))


def _set_name(path: str, index: int, taken: set[str]) -> str:
    """A name for a set, from the name of its file."""
    stem = path.rsplit("/", 1)[-1].split(".", 1)[0].replace("${GRIDID}", "").replace("$GRIDID", "")
    word = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in stem).strip("_-")[:60]
    return word if word and word not in taken else f"{word or 'set'}_{index}"


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
