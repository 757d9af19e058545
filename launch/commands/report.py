"""`moelstrom report`: a run's picture and summary."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import terminal

app = typer.Typer(add_completion=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's output folder.")],
) -> None:
    """Draw a run (run.png) and summarise it (summary.json, printed), whatever launched it."""
    from ..train.picture import draw
    from ..train.summary import summarise

    with terminal.usable(f"{folder}"):
        summary = summarise(folder)
        draw(folder)
    print(json.dumps(summary, indent=2))
