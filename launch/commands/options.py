"""Arguments and options that several commands share."""

from typing import Annotated

import typer

ConfigArgument = Annotated[str, typer.Argument(help="YAML file, or a recipe's name (tiny).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field.")
]
