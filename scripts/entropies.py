"""Make the tables of docs/entropies.md: what published graphs have, and the alphas that make them equal.

    python scripts/entropies.py [seeds=10] [num_sequences=50] [FILE …]

Every FILE, by default those of configs/gssm/published, is a training config whose name ends with _low or _high, for the
published 1.2 and 2.05 nats/token. Progress goes to standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nanollama.apps.gssm.options import Source, read_source
from nanollama.data.calibration import (
    OutOfReach,
    SeedMean,
    calibrate,
    compressed,
    factor_limits,
    mean_entropy,
    moving_nodes,
    scaled,
)

PUBLISHED = Path(__file__).resolve().parents[1] / "configs" / "gssm" / "published"
CLAIMS = {"low": 1.2, "high": 2.05}
TOLERANCE = 0.01


def main(arguments: list[str]) -> int:
    """Print one table."""
    numbers = dict(a.split("=") for a in arguments if "=" in a)
    effort = {"seeds": int(numbers.get("seeds", 10)), "num_sequences": int(numbers.get("num_sequences", 50))}
    files = [Path(a) for a in arguments if "=" not in a] or sorted(PUBLISHED.glob("*.yaml"), key=_order)
    print("| graph | alpha of X | published | alpha of Z | entropy | gzip | xz | alpha for the published | entropy |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for path in files:
        source = read_source([f"config={path}"])
        spec, seq_len = source.spec, source.seq_len
        graph, level = path.stem.rsplit("_", 1)
        target = CLAIMS[level]
        found = {1.0: mean_entropy(spec, seq_len, **effort)}
        text = compressed(spec, seq_len, **effort)
        alpha, best = _calibrated(source, target, found, effort)
        cells = [graph.replace("_", ", "), f"{spec.observed.alpha:g}", f"{target:g}"]
        cells += [f"{spec.nodes[0].alpha:g}", _nats(found[1.0]), _nats(text["gzip"]), _nats(text["xz"])]
        print(f"| {' | '.join([*cells, alpha, best])} |", flush=True)
    return 0


def _calibrated(source: Source, target: float, found: dict[float, SeedMean], effort: dict[str, int]) -> tuple[str, str]:
    """The alpha of the latents that gives the target, and the entropy that it gives."""
    spec, latents = source.spec, moving_nodes(source.spec, "latents")

    def measure(factor: float) -> SeedMean:
        if factor not in found:
            found[factor] = mean_entropy(scaled(spec, latents, factor), source.seq_len, **effort)
            print(f"  x {factor:.5g}: {found[factor]}", file=sys.stderr, flush=True)
        return found[factor]

    try:
        best = calibrate(measure, target, tolerance=TOLERANCE, limits=factor_limits(spec, latents)).best
    except OutOfReach as error:
        return "none", f"{error.lowest.entropy.mean:.2f} to {error.highest.entropy.mean:.2f}"
    return f"{scaled(spec, latents, best.factor).node(latents[0]).alpha:.6g}", _nats(best.entropy)


def _nats(value: SeedMean) -> str:
    return f"{value.mean:.3f} ± {value.stderr:.3f}"


def _order(path: Path) -> tuple[bool, str, int]:
    graph, level = path.stem.rsplit("_", 1)
    states = graph.partition("x")[2].partition("_")[0]
    return level == "high", graph.partition("_")[2] + graph[0], -int(states)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
