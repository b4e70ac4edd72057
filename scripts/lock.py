"""Write constraints.txt: the newest versions that all extras resolve to, for each supported Python.

Usage: python scripts/lock.py python3.11 [python3.10 …]

The first interpreter gives the base; a package that another interpreter resolves to a different version gets a line
with a marker. torch is pinned by hand (TORCH below) and left out of the resolution, since a build for one's own
accelerator is chosen by the machine that installs it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TORCH = "2.13.0"
TORCH_NEEDS = ["filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions"]
ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The exact versions that the tests ran with (Python 3.11; markers where another Python needs another version).
# Written by scripts/lock.py; use: pip install -c constraints.txt -e '.[dev]'
"""


def requirements() -> list[str]:
    """Every requirement of every extra in pyproject.toml, torch and what is built against its CUDA excepted."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    found = re.findall(r'^\s*"([^"]+)"', section, flags=re.MULTILINE)
    return [item for item in found if not item.startswith(("torch", "nodes-to-narratives", "mamba-ssm"))] + TORCH_NEEDS


def resolve(python: str) -> dict[str, str]:
    """Version by package name, as pip of that interpreter would install them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["-q", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", str(report)]
        subprocess.run([python, "-m", "pip", "install", *options, *requirements()], check=True)
        items = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in items}


def main(pythons: list[str]) -> None:
    """Resolve for each interpreter and write the file."""
    versions = [
        subprocess.check_output([p, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True).strip()
        for p in pythons
    ]
    sets = [resolve(python) for python in pythons]
    lines = [f"torch=={TORCH}"]
    for name in sorted({name for found in sets for name in found}):
        base = sets[0].get(name)
        others = [(v, s[name]) for v, s in zip(versions[1:], sets[1:], strict=True) if s.get(name, base) != base]
        marker = "".join(f" and python_version != '{v}'" for v, _ in others).removeprefix(" and ")
        if base is not None:
            lines.append(f"{name}=={base}" + (f" ; {marker}" if marker else ""))
        lines += [f"{name}=={version} ; python_version == '{python}'" for python, version in others]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or [sys.executable])
