"""One process at a time in a folder: the kernel's own lock, which ends with its process; a sign of life for the rest.

`flock` holds between processes and containers of one machine, whatever their pids and host names, and is gone when the
process is. Machines that share a network's file system may not see each other's: the file says the machine's boot id,
and its time is renewed while the lock is held.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from e2bench.errors import RunFolderError
from e2bench.files import disk_errors
from e2bench.runs.manifest import now

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
SIGN_S, STALE_S = 30, 150  # a sign of life so often; without one for so long, another machine's run is dead
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class FolderLock:
    """Held inside as a context manager. Raises RunFolderError naming who holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK
        self._descriptor: int | None = None
        self._released = threading.Event()

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock or say who has it."""
        while self._descriptor is None:
            with disk_errors(self.path):
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
                try:
                    if self._take(descriptor):
                        self._descriptor = descriptor
                finally:
                    if self._descriptor is None:
                        os.close(descriptor)
        self._released.clear()
        threading.Thread(target=self._sign, daemon=True).start()

    def _take(self, descriptor: int) -> bool:
        """Whether the file is ours now; False: it was removed meanwhile, try the new one."""
        locks = True
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise self._in_use(_holder(descriptor), "this machine") from None
            if error.errno not in _NO_LOCKS:
                raise
            locks = False
        try:
            if os.stat(self.path).st_ino != os.fstat(descriptor).st_ino:
                return False
        except FileNotFoundError:
            return False
        holder, age = _holder(descriptor), time.time() - os.fstat(descriptor).st_mtime
        if holder and age < STALE_S and (not locks or _is_elsewhere(holder)):
            raise self._in_use(holder, f"{holder.get('host')} (last sign of life {age:.0f} s ago)")
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot_id(), "started": now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        return True

    def _in_use(self, holder: dict[str, Any], where: str) -> RunFolderError:
        who = f"process {holder['pid']}" if "pid" in holder else "another process"
        return RunFolderError(
            f"{self.folder} is in use by {who} on {where}; wait for it, or choose another --out (a dead run's lock "
            f"goes with it, another machine's after {STALE_S} s)"
        )

    def _sign(self) -> None:
        while not self._released.wait(SIGN_S):
            try:
                os.utime(self.path)
            except OSError:
                return

    def release(self) -> None:
        """Give the lock back and remove its file, if it is still this one's."""
        self._released.set()
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            if os.stat(self.path).st_ino == os.fstat(descriptor).st_ino:
                self.path.unlink()
        except OSError:
            pass  # gone already
        os.close(descriptor)  # unlocks


def _holder(descriptor: int) -> dict[str, Any]:
    """What the lock's file says; {} where it is torn or of another kind."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return {**holder, "pid": int(holder["pid"])} if isinstance(holder, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}


def _is_elsewhere(holder: dict[str, Any]) -> bool:
    """Whether another machine wrote it; files of before the boot id name the host."""
    if "boot" in holder:
        return bool(holder["boot"] != boot_id())
    return bool(holder.get("host")) and holder["host"] != socket.gethostname()


def boot_id() -> str:
    """Names this machine's run since it was started; containers on it share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
