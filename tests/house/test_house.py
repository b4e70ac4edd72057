"""What the project promises about itself: documents that lead somewhere, applications that start without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCKED = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
sys.argv = ["program", "--help"]
import runpy
runpy.run_module({module!r}, run_name="__main__")
"""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_paths_and_targets_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for path in set(re.findall(r"(?<!apps/gssm/)\bconfigs/gssm/\w+\.yaml", text)):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for document in DOCUMENTS:
        for target in re.findall(r"`?\bmake ([a-z-]+)\b(?:[` ]|$)", document.read_text(), re.M):
            if document.name in ("README.md", "CONTRIBUTING.md"):
                assert target in targets, f"make {target}"
    assert {"install", "demo", "up", "test", "test-slow", "bench", "lint", "format", "clean"} <= targets


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("backend", ["torch", "numba", "h5py", "worker", "dashboard", "streamlit"]),
        ("worker", ["torch", "numpy", "h5py", "backend", "dashboard", "sqlalchemy", "fastapi", "streamlit"]),
        ("dashboard", ["torch", "h5py", "backend", "worker", "sqlalchemy", "fastapi"]),
        ("nanollama.cli", ["torch", "numpy", "h5py", "backend", "worker", "dashboard", "sqlalchemy", "fastapi"]),
    ],
)
def test_applications_start_without_what_they_do_not_own(module: str, blocked: list[str]) -> None:
    code = BLOCKED.format(module=module, blocked=blocked)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "usage" in answer.stdout.lower()
