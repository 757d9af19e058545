"""Kinds from outside the package, added through entry points: mixer, router, feed-forward layer,
block and engine keep every law, and train from a YAML."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OUTSIDE = Path(__file__).parents[2] / "outside"
ENTRY_POINTS = """\
[moelstrom.mixers]
gated_deltanet_toy = gated_deltanet_toy:GatedDeltaNetToy
[moelstrom.ffns]
relu_toy = toys:Relu
[moelstrom.routers]
deep_toy = toys:DeepRouter
[moelstrom.blocks]
parallel_toy = toys:Parallel
[moelstrom.engines]
engine_toy = toys:EngineToy
"""
RUN = """\
name: outside
steps: 2
cluster: {launcher: none}
layout: {dp: 1, ep: 1}
engine: {name: engine_toy}
data: {seq_len: 32, micro_batch_size: 1, global_batch_size: 2, path: data}
model:
  hidden_size: 16
  num_heads: 2
  head_dim: 8
  moe: {num_experts: 4, expert_size: 8}
  layers:
    - {mixer: {kind: gated_deltanet_toy, conv_size: 3}, ffn: {kind: relu_toy, ffn_size: 24}}
    - repeat: 2
      block: parallel_toy
      mixer: attention
      ffn: {kind: moe, router: {kind: deep_toy, width: 4}}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where an installed package's entry points are found, as `pip install` would leave them."""
    site = tmp_path_factory.mktemp("site")
    info = site / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    paths = [str(site), str(OUTSIDE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def test_every_law_holds(environment: dict[str, str]) -> None:
    laws = Path(__file__).with_name("test_every_layer.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(laws)]
    command += ["-k", "(toy or agree) and not megatron"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "mixer-gated_deltanet_toy" not in ended.stdout and " passed" in ended.stdout


def test_they_train_from_a_yaml(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_text(f"Document {i} says little. " * 20)
    main = "from moelstrom.launch.cli import main; main()"
    for words in ("data prepare --out data --domain d=text", "train run.yaml"):
        ended = subprocess.run(
            [sys.executable, "-c", main, *words.split()],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
    assert "engine_toy trains" in ended.stdout
    assert (tmp_path / "runs/outside/checkpoints/step-00000002/COMMITTED").exists()
