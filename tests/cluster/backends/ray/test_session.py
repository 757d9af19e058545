import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from moelstrom import UserError
from moelstrom.cluster.backends.ray.session import connection, ensure_token

CLIENT = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", len(ray.nodes()))
"""


@pytest.fixture
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_token_is_private_and_made_once(empty_home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ensure_token(), range(8)))
    path = empty_home / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text()
    assert len(token) == 64
    ensure_token()
    assert path.read_text() == token
    assert [entry.name for entry in path.parent.iterdir()] == ["auth_token"]


def test_a_token_of_the_user_is_enough(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/elsewhere")
    ensure_token()
    assert not (empty_home / ".ray").exists()


def test_a_token_that_cannot_be_written(empty_home: Path) -> None:
    (empty_home / ".ray").write_text("a file in the way")
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"):
        ensure_token()


def join(address: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", CLIENT, address]
    return subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_only_clients_with_the_token_may_join(local_ray: None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    assert "joined 1" in join(address).stdout
    refused = join(address, RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0
    assert "joined" not in refused.stdout


def test_the_local_ray_is_private_to_the_run(local_ray: None) -> None:
    import ray

    node: Any = ray._private.worker._global_node
    folder = Path(node.get_session_dir_path()).parents[1]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "no answer"), ("ray://host:10001", "host:port"), ("host", "host:port")],
)
def test_a_wrong_address(address: str, words: str) -> None:
    with (
        pytest.raises(UserError, match=f"cluster.address {address!r}: .*{words}"),
        connection(address),
    ):
        pass
