"""Run folders: JSON lines appended whole, run.json, a lock, resume. Fields of every file: docs/files.md."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, RunFailed, RunFolderError
from e2bench.files import disk_errors, encode_row, make_folder, read_json, write_atomic, write_json
from e2bench.runs.lines import LM_EVAL, RUN, SCORES, merged, row_id
from e2bench.runs.manifest import now

LOCK = ".lock"
_held: set[Path] = set()  # the locks of this process
SHOWN_S = 90  # NFS keeps a folder's listing for up to 60 s


class RunFolder:
    """One run on disk. Use as a context manager: the lock is held inside.

    manifest: the contents of run.json but for times. `manifest["resolved"]` decides whether a folder may be resumed.
    chooses: names in `resolved` that only choose which lines there are. They may differ from call to call: lines that
        exist are kept, missing ones added. True: entries that both calls have must agree (a task's version); False:
        what such a line was made from is told by the line itself (`sample`, or its id).
    advice: what to do where a setting of that name differs, beside another folder.
    fresh: drop what an earlier run left there.    must_resume: refuse a folder without a run.
    rank, world: which of how many processes this is; rank 0 writes run.json and holds the lock.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        *,
        chooses: Mapping[str, bool] | None = None,
        advice: Mapping[str, str] | None = None,
        fresh: bool = False,
        must_resume: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.path, self.manifest, self.chooses, self.advice = path, manifest, chooses or {}, advice or {}
        self.data_changed = False  # whether a file of an earlier call has another hash now
        self.fresh, self.must_resume = fresh, must_resume
        self.rank, self.world = rank, world
        self._files: dict[str, int] = {}

    def __enter__(self) -> RunFolder:
        if self.rank == 0:
            make_folder(self.path)
            self._lock()
            try:
                self._start()
            except BaseException:
                self._unlock()
                raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        if self.rank == 0:
            self._unlock()

    # starting and resuming

    def _start(self) -> None:
        earlier = self.path / RUN
        if self.fresh:
            self._clear()
        with disk_errors(self.path):
            for beside in self.path.glob(".*.tmp"):  # of a process killed inside `write_atomic`
                beside.unlink()
        if earlier.exists():
            self._check_same(read_json(earlier))
        elif self.must_resume:
            raise RunFolderError(f"{self.path} holds no run to resume; leave --resume out to start one")
        elif any(self.path.glob("*.jsonl")):
            raise RunFolderError(
                f"{self.path} holds .jsonl files of something else; choose another --out, or give --fresh"
            )
        started = (read_json(earlier).get("started") if earlier.exists() else None) or now()
        write_json(earlier, {**self.manifest, "started": started, "ended": None})

    def is_another(self) -> bool:
        """Whether the folder holds a run that this one cannot go on with."""
        earlier = self.path / RUN
        return earlier.exists() and bool(self._differing(read_json(earlier))[0])

    def _differing(self, earlier: dict[str, Any]) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
        """Names of the settings that forbid to go on with `earlier` (a run.json), and both runs' settings."""
        resolved = earlier.get("resolved")
        if not isinstance(resolved, dict | None):
            raise DataError(f"{self.path / RUN}: resolved is a JSON {type(resolved).__name__}, needed is an object")
        old = {"experiment": earlier.get("experiment"), **(resolved or {})}
        new = {"experiment": self.manifest["experiment"], **json.loads(json.dumps(self.manifest["resolved"]))}
        return [name for name in {**new, **old} if self._clash(name, old.get(name), new.get(name))], old, new

    def _check_same(self, earlier: dict[str, Any]) -> None:
        differing, old, new = self._differing(earlier)
        if differing:
            raise another_run(self.path, {n: (old.get(n), new.get(n)) for n in differing}, self.advice)
        self.data_changed = _disagree(old.get("data"), new.get("data"))
        for name in self.chooses:  # what earlier calls chose is still in the folder
            if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
                self.manifest["resolved"][name] = {**old[name], **new[name]}

    def _clash(self, name: str, old: Any, new: Any) -> bool:
        """Whether a setting forbids to go on with the folder's lines."""
        if name not in self.chooses:
            return bool(old != new)
        return self.chooses[name] and _disagree(old, new)

    def check_sample(self, name: str, row: Mapping[str, Any], sample: str) -> None:
        """Refuse a stored line that was made from another sample than the one of its id now."""
        stored = row.get("sample")
        if stored == sample or (stored is None and not self.data_changed):
            return
        raise RunFolderError(
            f"{self.path} holds a run with data = another {name} {row_id(row)} than the one given now; "
            "choose another --out, or give --fresh to drop the old run"
        )

    def _clear(self) -> None:
        with disk_errors(self.path):
            for pattern in ("*.jsonl", "*.npz", RUN, SCORES, LM_EVAL):
                for file in self.path.glob(pattern):
                    file.unlink()

    # the lock: a file made exclusively, which also holds on NFS; advisory locks would not

    def _lock(self) -> None:
        lock = self.path / LOCK
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": now()}
        for _ in range(2):
            try:
                with disk_errors_except_exists(lock):
                    descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._refuse_or_take_over(lock)
                continue
            try:
                with disk_errors(lock), os.fdopen(descriptor, "w") as file:
                    json.dump(mine, file)
            except BaseException:
                lock.unlink(missing_ok=True)
                raise
            _held.add(lock.resolve())
            return
        raise RunFolderError(f"{self.path} is being used by another run; choose another --out")

    def _refuse_or_take_over(self, lock: Path) -> None:
        try:
            holder = json.loads(lock.read_text())
            host, pid = holder["host"], int(holder["pid"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            host, pid = "", 0  # torn while it was written: its process died with it
        if host not in ("", socket.gethostname()):
            raise RunFolderError(
                f"{self.path} is in use by process {pid} on {host}; wait for it, or delete {lock} if that run is dead"
            )
        ours = pid == os.getpid() and lock.resolve() not in _held  # a container that was restarted counts from 1 again
        if pid > 0 and not ours and _alive(pid):
            raise RunFolderError(
                f"{self.path} is in use by process {pid} on this machine; wait for it, or choose another --out"
            )
        lock.unlink(missing_ok=True)

    def _unlock(self) -> None:
        lock = self.path / LOCK
        _held.discard(lock.resolve())
        lock.unlink(missing_ok=True)

    # lines

    def done(self, name: str) -> dict[str, dict[str, Any]]:
        """The finished lines of `name` by id (`row_id`), from all processes; of two with one id the first."""
        return merged(self.path, name)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line and flush it to the disk."""
        if name not in self._files:
            self._files[name] = self._open(name)
        with disk_errors(self.path / f"{name}.jsonl"):
            data = encode_row(row)
            written = os.write(self._files[name], data)
            if written < len(data):  # a nearly full disk takes a part; the torn line is dropped at the next start
                os.write(self._files[name], data[written:])
            os.fsync(self._files[name])

    def _open(self, name: str) -> int:
        file = f"{name}.jsonl" if self.world == 1 else f"{name}.rank{self.rank}.jsonl"
        path = self.path / file
        with disk_errors(path):
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.ftruncate(descriptor, whole)
        return descriptor

    def close(self) -> None:
        """Close the files; the next line opens its own again."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def finish(self, order: Mapping[str, list[str]]) -> None:
        """Merge every process's lines into NAME.jsonl in the given order of ids, and mark the run complete.

        Lines that only earlier calls asked for follow; `asked` in run.json says how many were asked for now.
        Raises RunFailed when lines are missing, after waiting for a network's file system to show them.
        """
        self.close()
        for name, ids in order.items():
            lines = self._complete(name, ids)
            others = lines.keys() - set(ids)
            kept = [*ids, *(one for one in lines if one in others)]
            write_atomic(self.path / f"{name}.jsonl", b"".join(encode_row(lines[i]) for i in kept))
            for part in self.path.glob(f"{name}.rank*.jsonl"):
                part.unlink()
        run = read_json(self.path / RUN)
        write_json(self.path / RUN, {**run, "asked": {name: len(ids) for name, ids in order.items()}, "ended": now()})

    def _complete(self, name: str, ids: list[str]) -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + (SHOWN_S if self.world > 1 else 0)
        while True:
            lines = merged(self.path, name)
            missing = [one for one in ids if one not in lines]
            if not missing:
                return lines
            if time.monotonic() >= deadline:
                raise RunFailed(
                    f"{self.path} lacks {len(missing)} of {len(ids)} lines of {name}; give the same command again"
                )
            time.sleep(1)


def _disagree(old: Any, new: Any) -> bool:
    """Whether two choices of lines contradict each other: another value of one name, another scaling at one length."""
    if isinstance(old, dict) and isinstance(new, dict):
        return any(old[name] != new[name] for name in old.keys() & new.keys())
    if _is_grid(old) and _is_grid(new):
        return _disagree(_by_length(old), _by_length(new))
    return False


def _by_length(grid: list[list[Any]]) -> dict[Any, list[list[Any]]]:
    """Length: its methods and scales, in order."""
    return {length: sorted([cell[1:] for cell in grid if cell[0] == length], key=str) for length, _, _ in grid}


def _is_grid(value: Any) -> bool:
    """[[length, method, g], …]"""
    return isinstance(value, list) and all(isinstance(cell, list) and len(cell) == 3 for cell in value)


@contextmanager
def disk_errors_except_exists(path: Path) -> Iterator[None]:
    """`disk_errors`, but FileExistsError passes through."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        with disk_errors(path):
            raise error from None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    """Ended, but never waited for: in a container whose first process reaps nobody, for ever."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False  # no /proc here, or gone since
    return status.rpartition(b") ")[2].startswith(b"Z")


def another_run(
    path: Path, differing: Mapping[str, tuple[Any, Any]], advice: Mapping[str, str] | None = None
) -> RunFolderError:
    """The refusal of a folder whose run has other settings: name: (there, now)."""
    named = [f"{name} = {_words(old)}, not {_words(new)}" for name, (old, new) in list(differing.items())[:3]]
    hints = [f"{(advice or {})[name]}, " for name in differing if name in (advice or {})]
    return RunFolderError(
        f"{path} holds a run with {' and '.join(named)}; "
        f"{''.join(hints)}choose another --out, or give --fresh to drop the old run"
    )


def _words(value: Any) -> str:
    """A value as a user would write it: lists by commas, a grid's cells as `512 linear g 4`, nothing as none."""
    if _is_grid(value):
        text = ", ".join(f"{length} {method} g {scale}" for length, method, scale in value)
    elif isinstance(value, list | tuple):
        text = ",".join(_words(one) for one in value)
    elif value is None or isinstance(value, bool):
        text = "none" if value is None else "yes" if value else "no"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
