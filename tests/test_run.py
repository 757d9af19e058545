"""The `run` script: what it installs where, with stand-ins for Python and pip."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
echo "python $*" >> "$CALLS"
if [ "$2" = venv ]; then
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$0" "$3/bin/pip"
    cp "$0" "$3/bin/moelstrom"
    echo "made $3" >> "$CALLS"
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of the script alone, and a `python3` that only notes what it is asked."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(PYTHON)
    (tmp_path / "bin" / "python3").chmod(0o755)
    for name in ("run", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def ran(checkout: Path, *words: str) -> list[str]:
    """What a call of the script did."""
    calls = checkout / "calls"
    calls.write_text("")
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "CALLS": str(calls)}
    env = {name: value for name, value in env.items() if not name.startswith("MOELSTROM_")}
    subprocess.run([checkout / "run", *words], env=env, check=True, timeout=60)
    return calls.read_text().splitlines()


def test_the_first_run_installs_and_trains(checkout: Path) -> None:
    found = ran(checkout)
    assert "made .venv" in found and found[-1] == "python train launch/recipes/tiny.yaml"
    installs = [line for line in found if "install" in line]
    assert [line.split()[-1] for line in installs] == ["torch==2.13.0", "."]
    # Minutes without a word would look like a hang.
    assert not any("quiet" in line or " -q" in line for line in installs)
    assert ran(checkout, "--version") == ["python --version"]


def test_tests_leave_the_live_environment_alone(checkout: Path) -> None:
    ran(checkout)
    before = {path: path.stat().st_mtime_ns for path in (checkout / ".venv").rglob("*")}
    found = ran(checkout, "test", "-x")
    assert "made .venv-test" in found and found[-1] == "python -m pytest -x"
    assert any(line.endswith("-e .[dev]") for line in found)
    assert {path: path.stat().st_mtime_ns for path in (checkout / ".venv").rglob("*")} == before


def test_all_tests_are_passed_once(checkout: Path) -> None:
    """Every folder and file of tests in one of two calls, and no failure of the first is lost."""
    ran(checkout, "test", "-x")
    calls = [line.split() for line in ran(checkout, "test")]
    assert len(calls) == 2 and "-n" in calls[0] and "-n" not in calls[1]
    named = sorted(Path(word).name for words in calls for word in words if "tests/" in word)
    tests = ROOT / "tests"
    there = sorted({path.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")})
    # The stand-in checkout has no files for the pattern to match.
    assert named == sorted([*(n for n in there if not n.endswith(".py")), "test_*.py"])
    python = checkout / ".venv-test" / "bin" / "python"
    python.write_text(python.read_text() + 'case "$*" in *-n*) exit 1;; esac\n')
    with pytest.raises(subprocess.CalledProcessError):
        ran(checkout, "test")
