"""The command line: a frozen surface, exit codes, and no traceback for a user's mistake."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moelstrom import __version__
from moelstrom.cluster import supervisor
from moelstrom.cluster.spec import Outcome
from moelstrom.launch import cli, worker
from moelstrom.launch.commands import train as command
from moelstrom.launch.commands.data import prepare
from moelstrom.launch.config import RESOLVED, load
from moelstrom.launch.data.dataset import MANIFEST, Dataset
from moelstrom.launch.data.prepare import VALID_FRACTION
from moelstrom.launch.data.tokenizer import ByteTokenizer
from moelstrom.launch.train.log import RunLog
from moelstrom.launch.train.records import RunRecord
from moelstrom.moe.checkpoint.commit import CheckpointError

BENCH = {"--config", "--set", "--nproc", "--address", "--launcher", "--out", "--baseline"}
BENCH |= {"--threshold"}
COMMANDS = {
    "": {"--version"},
    "train": {"config", "--set", "--dry-run", "--no-dry-run", "--json"},
    "chaos": {"config", "--set", "--scenario", "--random", "--seed", "--spacing", "--json"},
    "report": {"folder"},
    "data": set(),
    "data prepare": {"--out", "--domain", "--tokenizer", "--valid-fraction", "--format"},
    "size": {
        *("--params", "--active", "--flops", "--hardware", "--collectives", "--target", "--gpus"),
        *("--gpus-per-node", "--memory", "--vocab", "--seq-len", "--batch-tokens", "--context"),
        *("--hidden", "--layers", "--experts", "--top-k", "--head-dim", "--compare", "--limit"),
        *("--json", "--out", "--plot", "--write"),
    },
    "bench": set(),
    "bench collectives": {*BENCH, "--bucket-into"},
    "bench hardware": {*BENCH, "--model"},
    "bench report": {"source", "--out"},
    "bench compare": {"old", "new", "--threshold", "--json", "--out"},
    "bench predict": {
        *("source", "training", "--ranks", "--per-node", "--compute-s", "--json", "--out"),
    },
    "ckpt": set(),
    "ckpt inspect": {"source", "--model", "--json"},
    "ckpt verify": {"source", "--model", "--readers", "--json"},
    "ckpt reshape": {
        *("source", "out", "--engine", "--dp", "--ep", "--tp", "--pp", "--cp", "--zero"),
        *("--memory", "--readers", "--model", "--dry-run", "--json"),
    },
    "ckpt diff": {"a", "b", "--model", "--readers", "--weights", "--all", "--json"},
    "ckpt export-hf": {
        *("source", "out", "--dtype", "--max-shard", "--tokenizer", "--model", "--json"),
    },
    "ckpt import-hf": {"source", "out", "--write", "--json"},
    "kernels": set(),
    "kernels check": {"--target", "--operator", "--json", "--out", "--workers"},
    "kernels bench": {"--quick", "--no-quick", "--out"},
    "kernels tune": {"--operator", "--out", "--write"},
}
HERE = ["cluster.launcher=none", "layout.dp=1", "layout.ep=1"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str, sets: list[str] | None = None) -> tuple[int, str, str]:
        settings = [part for override in sets or [] for part in ("--set", override)]
        monkeypatch.setattr(sys, "argv", ["moelstrom", *words, *settings])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        # Typer colours its messages where it takes the output for a terminal's.
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return command


def refused(result: tuple[int, str, str]) -> str:
    """The message of a user's mistake."""
    code, out, err = result
    *progress, message = err.rstrip("\n").split("error: ", maxsplit=1)
    assert code == 2 and out == "" and progress, result
    return message


def surface(command: Any, name: str = "") -> dict[str, set[str]]:
    names = {opt for p in command.params for opt in [*p.opts, *p.secondary_opts]}
    found = {name: names - {"--help"}}
    for child in getattr(command, "commands", {}).values():
        found |= surface(child, f"{name} {child.name}".strip())
    return found


def test_the_surface_is_frozen() -> None:
    assert surface(typer.main.get_command(cli.app)) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(run: Any, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert all(option in out for option in COMMANDS[command] if option.startswith("--"))


def test_version(run: Any) -> None:
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "words, problem",
    [
        (["nope"], "No such command 'nope'"),
        (["train"], "Missing argument"),
        (["train", "tiny", "--nope"], "No such option"),
        (["train", "tiny", "--set"], "requires an argument"),
        (["data", "prepare"], "--out"),
        (["data", "prepare", "--out", "x", "--valid-fraction", "few"], "--valid-fraction"),
    ],
)
def test_usage_is_explained(run: Any, words: list[str], problem: str) -> None:
    code, out, err = run(*words)
    assert code == 2 and problem in err and out == ""


