"""A lease on a folder: one process writes there, and a newer holder's number shuts the older out.

`FOLDER/.lease/NAME/` holds one folder per holder, named by a number that only grows; the largest is
the holder. It appears by a rename onto a name that must be free, which every file system and every
NFS version does at most once. The next holder removes the older folders before it writes anything,
and a holder looks for its own file, by opening it, before every write that matters: NFS asks the
server at each open, whatever it has cached. The README says what this guarantees, and what not.
"""

import contextlib
import errno
import os
import secrets
import shutil
import threading
import time
import weakref
from pathlib import Path

from ... import UserError
from .owner import Owner

BEAT_S = 2.0
"""Between two renewals."""
LIMIT_S = 15.0
"""Without a renewal for so long, a holder on another machine counts as dead. A holder that could
not renew for so long writes nothing before it has won a new number."""
PATIENCE_S = 10.0
"""How long the end of a dead command's workers may take."""
POLL_S = 0.1
HOME, OWNER, RELEASED = ".lease", "owner.json", "released"
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT}
"""A rename's answers when another one came first; ENOENT also where NFS repeats a done rename."""


class LeaseLostError(UserError):
    """Another process holds the lease now: this one must not write any more."""


class Lease:
    """This process's right to write into `folder`, as long as `check` raises nothing.

    Use `take` to get one. `field` names the folder's setting in errors.
    """

    def __init__(self, folder: Path, name: str, field: str, owner: Owner) -> None:
        """Not yet held."""
        self.folder, self.owner, self._field = folder, owner, field
        self.number = 0
        self.fresh = not os.path.lexists(folder)
        """Whether there was no such folder before."""
        self._home = folder / HOME / name
        self._token = secrets.token_hex(4)
        self._renewed = _clock()
        self._lost = False
        self._mutex = threading.RLock()
        self._over = threading.Event()

    @property
    def session(self) -> str:
        """Names what this holder writes: its number, and a random part."""
        return f"g{self.number:08d}-{self._token}"

    def check(self) -> None:
        """Call before each write that matters. Raises LeaseLostError once another process holds the
        lease, OSError where the disk does not answer."""
        with self._mutex:
            if self._late() or not self._owns(self._own):
                self._win_again()
            if self._lost or newest(self._home) > self.number:
                self._lose()

    def release(self) -> None:
        """Let the next one take it at once. A folder that was made for it, and to which nothing was
        written, does not remain."""
        self._over.set()
        with self._mutex, contextlib.suppress(OSError):
            (self._own / RELEASED).touch()
            if self.fresh and [entry.name for entry in self.folder.iterdir()] == [HOME]:
                shutil.rmtree(self.folder)

    @property
    def _own(self) -> Path:
        return self._home / f"{self.number:08d}"

    def _owns(self, folder: Path) -> bool:
        try:
            return (folder / OWNER).read_bytes() == self._text()
        except FileNotFoundError:
            return False

    def _text(self) -> bytes:
        return self.owner.dump() + f"\n{self._token}\n".encode()

    def _late(self) -> bool:
        return _clock() - self._renewed > LIMIT_S

    def _lose(self) -> None:
        self._lost = True
        holder = read(self._home / f"{newest(self._home):08d}")
        who = f"{holder} has taken it over" if holder else "another process has taken it over"
        raise LeaseLostError(
            f"{self._field}: {self.folder}: no longer this run's: {who}; nothing more is written, "
            "what was saved is intact"
        )

    def claim(self, number: int) -> bool:
        """Become holder `number`; False if another process was first."""
        began, mine = _clock(), self._home / f"{number:08d}"
        pending = self._home / f".{self._token}"
        shutil.rmtree(pending, ignore_errors=True)
        pending.mkdir()
        try:
            (pending / OWNER).write_bytes(self._text())
            _rename_to_free(pending, mine)
        finally:
            shutil.rmtree(pending, ignore_errors=True)
        if not self._owns(mine):
            return False
        if newest(self._home) != number:
            # A slow process can win the number of a holder that is gone already.
            shutil.rmtree(mine, ignore_errors=True)
            return False
        self.number, self._renewed = number, began
        self._remove_older()
        return True

    def _remove_older(self) -> None:
        for entry in numbered(self._home):
            if int(entry.name) < self.number:
                shutil.rmtree(entry, ignore_errors=True)

    def _win_again(self) -> None:
        """A late holder may count as dead by now, and somebody may have deleted the lease with all
        that lay there: win a new number, unless another process has."""
        last = newest(self._home)
        free = not last or (last == self.number and self._owns(self._own))
        if free and not self._lost:
            self._home.mkdir(parents=True, exist_ok=True)
            self._lost = not self.claim(self.number + 1)
        else:
            self._lost = True

    def beat(self) -> None:
        """Renew in the background until the lease is released, lost or forgotten."""
        arguments = weakref.ref(self), self._over
        self.thread = threading.Thread(target=_beat, args=arguments, name="lease", daemon=True)
        self.thread.start()

    def renew(self) -> bool:
        """Tell others that this process lives; whether it still has the lease. Raises OSError."""
        with self._mutex:
            if self._late():
                self._win_again()
                return not self._lost
            began = _clock()
            with contextlib.suppress(FileNotFoundError):
                # Without times the file server's own clock is used.
                os.utime(self._own / OWNER)
                self._renewed = began
            return not self._lost


