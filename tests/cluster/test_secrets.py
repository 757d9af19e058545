"""Secrets by reference: given to the workers, written nowhere."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from moelstrom import UserError
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.environment import passed_on
from moelstrom.cluster.secrets import resolve

PLANTED = "planted-6f1c0b5a"


def test_references_are_resolved_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{PLANTED}\n")
    env = {"A": "env:THERE", "B": f"file:{tmp_path / 'key'}", "C": "plain"}
    assert resolve(env, {"THERE": "x"}) == {"A": "x", "B": PLANTED, "C": "plain"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("env:NOT_THERE", "no such variable on the worker's node"),
        ("file:/not/there", "No such file or directory on the worker's node"),
        ("file:/dev/zero", "is no plain file"),
    ],
)
def test_a_reference_to_nothing_is_named(value: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve({"A": value}, {})


SECRETS = (
    "HF_TOKEN HFTOKEN GITHUB_TOKEN_RO WANDB_API_KEY WANDB_KEY KEY DEPLOY_KEY APIKEY API_KEYS "
    "SECRET SECRET_VALUE AWS_SECRET_ACCESS_KEY db_password DB_PASSWORD_2 PGPASSWORD MYSQL_PWD "
    "SSHKEY CREDENTIAL MY_CREDENTIALS"
)
OTHERS = (
    "TOKENIZERS_PARALLELISM MAX_TOKENS NCCL_IB_PKEY MONKEY OLDPWD HF_TOKEN_PATH "
    "AWS_SHARED_CREDENTIALS_FILE"
)


@pytest.mark.parametrize("name", SECRETS.split())
def test_a_secret_in_clear_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(ValidationError, match=f"env holds {name} in clear") as refused:
        ClusterConfig(env={name: PLANTED})
    assert PLANTED not in refused.value.errors()[0]["msg"]
    ClusterConfig(env={name: "env:X"})


def test_what_only_sounds_like_a_secret_is_taken() -> None:
    env = dict.fromkeys(OTHERS.split(), "1")
    assert ClusterConfig(env=env).env == env


def test_which_variables_of_the_command_reach_the_workers() -> None:
    env = {"NCCL_DEBUG": "1", "RCCL_X": "2", "GLOO_X": "3", "TORCH_LOGS": "4", "HOME": "/"}
    assert set(passed_on(env)) == {"NCCL_DEBUG", "RCCL_X", "GLOO_X", "TORCH_LOGS"}


def test_a_planted_secret_is_nowhere_but_in_the_workers(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """Under a real supervisor: its events, its logs and the command lines while it runs."""
    (tmp_path / "key").write_text(PLANTED)
    lines: list[bytes] = []

    def look(rank: int | None, event: dict[str, Any]) -> None:
        if event["kind"] == "step" and not lines:
            lines.extend(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))

    ran = run(
        """
        import hashlib
        writer.emit("digest", value=hashlib.sha256(os.environ["API_KEY"].encode()).hexdigest())
        steps(2)
        """,
        on_event=look,
        env={"API_KEY": f"file:{tmp_path / 'key'}"},
    )
    digest = hashlib.sha256(PLANTED.encode()).hexdigest()
    assert [event["value"] for event in ran.of_kind("digest")] == [digest, digest]
    assert lines and PLANTED.encode() not in b"".join(lines)
    assert PLANTED not in str(ran.events)
    for folder, _, names in os.walk(tmp_path / "log"):
        assert all(PLANTED.encode() not in Path(folder, name).read_bytes() for name in names)


def test_a_missing_secret_ends_the_run_with_its_name(run: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^cluster\.env\.A: env:NOT_THERE: no such variable"):
        run("steps(1)", env={"A": "env:NOT_THERE"})
