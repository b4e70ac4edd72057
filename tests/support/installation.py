"""The project as users get it: a wheel, installed outside the checkout."""

from __future__ import annotations

import contextlib
import os
import site
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds the wheel, and a working directory beside it."""

    python: Path
    cwd: Path

    @property
    def n2n(self) -> Path:
        """The console script."""
        return self.python.parent / "n2n"

    @property
    def environment(self) -> dict[str, str]:
        """The caller's environment without what would lead back to the checkout or to another service."""
        drop = ("PYTHONPATH", "VIRTUAL_ENV")
        return {k: v for k, v in os.environ.items() if k not in drop and not k.startswith(("N2N_", "PYTEST"))}

    @contextlib.contextmanager
    def with_short_demo(self) -> Iterator[None]:
        """Let the debug config, which the demo trains, take a few steps only."""
        (path,) = self.python.parent.parent.glob("lib/python*/site-packages/nanollama/configs/gssm/debug.yaml")
        text = path.read_text()
        short = text.replace("steps: 300", "steps: 30")
        assert short != text
        path.write_text(short)
        try:
            yield
        finally:
            path.write_text(text)

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `python -m …` or any other arguments of the interpreter."""
        return self._run([str(self.python), *arguments], timeout)

    def run_n2n(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the console script."""
        return self._run([str(self.n2n), *arguments], timeout)

    def _run(self, command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def install_wheel(folder: Path) -> Installation:
    """Build the wheel and install it under `folder`; the dependencies are those of the running environment."""
    wheels = folder / "wheels"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    # packages of the running environment are visible, but not its .pth files, so that the checkout is not
    (dependencies,) = site.getsitepackages()
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
    ).strip()
    Path(purelib, "dependencies.pth").write_text(dependencies + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--ignore-installed", str(wheel)], check=True, capture_output=True)
    cwd = folder / "work"
    cwd.mkdir()
    return Installation(python=python, cwd=cwd)