def _beat(reference: "weakref.ref[Lease]", over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        lease = reference()
        # A disk that does not answer now may do so in time.
        with contextlib.suppress(OSError):
            if lease is None or not lease.renew():
                return
        del lease


def take(folder: Path, name: str, field: str, patience_s: float = PATIENCE_S) -> Lease:
    """The lease `name` on `folder`, renewed in the background.

    Taken at once from a holder that is gone, from this process itself, and from an older group of
    workers of the same run. Waits up to `patience_s` for the end of a process on this machine, and
    watches one of another machine until it renews, or has not for `LIMIT_S`.

    Raises UserError that names the holder, or where the folder cannot be written.
    """
    lease = Lease(folder, name, field, Owner.here())
    home = folder / HOME / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        watch = _Watch(home, lease.owner, patience_s)
        while not (watch.is_free() and lease.claim(watch.number + 1)):
            if watch.holder_lives:
                raise UserError(_refusal(field, folder, watch))
            time.sleep(POLL_S)
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "give a folder that this user can write"
        raise UserError(f"{field}: {folder}: {reason}; {fix}") from None
    lease.beat()
    return lease


class _Watch:
    """Looks at the present holder, as often as needed to know whether it lives."""

    def __init__(self, home: Path, own: Owner, patience_s: float) -> None:
        self._home, self._own = home, own
        self._until = _clock() + patience_s
        self.number = 0
        self.holder: Owner | None = None
        self.holder_lives = False
        self._seen: tuple[int, int] = (0, 0)
        self._since = _clock()

    def is_free(self) -> bool:
        """Whether the newest number has no living holder."""
        self.number, self.holder_lives = newest(self._home), False
        folder = self._home / f"{self.number:08d}"
        if not self.number or (folder / RELEASED).exists():
            return True
        holder = self.holder = read(folder)
        if holder is None:
            return self._is_silent(folder / OWNER)
        if holder.is_same_process(self._own):
            return True
        if holder.run == self._own.run and holder.generation != self._own.generation:
            self.holder_lives = holder.generation > self._own.generation
            return not self.holder_lives
        lives = holder.lives()
        if lives is None:
            return self._is_silent(folder / OWNER)
        self.holder_lives = lives and _clock() > self._until
        return not lives

    def _is_silent(self, file: Path) -> bool:
        """Whether a holder on another machine has stopped renewing; `holder_lives` once it did."""
        renewed = _opened_mtime(file)
        seen = self.number, renewed
        if self._seen[0] != self.number:
            self._seen, self._since = seen, _clock()
            return _server_now(self._home) - renewed > LIMIT_S * 1e9
        self.holder_lives = seen != self._seen
        return not self.holder_lives and _clock() - self._since > LIMIT_S


def newest(home: Path) -> int:
    """The largest number of a holder; 0: none yet."""
    return max((int(entry.name) for entry in numbered(home)), default=0)


def numbered(home: Path) -> list[Path]:
    """The holders' folders, in no order."""
    try:
        return [entry for entry in home.iterdir() if entry.name.isdecimal()]
    except FileNotFoundError:
        return []


def read(folder: Path) -> Owner | None:
    """Who holds the lease in this folder; None if that cannot be read."""
    try:
        return Owner.parse((folder / OWNER).read_bytes().partition(b"\n")[0])
    except OSError:
        return None


def _refusal(field: str, folder: Path, watch: _Watch) -> str:
    who = watch.holder or "a process that cannot be told"
    return (
        f"{field}: {folder}: {who} is writing there; wait for its end, stop it, or give this run "
        "another folder"
    )


def _rename_to_free(source: Path, target: Path) -> None:
    """Rename a folder unless the name is taken; the caller looks who has it then."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise


def _opened_mtime(file: Path) -> int:
    """Nanoseconds by the file server's clock; opening makes NFS ask. 0 if the file is gone."""
    try:
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


def _server_now(home: Path) -> int:
    """The file server's clock: when it wrote a file just now."""
    probe = home / f".now-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"now")
        return _opened_mtime(probe)
    finally:
        probe.unlink(missing_ok=True)


def _clock() -> float:
    """Seconds that go on while the machine sleeps or the process is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
