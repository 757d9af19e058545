"""Make a dataset folder from text."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ... import UserError
from .check import check_ids, note_checked
from .config import DataConfig
from .corpus import folder_source
from .dataset import DOMAIN, MANIFEST, Dataset, DatasetManifest, DomainInfo, TokenizerInfo
from .domain import DomainWriter
from .formats import Format
from .indexed import fsync_folder
from .python_text import python_sources
from .source import TextSource
from .tokenizer import Tokenizer, load_tokenizer, tokenizer_fingerprint
from .workspace import Workspace, workspace

VALID_FRACTION = 0.02
FORMAT_VERSION = 2
"""Of how text becomes tokens: files of another are not gone on from."""


def prepare(
    out: Path,
    domains: Mapping[str, Path],
    tokenizer: Tokenizer,
    *,
    valid_fraction: float = VALID_FRACTION,
    form: Format = "auto",
    progress: bool = True,
) -> Dataset:
    """Tokenize the text of each domain into the new dataset folder `out`.

    Documents are held out by a hash of their text, and duplicates within a domain are dropped, so
    no held-out document is trained on; where all would fall on one side, one document is cut in
    two. `progress` shows a bar on stderr. The folder appears whole or not at all; domains that were
    finished before an error are kept beside it, for the next try. Raises UserError for an existing
    `out` and for domains without usable text.
    """
    _check_arguments(domains, valid_fraction)
    taken = UserError(f"{out}: a dataset is there already; choose another folder or delete it")
    if _holds_dataset(out):
        raise taken
    sources = {name: folder_source(name, Path(path), form) for name, path in domains.items()}
    if not _build(out, sources, tokenizer, valid_fraction, progress, form):
        raise taken
    return Dataset(out)


def ensure_default(path: Path, tokenizer: Tokenizer, *, progress: bool = False) -> Dataset:
    """The dataset at `path`, made from the default corpus if nothing is there yet.

    Several processes may call this at once: the first to finish provides the folder, and the
    others use it. Raises UserError.
    """
    if not _holds_dataset(path):
        _build(path, python_sources(), tokenizer, VALID_FRACTION, progress)
    return Dataset(path)


def load_dataset(
    config: DataConfig, *, check: bool = True, run_folder: Path | None = None
) -> Dataset:
    """The dataset of a run, made if `config.corpus` says so. Raises UserError if another tokenizer
    made it.

    `check` looks for ids beyond the vocabulary; that they are good is noted beside the dataset,
    or in `run_folder` where nothing can be written there.
    """
    path = Path(config.path)
    if config.corpus == "python":
        dataset = ensure_default(path, load_tokenizer(config.tokenizer))
    else:
        dataset = Dataset(path)
    made = dataset.manifest.tokenizer
    if tokenizer_fingerprint(config.tokenizer) != made.fingerprint:
        raise UserError(
            f"data.tokenizer: {config.tokenizer} did not make the dataset {path}, {made.name} "
            f"with fingerprint {made.fingerprint[:12]} did; set data.tokenizer to that one, or "
            "prepare another dataset"
        )
    if check:
        check_ids(dataset, [path, *([run_folder] if run_folder else [])])
    return dataset


def _check_arguments(domains: Mapping[str, Path], valid_fraction: float) -> None:
    if not 0 <= valid_fraction < 1:
        raise UserError(f"valid_fraction: {valid_fraction} is not from 0 to below 1; try 0.02")
    if not domains:
        raise UserError("domains: none given; name at least one, as name=folder")
    for name in domains:
        if not re.fullmatch(DOMAIN, name):
            raise UserError(
                f"domain {name!r}: its name becomes a file name; use letters, digits, `_`, `-`, `.`"
            )


def _holds_dataset(out: Path) -> bool:
    """Whether a dataset is at `out`; UserError if anything else is."""
    # Looked at in this order: another process may publish its dataset in between.
    occupied = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if (out / MANIFEST).exists():
        return True
    if occupied:
        raise UserError(f"{out}: it exists and is no empty folder; choose another one")
    if not out.name:
        raise UserError(f"{out}: the folder is made beside its place, so it needs a name; give one")
    return False


def _build(
    out: Path,
    sources: Mapping[str, TextSource],
    tokenizer: Tokenizer,
    valid_fraction: float,
    progress: bool,
    form: Format = "auto",
) -> bool:
    """Build beside `out` and rename; False if another process was first."""
    keys = {
        name: _key(tokenizer.fingerprint, valid_fraction, form, source)
        for name, source in sources.items()
    }
    try:
        with workspace(out, keys) as work:
            _write_domains(work, sources, tokenizer, valid_fraction, progress)
            infos = {name: work.done[name] for name in sources}
            _write_manifest(work.folder, tokenizer, valid_fraction, infos)
            return work.publish(out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot write the dataset ({error.strerror}); free space or fix permissions"
        ) from error


def _key(fingerprint: str, valid_fraction: float, form: Format, source: TextSource) -> str:
    """What decides a domain's tokens: the same key, the same files."""
    files = [[str(file), *stamp] for file, stamp in zip(source.files, source.stamps, strict=True)]
    content = json.dumps([FORMAT_VERSION, fingerprint, valid_fraction, form, files])
    return hashlib.sha256(content.encode()).hexdigest()


def _write_manifest(
    folder: Path, tokenizer: Tokenizer, valid_fraction: float, domains: dict[str, DomainInfo]
) -> None:
    made = TokenizerInfo(
        name=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
    )
    manifest = DatasetManifest(tokenizer=made, valid_fraction=valid_fraction, domains=domains)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    # Every id has just come from the tokenizer.
    note_checked(Dataset(folder))
    fsync_folder(folder)


def _write_domains(
    work: Workspace,
    sources: Mapping[str, TextSource],
    tokenizer: Tokenizer,
    valid_fraction: float,
    progress: bool,
) -> None:
    """Fill `work`. UserError also names what is finished and kept."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True, quiet=not progress)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not progress) as bars:
        for name, source in sources.items():
            if name in work.done:
                console.print(f"{name}: finished before, kept in {work.folder}", markup=False)
                continue
            task = bars.add_task(f"{name}: tokenizing", total=source.total)

            def advance(done: int, task: TaskID = task) -> None:
                bars.update(task, completed=done)

            writer = DomainWriter(work.folder, name, tokenizer, valid_fraction)
            try:
                info = writer.write(source, advance)
            except UserError as error:
                raise UserError(str(error) + _kept(work)) from error
            work.finish(name, info)
            _tell(console, name, source, info)


def _kept(work: Workspace) -> str:
    if not work.done:
        return ""
    return f" ({', '.join(work.done)}: finished, and kept in {work.folder} for the next try)"


def _tell(console: Console, name: str, source: TextSource, info: DomainInfo) -> None:
    if source.skips:
        console.print(f"{name}: skipped {source.skips:,}: {source.reasons()}", markup=False)
    if info.divided:
        console.print(
            f"{name}: no whole document to hold out; the last one is cut in two", markup=False
        )
