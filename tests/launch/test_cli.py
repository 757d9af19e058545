"""What the table of commands promises: help without their modules, and the same words as theirs."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.main import get_command

from moelstrom.launch import cli
from moelstrom.launch.cli import Commands, app

HEAVY = {"torch", "moelstrom.launch.config", "ray", "matplotlib", "transformers", "yaml", "numpy"}
LOADED = """
import json, sys
from moelstrom.launch.cli import main
sys.argv = ["moelstrom", *{words!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""


def modules(*words: str) -> set[str]:
    """What a process has imported after the command."""
    command = [sys.executable, "-c", LOADED.format(words=words)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return set(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("train", "--help")])
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    loaded = modules(*words)
    assert not loaded & HEAVY
    ours = {name.split(".")[3] for name in loaded if name.startswith("moelstrom.launch.commands.")}
    assert ours == ({"train", "options"} if words[0] == "train" else set())


@pytest.mark.parametrize("name", Commands.table)
def test_the_listed_help_is_the_commands_own(name: str) -> None:
    group = get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    assert command.name == name and Commands.table[name].help == command.help


def test_a_fault_of_ours_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken() -> None:
        secret = "in no trace"
        raise RuntimeError(f"{len(secret)} \x1b[31mwhat\nnobody foresaw")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    (trace,) = tmp_path.iterdir()
    assert ended.value.code == 1 and out == "" and err.count("\n") == 1
    assert err.startswith("error: RuntimeError: 11 \\x1b[31mwhat (") and str(trace) in err
    assert "please report it" in err and "\x1b" not in err
    text = trace.read_text()
    assert "nobody foresaw" in text and "in broken" in text and trace.stat().st_mode & 0o77 == 0


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
