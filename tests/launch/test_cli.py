"""What the table of commands promises: help without their modules, and the same words as theirs."""

import json
import subprocess
import sys

import pytest
from typer.main import get_command

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
