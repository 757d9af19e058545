"""`moelstrom ckpt export-hf` and `import-hf`: to and from folders that transformers loads."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ... import UserError
from .. import terminal

if TYPE_CHECKING:
    from ...moe.config import ModelConfig
    from ...moe.state.source import Source

JsonOption = Annotated[bool, typer.Option("--json", help="The summary as JSON.")]


def commands(app: typer.Typer) -> None:
    """Add both commands to the app of `moelstrom ckpt`."""
    app.command("export-hf")(export_hf)
    app.command("import-hf")(import_hf)


def export_hf(
    source: Annotated[
        Path, typer.Argument(help="A checkpoint (foreign formats, too), or a folder.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    max_shard: Annotated[str, typer.Option(help="Largest file, such as 5GB.")] = "5GB",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="`byte` or a tokenizer.json that goes along; none: the run's."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A run's YAML, for a foreign checkpoint without its config."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint's model as Mixtral, OLMoE or Qwen3-MoE for transformers."""
    from ...moe.checkpoint.huggingface.export import DTYPES, export
    from .opening import open_checkpoint

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: give {' or '.join(DTYPES)}")
    limit = terminal.parse_bytes("--max-shard", max_shard)
    if limit == 0:
        raise UserError("--max-shard 0: give such as 5GB")
    opened = open_checkpoint(source, model)
    eos, texts = _tokenizer(tokenizer, opened)
    with terminal.byte_progress("exporting") as progress:
        done = export(opened, out, DTYPES[dtype], limit, eos, texts, progress)
    facts = {
        "from": str(opened.folder),
        "folder": str(done.folder),
        "class": done.class_name,
        "dtype": dtype,
        "parameters": done.parameters,
        "files": len(done.files),
        "bytes": sum(done.files.values()),
        "tokenizer": "tokenizer.json" in texts,
    }
    _show("Hugging Face export", facts, as_json)


def import_hf(
    source: Annotated[Path, typer.Argument(help="A Hugging Face model's folder.")],
    out: Annotated[
        Path, typer.Argument(help="A run's checkpoint folder; gets step-00000000, in fp32.")
    ],
    write: Annotated[
        Path | None, typer.Option(help="Write a config of the model for `train` here (YAML).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a Hugging Face model (Mixtral, OLMoE, Qwen3-MoE) the start of a run."""
    from ...moe.checkpoint.huggingface.load import load
    from ...moe.sizing.counts import count_parameters

    terminal.check_writable("--write", write)
    with terminal.byte_progress("importing") as progress:
        folder, model = load(source, out, progress)
    facts: dict[str, Any] = {
        "from": str(source),
        "folder": str(folder),
        "parameters": count_parameters(model).total,
    }
    if write:
        write.write_text(_config(model, source, out), encoding="utf-8")
        facts["config"] = str(write)
    _show("Hugging Face import", facts, as_json)
    if write and not as_json:
        print(f"start from it: moelstrom train {write} --set steps=1000 --set data.path=FOLDER")


def _tokenizer(chosen: str | None, source: "Source") -> tuple[int | None, dict[str, bytes]]:
    """The id that ends a text, and the tokenizer's files, which a byte tokenizer does not have.

    The tokenizer of the imported folder goes back as it came, and its special tokens with it: they
    need no id here.
    """
    from ...moe.checkpoint.huggingface.kept import KEPT, tokenizer_files

    kept = source.meta.get(KEPT)
    name = chosen or source.meta.get("config", {}).get("data", {}).get("tokenizer")
    if kept and (name is None or Path(name).resolve().parent == Path(kept["folder"])):
        return None, tokenizer_files(kept)
    return _other_tokenizer(name) if name else (None, {})


def _other_tokenizer(name: str) -> tuple[int | None, dict[str, bytes]]:
    import tokenizers

    from ..data.tokenizer import load_tokenizer

    try:
        eod = load_tokenizer(name).eod
    except UserError as error:
        raise UserError(f"{error}; or name another with --tokenizer") from None
    if name == "byte":
        return eod, {}
    text = Path(name).read_bytes()
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    ending = tokenizers.Tokenizer.from_str(text.decode()).id_to_token(eod)
    config = json.dumps({**kind, "eos_token": ending}, indent=2).encode() + b"\n"
    return eod, {"tokenizer.json": text, "tokenizer_config.json": config}


def _config(model: "ModelConfig", source: Path, out: Path) -> str:
    import yaml

    name = re.sub(r"[^\w.-]", "_", out.resolve().parent.name).lstrip(".-") or "imported"
    values: dict[str, Any] = {"name": name, "model": model.model_dump(mode="json")}
    values["checkpoint"] = {"path": str(out.resolve())}
    if (source / "tokenizer.json").is_file():
        values["data"] = {"tokenizer": str((source / "tokenizer.json").resolve())}
    return yaml.safe_dump(values, sort_keys=False)


def _show(title: str, facts: dict[str, Any], as_json: bool) -> None:
    from rich.table import Table

    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(title, "")
    for name, value in facts.items():
        table.add_row(name, f"{value:,}" if type(value) is int else str(value))
    terminal.console().print(table)
