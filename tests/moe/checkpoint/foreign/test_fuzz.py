"""Thousands of random damages to foreign folders: right data or one line of error, at little cost.

They run in one process with limits on its memory and on each case's time.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import foreign_folders as good
import pytest

PKL = "spoil_pickle"
TARGETS: dict[str, list[tuple[str, str, int]]] = {
    "dcp": [(".metadata", "spoil_bytes", 400), ("__0_0.distcp", "spoil_bytes", 50)],
    "deepspeed": [
        (good.WEIGHTS, PKL, 250),
        (good.STATES, PKL, 150),
        (good.STATES, "spoil_directory", 150),
    ],
    "universal": [
        ("zero/model.norm.weight/fp32.pt", PKL, 50),
        ("zero/model.norm.weight/step.pt", "spoil_directory", 50),
    ],
    "megatron": [
        ("metadata.json", "spoil_json", 50),
        ("common.pt", PKL, 150),
        (".metadata", "spoil_bytes", 200),
    ],
    "huggingface": [
        ("config.json", "spoil_json", 500),
        ("generation_config.json", "spoil_json", 50),
        ("model.safetensors.index.json", "spoil_json", 200),
        ("model-00001-of-00004.safetensors", "spoil_header", 300),
    ],
}
"""By format: the file, how it is spoilt (mutations.py), and how often."""
RSS_MB = 300
"""Most memory that all cases of a format may add."""
CPU_S, HANGS_S = 10, 100
CHILD = """
import faulthandler, json, random, resource, signal, sys
from pathlib import Path
import foreign_folders, mutations
from moelstrom import UserError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def outcome():
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    faulthandler.dump_traceback_later(hangs_s, exit=True)
    try:
        foreign_folders.read_all(kind, folder)
        return "read"
    except UserError as error:
        assert "\\n" not in str(error) and len(str(error)) < 3000, error
        return "refused"
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)

kind, root, cpu_s, hangs_s = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_DATA, (16 << 30, 16 << 30))
faulthandler.register(signal.SIGPROF, chain=True)
folder = root / "folder"
foreign_folders.WRITERS[kind](folder)
(folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "top_p": 0.5}')
assert outcome() == "read"
before = peak()
for file, how, count in json.load(sys.stdin):
    kept, found = (folder / file).read_bytes(), []
    for seed in range(count):
        text = getattr(mutations, how)(random.Random(seed), kept)
        (folder / file).write_bytes(text)
        print(json.dumps({"case": f"{file} {how} {seed}"}), flush=True)
        try:
            found.append(outcome())
        except Exception as error:
            print(json.dumps({"fault": f"{file} {how} {seed}: {error!r}"[:1500]}), flush=True)
    (folder / file).write_bytes(kept)
    print(json.dumps({"file": f"{file} {how}", "refused": found.count("refused")}), flush=True)
print(json.dumps({"mb": peak() - before}))
"""


@pytest.mark.parametrize("kind", TARGETS)
def test_damage_is_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, kind, str(tmp_path)]
    command += [str(CPU_S), str(HANGS_S)]
    ended = subprocess.run(
        command,
        input=json.dumps(TARGETS[kind]),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    lines: list[dict[str, Any]] = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, f"{lines[-1:]}: {ended.stderr[-3000:]}"
    assert not [line["fault"] for line in lines if "fault" in line]
    assert lines[-1]["mb"] < RSS_MB
    refused = {line["file"]: line["refused"] for line in lines if "file" in line}
    assert len(refused) == len(TARGETS[kind])
    for file, how, count in TARGETS[kind]:
        assert refused[f"{file} {how}"] > count // 20, refused
