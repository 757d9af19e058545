"""The same damages to a checkpoint of torch DCP and to ours: what loading each then does.

`python tests/beside_dcp.py [OUT.json]` saves two steps of one state on two ranks with both, damages
the second step, loads it, and prints a JSON list of outcomes.
"""

import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import run_ranks

from moelstrom import UserError
from moelstrom.moe.checkpoint.folder import step_folder
from moelstrom.moe.checkpoint.reader import Reader, choose
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

NUMEL = 10_000
WORLD = 2
TRACE = "MOELSTROM_TEST_TRACE"


@dataclass(frozen=True)
class Format:
    """Where one library puts its files, and how it loads."""

    name: str
    shard: str
    index: str
    load: Callable[[Path], dict[str, torch.Tensor]]


def tensor(name: str, step: int) -> torch.Tensor:
    """What is saved under `name` at `step`."""
    seed = step * 100 + int(name[1:])
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


def save(path: Path) -> None:
    """Both libraries save steps 1 and 2; each rank has a tensor of its own. Collective."""
    rank = dist.get_rank()
    name = f"w{rank}"
    saver = Saver(CheckpointConfig(path=str(path / "moelstrom")), rank, WORLD)
    for step in (1, 2):
        dcp.save({name: tensor(name, step)}, checkpoint_id=step_folder(path / "torch DCP", step))
        saver.save(step, [Shard(name, (NUMEL,), 0, tensor(name, step))], {})
    saver.close()


def load_dcp(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors as torch DCP loads them in one process."""
    state = {f"w{rank}": torch.zeros(NUMEL) for rank in range(WORLD)}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def load_ours(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors as our reader loads them."""
    reader = Reader(folder)
    return {name: reader.read(name) for name in reader.tensors}


FORMATS = (
    Format("torch DCP", "__1_0.distcp", ".metadata", load_dcp),
    Format("moelstrom", "rank-00001.safetensors", "manifest.json", load_ours),
)


def flipped_bit(folder: Path, form: Format) -> None:
    """One bit of one weight of rank 1."""
    file = folder / form.shard
    content = bytearray(file.read_bytes())
    at = content.index(tensor("w1", 2).numpy().tobytes()[:64])
    content[at + 4 * 1234 + 2] ^= 1 << 6
    file.write_bytes(content)


def truncated_shard(folder: Path, form: Format) -> None:
    """The second half of rank 1's file is gone."""
    os.truncate(folder / form.shard, (folder / form.shard).stat().st_size // 2)


def missing_shard(folder: Path, form: Format) -> None:
    """Rank 1's file is gone."""
    (folder / form.shard).unlink()


def two_saves_mixed(folder: Path, form: Format) -> None:
    """Rank 1's file is that of step 1."""
    shutil.copy(step_folder(folder.parent, 1) / form.shard, folder)


class Bomb:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ[TRACE]),)


def pickle_as_index(folder: Path, form: Format) -> None:
    """The file that says what the checkpoint holds is a pickle that runs code."""
    (folder / form.index).write_bytes(pickle.dumps(Bomb()))


DAMAGES = (flipped_bit, truncated_shard, missing_shard, two_saves_mixed, pickle_as_index)


def outcome(form: Format, folder: Path, trace: Path) -> str:
    """What loading does."""
    try:
        found = form.load(folder)
        wrong = [name for name, data in found.items() if not torch.equal(data, tensor(name, 2))]
        result = f"loads, {', '.join(wrong)} wrong" if wrong else "loads, all right"
    except UserError as error:
        result = f"refused: {str(error).replace(str(folder), 'step-00000002')}"
    except BaseException as error:
        result = f"{type(error).__name__} raised"
    return f"{result}, after it ran the file's code" if trace.exists() else result


def compare(path: Path) -> list[dict[str, str]]:
    """Every damage with both; `path` is an empty folder."""
    run_ranks(WORLD, save, path / "saved")
    rows = []
    for damage in DAMAGES:
        row = {"damage": damage.__name__}
        for form in FORMATS:
            copy = path / damage.__name__ / form.name
            shutil.copytree(path / "saved" / form.name, copy)
            trace = Path(os.environ.setdefault(TRACE, str(path / "trace")))
            trace.unlink(missing_ok=True)
            damage(step_folder(copy, 2), form)
            row[form.name] = outcome(form, step_folder(copy, 2), trace)
        ours = choose(path / damage.__name__ / "moelstrom", lambda text: None)
        rows.append({**row, "moelstrom resumes from": ours.name if ours else "nothing"})
    return rows


def main() -> None:
    """Print the comparison, and write it where asked."""
    with tempfile.TemporaryDirectory() as folder:
        result = {"torch": torch.__version__, "rows": compare(Path(folder))}
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    for out in sys.argv[1:]:
        Path(out).write_text(text)


if __name__ == "__main__":
    main()