def moelstrom(*words: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "from moelstrom.launch.cli import main; main()", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=120)


def test_real_processes_end_with_the_right_code(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    good = moelstrom("train", "tiny", "--dry-run", "--json", folder=tmp_path)
    assert good.returncode == 0 and json.loads(good.stdout)["parameters"]["active"] == 871_808
    sets = ("name=\x1b[31m\udcff", 'data.tokenizer="\\e[31m"')
    for words in (["binary.yaml"], *(["tiny", "--dry-run", "--set", text] for text in sets)):
        bad = moelstrom("train", *words, folder=tmp_path)
        assert bad.returncode == 2 and bad.stdout == b""
        assert bad.stderr.startswith(b"error: ") and bad.stderr.count(b"\n") == 1
        assert b"Traceback" not in bad.stderr and b"\x1b" not in bad.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["binary.yaml"]


def test_dry_run_shows_the_plan(run: Any, tmp_path: Path) -> None:
    long = "/" + "very-long-folder/" * 12
    code, out, _ = run("train", "tiny", "--dry-run", sets=[f"data.path={long}"])
    assert code == 0
    facts = "1,756,544", "871,808", "1,179,648", "memory per rank", "activations", "device"
    assert all(fact in out for fact in facts)
    # The config comes whole, and can be copied into a file.
    resolved = tmp_path / "copied.yaml"
    resolved.write_text(out.split("\n\n")[0])
    assert load(str(resolved)) == load("tiny", [f"data.path={long}"])
    assert [path.name for path in tmp_path.iterdir()] == ["copied.yaml"]


def test_dry_run_as_json(run: Any) -> None:
    code, out, _ = run("train", "tiny", "--dry-run", "--json", sets=["optimizer.lr=1e-3"])
    plan = json.loads(out)
    assert code == 0 and plan["config"]["optimizer"]["lr"] == 1e-3
    assert set(plan) == {
        "config",
        "parameters",
        "memory_per_rank_bytes",
        "microbatches_per_step",
        "tokens_per_step",
        "flops_per_token",
        "world_sizes",
        "placement",
    }
    assert set(plan["memory_per_rank_bytes"]) == {
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "total",
    }


def test_json_is_of_a_dry_run(run: Any) -> None:
    assert "add --dry-run" in refused(run("train", "tiny", "--json"))


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_no_launcher_starts_one_worker(run: Any, dry: list[str], tmp_path: Path) -> None:
    message = refused(run("train", "tiny", *dry, sets=["cluster.launcher=none"]))
    assert message.startswith("cluster.launcher: none starts one worker, but layout.dp is 2; set")
    assert not list(tmp_path.iterdir())
    # The workers of torchrun read such a file too.
    assert load("tiny", ["cluster.launcher=none"]).layout.world_size == 2


def test_mistakes_are_met_before_a_start(run: Any, tmp_path: Path) -> None:
    """No Ray is started: each of these ends at once, and names the field."""
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "taken-inside" / RESOLVED).mkdir(parents=True)
    (tmp_path / "broken.json").write_text("{")
    for override, words in {
        "data.tokenizer=/none.json": "data.tokenizer: cannot read /none.json (No such file",
        "data.tokenizer=.": "data.tokenizer: cannot read . (Is a directory); give",
        "data.tokenizer=broken.json": "data.tokenizer: broken.json is not a tokenizer.json",
        "model.vocab_size=100": "model.vocab_size: 100 is below the tokenizer's 257 tokens; raise",
        "output=taken": "output: taken: File exists; give a folder",
        "output=taken/run": "output: taken/run: Not a directory; give a folder",
        "output=taken-inside": "output: taken-inside: Is a directory; give a folder",
        f"name={'x' * 300}": "File name too long; give a folder",
        "checkpoint.load=taken": "checkpoint.load: taken is no folder; name a checkpoint's",
    }.items():
        message = refused(run("train", "tiny", sets=[override]))
        assert message.startswith(words) or words in message, message
    for override, words in {
        "data.path=none": "data.path: none is not a folder; make it with `moelstrom data prepare`",
        "data.path=taken-inside": "data.path: taken-inside has no dataset.json; make it",
        f"data.path={'x' * 300}": "File name too long",
    }.items():
        message = refused(run("train", "tiny", sets=["data.corpus=null", override]))
        assert words in message and ("data.path" in message or MANIFEST in message), message
    assert "File name too long" in refused(run("train", "tiny", sets=[f"data.path={'x' * 300}"]))
    assert "and is no empty folder" in refused(run("train", "tiny", sets=["data.path=taken"]))


