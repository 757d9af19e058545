"""The newest checkpoint in memory: each rank's file on its node and on the next one.

A run that lost one node then resumes without reading the disk. Memory is a copy, never the
checkpoint: whatever goes wrong here is noted, and the disk is used.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import folder as disk
from ..manifest import Manifest, parse
from . import memory
from .plan import Candidate, Move, Places, candidates, copies
from .wire import Wire


class Keeper:
    """Keeps the checkpoints of the run in folder `run` in memory. Making one is collective.

    `note` gets lines for an operator, on rank 0. Raises UserError where the memory folder cannot
    be made.
    """

    def __init__(
        self, run: Path, rank: int, world_size: int, note: Callable[[str], None] | None = None
    ) -> None:
        self._rank = rank
        self._note = note or (lambda text: None)
        self._wire = Wire(rank, world_size)
        session = memory.identity(run) + secrets.token_hex(8) if rank == 0 else ""
        session = self._wire.broadcast(session.encode()).decode()
        self._nonce = session[16:]
        self._memory = memory.prepare(run, session[:16])
        names = self._agree(memory.node_name(self._memory), list)
        self._places = Places(names)
        if self._leads:
            disk.remove_stale(self._memory, self._nonce)
        self._kept: tuple[str, int] | None = None
        self._broken = False

    @property
    def _leads(self) -> bool:
        return self._places.leader(self._rank) == self._rank

    def _agree(self, mine: Any, decide: Callable[[list[Any]], Any]) -> Any:
        """What rank 0 decides from every rank's JSON value, on every rank; collective."""
        reports = self._wire.gather(json.dumps(mine).encode())
        verdict = decide([json.loads(r) for r in reports]) if self._rank == 0 else None
        return json.loads(self._wire.broadcast(json.dumps(verdict).encode()))

    # Saving

    def keep(self, step: int, file: Path) -> None:
        """Copy the file that this rank wrote for `step` into its node's memory."""
        self._kept = None
        folder = disk.temporary_folder(self._memory, step, self._nonce)
        try:
            self._remove_all_but(folder.name, ".tmp-*")
            folder.mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(file, folder / file.name)
            self._kept = file.name, disk.regular_size(folder / file.name)
        except (OSError, ValueError):
            # `commit` tells rank 0; the half-written file must not take memory until then.
            with contextlib.suppress(OSError):
                (folder / file.name).unlink(missing_ok=True)

    def commit(self, step: int, manifest: bytes) -> None:
        """Send the kept files to the next nodes, and let `step` take the older one's place.

        Called on every rank after the commit of `step`, with its manifest. Raises nothing: a lost
        rank ends the run elsewhere.
        """
        if self._broken:
            return
        try:
            self._commit(step, manifest)
        except Exception as error:
            self._broken = True
            self._wire.close()
            self._note(f"checkpoints are no longer kept in memory: {error}")

    def _commit(self, step: int, text: bytes) -> None:
        folder = disk.temporary_folder(self._memory, step, self._nonce)
        moves = [Move(**m) for m in self._agree(self._kept, self._plan_copies)]
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
        problems = self._exchange(moves, folder, parse(text, "the manifest"))
        problems += [] if self._kept else [f"rank {self._rank}'s memory did not hold its file"]
        self._kept = None
        self._tell(problems)
        # Collective again: no rank may begin the next save while a leader still cleans up.
        self._tell(self._publish(folder, step, text) if self._leads else [])

    def _plan_copies(self, held: list[list[Any] | None]) -> list[dict[str, Any]]:
        own = [(h[0], h[1]) if h else None for h in held]
        return [vars(move) for move in copies(self._places, own)]

    def _exchange(self, moves: Sequence[Move], folder: Path, manifest: Manifest) -> list[str]:
        """Send and receive, check what came; the problems here."""
        problems = self._wire.exchange(moves, folder)
        for move in moves:
            if move.target == self._rank and move.file not in problems:
                problem = memory.damage(folder / move.file, manifest)
                if problem:
                    problems[move.file] = problem
                    (folder / move.file).unlink(missing_ok=True)
        return list(problems.values())

    def _tell(self, problems: list[str]) -> bool:
        """Note every rank's problems on rank 0; whether there were none anywhere. Collective."""
        found = self._agree(problems, lambda all_: [line for lines in all_ for line in lines])
        for line in found if self._rank == 0 else ():
            self._note(f"checkpoint memory: {line}")
        return not found

    def _publish(self, folder: Path, step: int, text: bytes) -> list[str]:
        """Let the node's files of `step` take the place of all older ones; the problems."""
        final = disk.step_folder(self._memory, step)
        problems = []
        try:
            shutil.rmtree(final, ignore_errors=True)
            disk.publish(folder, final, text)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
        self._remove_all_but(final.name, "*")
        return problems

    def _remove_all_but(self, name: str, pattern: str) -> None:
        for entry in self._memory.glob(pattern):
            if entry.name != name:
                shutil.rmtree(entry, ignore_errors=True)

    # Resuming

    def restore(self, newest: Path | None, below: int | None = None) -> Path | None:
        """A folder in this node's memory with the newest checkpoint, for a `Reader`; collective.

        Every node gets the files that it lacks from another, and each file is hashed before it is
        used. None: memory holds no whole checkpoint, only one that is older than `newest` (the
        newest on disk; rank 0's value counts), or none below step `below`; then the disk has to
        serve. All ranks get the same answer.
        """
        own = list(memory.claims(self._memory)) if self._leads else []
        reports = self._wire.gather(json.dumps(own).encode())
        found = self._usable(reports, newest, below) if self._rank == 0 else []
        while True:
            choice = found[0] if found else None
            head = {"step": choice.step, "node": choice.informed} if choice else None
            head = json.loads(self._wire.broadcast(json.dumps(head).encode()))
            if head is None:
                return None
            folder = disk.step_folder(self._memory, head["step"])
            text = self._manifest(folder, head["node"])
            if self._verify(folder, text, choice) and self._gather_files(folder, text, choice):
                return folder
            found = found[1:]

    def _usable(
        self, reports: list[bytes], newest: Path | None, below: int | None
    ) -> list[Candidate]:
        """Rank 0: the saves in memory that may stand for the newest on disk, best first."""
        leaders = [ranks[0] for ranks in self._places.members]
        every = candidates([json.loads(reports[rank]) for rank in leaders])
        step, sha256 = -1, ""
        if newest is not None:
            step = disk.step_of(newest) or 0
            with contextlib.suppress(OSError):
                sha256 = hashlib.sha256((newest / disk.MANIFEST).read_bytes()).hexdigest()
        return [
            c
            for c in every
            if (c.step > step or (c.step == step and c.manifest == sha256))
            and (below is None or c.step < below)
            and c.complete
        ]

    def _manifest(self, folder: Path, node: int) -> bytes:
        """The manifest that the leader of `node` holds, on every rank."""
        sends = self._places.members[node][0] == self._rank
        texts = self._wire.gather((folder / disk.MANIFEST).read_bytes() if sends else b"")
        return self._wire.broadcast(b"".join(texts))

    def _verify(self, folder: Path, text: bytes, choice: Candidate | None) -> bool:
        """Hash what the nodes hold, shared out among each node's ranks; whether still whole."""
        manifest = parse(text, str(folder))
        index, count = self._places.local(self._rank)
        held = [name for name in sorted(manifest.files) if (folder / name).exists()]
        bad = {name: memory.damage(folder / name, manifest) for name in held[index::count]}
        bad = {name: problem for name, problem in bad.items() if problem}
        self._tell(list(bad.values()))

        def still_complete(reports: list[list[str]]) -> bool:
            assert choice is not None
            for rank, names in enumerate(reports):
                choice.drop(self._places.node_of[rank], names)
            return choice.complete

        return self._agree(list(bad), still_complete)

    def _gather_files(self, folder: Path, text: bytes, choice: Candidate | None) -> bool:
        """Bring every file to every node; whether all arrived."""
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
        plan = [vars(move) for move in choice.moves(self._places)] if choice else []
        moves = [Move(**m) for m in self._agree(None, lambda _: plan)]
        problems = self._exchange(moves, folder, parse(text, str(folder)))
        if self._leads and not problems:
            try:
                disk.write_synced(folder / disk.MANIFEST, text)
                disk.write_synced(folder / disk.MARKER, disk.marker_text(text).encode())
            except OSError as error:
                problems.append(f"{folder}: {error.strerror}")
        return self._tell(problems)

    def close(self, ended: bool = False) -> None:
        """Release the group; the memory goes, too, if the run has `ended` as it should."""
        if ended and self._leads:
            shutil.rmtree(self._memory, ignore_errors=True)
        self._wire.close()
