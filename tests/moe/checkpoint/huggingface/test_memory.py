"""Both directions hold a chunk of one tensor in memory, whatever the model's size."""

import subprocess
import sys
from pathlib import Path

from hf_models import save, small

from moelstrom.moe.checkpoint.folder import step_folder

CHILD = """
import resource, sys
from pathlib import Path
import torch
from moelstrom.moe.checkpoint.huggingface import export, load, weights
from moelstrom.moe.checkpoint.reader import Reader

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

source, out, back = map(Path, sys.argv[1:])
export.CHUNK = weights.CHUNK = 1 << 20
before = peak()
export.export(Reader(source), out, torch.float32, 1 << 40)
load.load(out, back)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    save(small(vocab_size=1 << 19, num_layers=1), tmp_path / "ours")
    folder = step_folder(tmp_path / "ours", 5)
    size = sum(file.stat().st_size for file in folder.iterdir()) >> 20
    assert size >= 128
    folders = folder, tmp_path / "hf", tmp_path / "back"
    command = [sys.executable, "-c", CHILD, *map(str, folders)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 48, f"{grown} MiB for {size} MiB"