def test_a_refused_start_leaves_no_folder(run: Any, tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    for override, words in {
        "data.tokenizer=/none.json": "data.tokenizer: cannot read /none.json",
        "model.vocab_size=100": "model.vocab_size: 100 is below",
        "checkpoint.load=none": "checkpoint.load: none is no folder",
        "data={corpus: null, path: none}": "data.path: none is not a folder",
        f"layout.dp={64 * cores}": f"whose {cores} cores can take {4 * cores}; lower it, give",
    }.items():
        more = [f"data.global_batch_size={512 * cores}"]
        assert words in refused(run("train", "tiny", sets=[*more, override]))
        assert list(tmp_path.iterdir()) == [], override


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"Document {i} says {i * i}.\n" * 20)
    return folder


@pytest.fixture
def dataset(run: Any, text: Path) -> str:
    """A small prepared dataset; returns what names it and its output."""
    words = ["--domain", f"text={text}", "--valid-fraction", "0.2"]
    code, out, err = run("data", "prepare", "--out", "a b", *words)
    assert code == 0, err
    assert "use it: moelstrom train tiny --set 'data.path=a b' --set data.tokenizer=byte" in out
    return "a b"


def test_prepared_data_is_checked_against_the_run(run: Any, dataset: str) -> None:
    train = [f"data.path={dataset}", "data.corpus=null", *HERE]
    message = refused(run("train", "tiny", sets=[*train, "data.weights={code: 1}"]))
    # A worker that failed leaves its group to the end of its process.
    dist.destroy_process_group()
    assert message.startswith("data.weights: code is not in a b, which holds text")


