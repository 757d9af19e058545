"""The folder through which the injector tells workers what to break, and hears that they did.

`<index>.armed` holds a fault's fields; the worker that brings it about renames it to
`<index>.fired` and adds when that was, so a fault comes once, whatever restarts it causes.
"""

import json
import time
from pathlib import Path
from typing import Any

VARIABLE = "MOELSTROM_CHAOS"
"""Environment variable that names the folder; without it no worker looks."""
ARMED, FIRED = ".armed", ".fired"


def arm(folder: Path, index: int, fields: dict[str, Any]) -> None:
    """Offer a fault to the workers."""
    _write(folder / f"{index:04d}{ARMED}", fields)


def disarm(folder: Path) -> None:
    """Take back what no worker has claimed."""
    for path in folder.glob(f"*{ARMED}"):
        path.unlink(missing_ok=True)


def armed(folder: Path, rank: int, step: int) -> tuple[Path, dict[str, Any]] | None:
    """The fault that is due for this rank in this step, if any."""
    for path in sorted(folder.glob(f"*{ARMED}")):
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError:
            continue  # Another rank was quicker, or it was taken back.
        if fields["rank"] == rank and step >= fields["at_step"]:
            return path, fields
    return None


def claim(path: Path, fields: dict[str, Any], step: int) -> None:
    """Note that the fault happens now, before it does: it may be this process's end."""
    _write(path.with_suffix(FIRED), {**fields, "time": time.time(), "step": step})
    path.unlink()


def fired(folder: Path, index: int) -> dict[str, Any] | None:
    """When and in which step a worker brought a fault about (`time`, `step`); None: not yet."""
    try:
        found: dict[str, Any] = json.loads((folder / f"{index:04d}{FIRED}").read_text())
    except FileNotFoundError:
        return None
    return found


def _write(path: Path, fields: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(fields))
    temporary.rename(path)
