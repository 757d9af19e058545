"""moelstrom: distributed mixture-of-experts pretraining from one YAML file."""

from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake in something the user gave (config, data, checkpoint, cluster).

    The message names the field or file, the value found, and the fix. The command line prints it
    on one line without a traceback and exits with code 2.
    """


class Registry:
    """The kinds of one thing by name: ours, and those that other packages add.

    `package` is the importing package's `__name__`; `own` maps a name to `module:attribute` in it.
    Another package adds a kind with an entry point in the group `moelstrom.GROUP`. Nothing is
    imported before it is asked for.
    """

    def __init__(self, group: str, package: str, own: dict[str, str]) -> None:
        self.group, self._package, self._own = group, package, own

    @cached_property
    def _added(self) -> dict[str, Any]:
        from importlib.metadata import entry_points

        return {point.name: point for point in entry_points(group=f"moelstrom.{self.group}")}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._own, *sorted(self._added)]))

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._added

    def __getitem__(self, name: str) -> Any:
        """What stands under `name`; raises UserError that lists the names there are."""
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            return getattr(import_module(f".{module}", self._package), attribute)
        if name in self._added:
            return self._added[name].load()
        raise UserError(f"{name!r} is none of the {self.group}: {', '.join(self)}")
