"""A group of commands, each of whose modules is imported when it is used, not before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


@dataclass(frozen=True)
class LazyCommand:
    """A command: the module of `commands` whose `app` it is, and the help that is listed for it."""

    module: str
    help: str


class LazyGroup(TyperGroup):
    """The commands of `table`; their help is listed from there."""

    table: ClassVar[Mapping[str, LazyCommand]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = Loaded(self.table)

    def list_commands(self, ctx: Any) -> list[str]:
        """Every name, in the table's order."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """What the list of commands needs of one."""
        entry = self.table.get(cmd_name)
        return TyperCommand(cmd_name, help=entry.help) if entry else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is asked for, whole; a usage error if there is none."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, self.commands[name] if found else None, rest


class Loaded(Mapping[str, Any]):
    """The whole commands of a table by name, each imported at its first use."""

    def __init__(self, table: Mapping[str, LazyCommand]) -> None:
        self._table = table

    def __getitem__(self, name: str) -> Any:
        return _load(name, self._table[name].module)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


@cache
def _load(name: str, module: str) -> Any:
    command = get_command(import_module(f".commands.{module}", __package__).app)
    command.name = name
    return command