@pytest.mark.parametrize("outcome", [0, 2, 1])
def test_the_outcome_of_the_workers_decides(
    run: Any, dataset: str, outcome: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run_group(spec: Any, config: Any, **options: Any) -> Outcome:
        asked.append(spec)
        assert config.env.pop("MOELSTROM_RUN") and config.env == {"A": "b"}
        # As the workers do once they have resumed.
        shutil.copy(spec.command[-1], Path("runs/tiny") / RESOLVED)
        RunLog(Path("runs/tiny"), [])(RunRecord(step=0, steps=240))
        return Outcome(outcome, 0, "what happened", ())

    monkeypatch.setattr(supervisor, "run_group", run_group)
    sets = [f"data.path={dataset}", "cluster.env={A: b}"]
    code, out, err = run("train", "tiny", sets=sets)
    assert code == outcome
    words = {0: "", 2: "error: what happened\n", 1: "failed: what happened; logs: runs/tiny/worke"}
    assert err.startswith(words[outcome]) and ("the deepspeed engine" in out) == (outcome == 0)
    (spec,) = asked
    assert spec.world_size == 2
    # The workers get the whole config, under an absolute path.
    assert load(spec.command[-1]) == load("tiny", sets)
    assert Path(spec.command[-1]).is_absolute()


def test_a_log_on_another_node_is_no_failure(
    run: Any, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = Outcome(0, 0, "all workers finished", ())
    monkeypatch.setattr(supervisor, "run_group", lambda *_, **__: finished)
    code, out, _ = run("train", "tiny", sets=[f"data.path={dataset}"])
    assert code == 0 and "the log lies in runs/tiny on the node of rank 0" in out


def test_report_of_a_folder(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(run("report", "none")).startswith("none: no run has written metrics.jsonl here")
    assert refused(run("report", "file")).startswith("file: Not a directory; give a folder")
    log = RunLog(tmp_path / "r", [])
    log(RunRecord(step=4, steps=4))
    log.close()
    code, out, _ = run("report", "r")
    assert code == 0 and json.loads(out)["starts_at_steps"] == [4]
    assert (tmp_path / "r" / "run.png").exists()


def test_an_interrupt_is_no_failure(
    run: Any, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_train_here", interrupted)
    code, _, err = run("train", "tiny", sets=[f"data.path={dataset}", *HERE])
    assert code == 130 and err == "interrupted; the last complete checkpoint stays\n"


def test_a_failed_save_without_ray_is_one_line(
    run: Any, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise CheckpointError("saving step 3: No space left on device")

    monkeypatch.setattr(worker, "run", full)
    code, _, err = run("train", "tiny", sets=[f"data.path={dataset}", *HERE])
    assert code == 1 and err == "failed: saving step 3: No space left on device\n"


def test_prepare_makes_a_dataset(run: Any, text: Path, tmp_path: Path) -> None:
    more = text.rename(tmp_path / "more")
    (tmp_path / "one.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(300)))
    domains = ["--domain", f"a={more}", "--domain", "b=one.jsonl"]
    code, out, _ = run("data", "prepare", "--out", "d", *domains, "--valid-fraction", "0.2")
    assert code == 0
    made = Dataset(Path("d"))
    assert made.domains == ("a", "b") and made.manifest.valid_fraction == 0.2
    for name, info in made.manifest.domains.items():
        line = f"{name}: {info.train.tokens:,} tokens to train, {info.valid.tokens:,} held out"
        assert line in out.splitlines()
    code, out, _ = run("data", "prepare", "--out", "\udcff", *domains, "--valid-fraction", "0.2")
    assert code == 0 and "--set 'data.path=\\udcff'" in out
    again = refused(run("data", "prepare", "--out", "d", *domains))
    assert again == "d: a dataset is there already; choose another folder or delete it"


def test_prepare_refuses_what_it_cannot_use(run: Any, text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "zeros").write_bytes(bytes(99))
    given = f"a={text}"
    for words, message in (
        (["--domain", "a"], "--domain a: write name=folder"),
        (["--domain", "=x"], "--domain =x: write name=folder"),
        (["--domain", "a="], "--domain a=: write name=folder"),
        (["--domain", given, "--domain", "a=b"], f"--domain a=b: a is {text} already; rename"),
        (["--domain", "a/b=text"], "domain 'a/b': its name becomes a file name; use letters"),
        (["--domain", "a=none"], "domain a: none does not exist; give a folder"),
        (["--domain", "a=empty"], "domain a: empty holds no file; give a folder"),
        (["--domain", "a=zeros"], "domain a: no text found (skipped 1: zeros: a binary file)"),
        (["--domain", "a=" + "x" * 300], "--out new: File name too long; give a folder"),
        (["--domain", given, "--tokenizer", "none"], "data.tokenizer: cannot read none (No such"),
        (["--domain", given, "--valid-fraction", "1"], "valid_fraction: 1.0 is not from 0 to"),
        (["--domain", given, "--valid-fraction", "nan"], "valid_fraction: nan is not from 0 to"),
        (["--domain", given, "--format", "csv"], "--format csv: is none of auto, text, jsonl"),
        (["--domain", given, "--out", "text"], "text: it exists and is no empty folder; choose"),
        (["--domain", given, "--out", "zeros/d"], "zeros/d: cannot write the dataset (Not a dir"),
        (["--domain", given, "--out", "x" * 300], f"--out {'x' * 300}: File name too long"),
        (["--format", "text"], "--format text: is of a --domain's files; name one, or drop it"),
        (["--valid-fraction", "0.5"], "--valid-fraction 0.5: Python's own text always holds out"),
    ):
        assert refused(run("data", "prepare", "--out", "new", *words)).startswith(message)
        assert not (tmp_path / "new").exists()


def test_prepare_takes_no_other_tokenizers_dataset_for_its_own(run: Any, dataset: str) -> None:
    code, out, _ = run("data", "prepare", "--out", dataset)
    assert code == 0 and out.startswith("text: ")
    manifest = Path(dataset) / MANIFEST
    manifest.write_text(manifest.read_text().replace(ByteTokenizer.fingerprint, "other"))
    message = refused(run("data", "prepare", "--out", dataset))
    assert message.startswith(f"data.tokenizer: byte did not make the dataset {dataset}")


def test_the_default_share_is_the_data_layers() -> None:
    default = inspect.signature(prepare).parameters["valid_fraction"].default
    assert default == VALID_FRACTION


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(words=st.lists(st.text(max_size=8) | st.sampled_from(["tiny", "--set", "--json"])))
def test_any_words_end_in_order(run: Any, words: list[str]) -> None:
    code, _, err = run("train", "--dry-run", *words)
    assert code == 0 or (code == 2 and err)
