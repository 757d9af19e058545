"""`moelstrom data`: text to what training reads."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ... import UserError
from .. import terminal

if TYPE_CHECKING:
    from ..data.dataset import Dataset

app = typer.Typer(help="Training data.", no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Training data."""


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    domain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="A domain's text; none: Python's own text."),
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="`byte` or a tokenizer.json.")] = "byte",
    valid_fraction: Annotated[
        float, typer.Option(help="Held-out share of documents; 0 for none.")
    ] = 0.02,
    form: Annotated[
        str, typer.Option("--format", help="auto (by content), text, or jsonl: of every file.")
    ] = "auto",
) -> None:
    """Turn folders of text into Megatron's indexed format (.bin, .idx)."""
    from ..data import prepare as data
    from ..data.formats import named
    from ..data.tokenizer import load_tokenizer
    from ..train.show import command

    with terminal.usable(f"--out {out}"):
        if domain:
            made = load_tokenizer(tokenizer)
            dataset = data.prepare(
                out, _domains(domain), made, valid_fraction=valid_fraction, form=named(form)
            )
        else:
            dataset = _prepare_default(out, tokenizer, valid_fraction, form)
    for name, info in dataset.manifest.domains.items():
        print(f"{name}: {info.train.tokens:,} tokens to train, {info.valid.tokens:,} held out")
    settings = [f"data.path={out}", f"data.tokenizer={tokenizer}"]
    print(f"use it: {command()} train tiny --set {' --set '.join(map(shlex.quote, settings))}")


def _prepare_default(out: Path, tokenizer: str, valid_fraction: float, form: str) -> "Dataset":
    from ..data.config import DataConfig
    from ..data.prepare import VALID_FRACTION, ensure_default, load_dataset
    from ..data.tokenizer import load_tokenizer

    if valid_fraction != VALID_FRACTION:
        raise UserError(
            f"--valid-fraction {valid_fraction}: Python's own text always holds out "
            f"{VALID_FRACTION}; drop it, or name a --domain"
        )
    if form != "auto":
        raise UserError(f"--format {form}: is of a --domain's files; name one, or drop it")
    ensure_default(out, load_tokenizer(tokenizer), progress=True)
    # What lay there before may be another tokenizer's.
    return load_dataset(DataConfig(path=str(out), tokenizer=tokenizer))


def _domains(entries: list[str]) -> dict[str, Path]:
    domains: dict[str, Path] = {}
    for entry in entries:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise UserError(f"--domain {entry}: write name=folder")
        if name in domains:
            raise UserError(f"--domain {entry}: {name} is {domains[name]} already; rename one")
        domains[name] = Path(folder)
    return domains
