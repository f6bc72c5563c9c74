"""Run folders: JSON lines appended whole, run.json, a lock, resume. Fields of every file: docs/files.md."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import e2bench
from e2bench.errors import DataError, RunFailed, RunFolderError

RUN, SCORES, LOCK = "run.json", "scores.json", ".lock"
_held: set[Path] = set()  # the locks of this process
LM_EVAL = "lm-eval.json"  # what lm-eval said of each task, as it said it
SHOWN_S = 90  # NFS keeps a folder's listing for up to 60 s
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "peft", "lm-eval", "jieba", "numpy")


def json_object(raw: bytes, where: str) -> dict[str, Any]:
    """One line as a JSON object; DataError beginning with `where` (FILE:LINE) for anything else."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}); convert the file first") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, needed is an object")
    return value


def read_rows(path: Path, *, ours: bool = True) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises DataError naming file and line for a line that is none.

    ours: a last line without its newline was torn by a crash and is left out; other people's files may end so.
    """
    rows = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines[:-1] if ours else lines, 1):
        if line.strip():
            rows.append(json_object(line, f"{path}:{number}"))
    return rows


def encode_row(row: Mapping[str, Any]) -> bytes:
    """One line; a lone surrogate becomes its JSON escape, which reads back as itself."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; DataError, one line, for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is a JSON {type(value).__name__}, needed is an object")
    return value


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write beside and rename into place, so that a half-written file is never taken for a whole one."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What a disk can do wrong, as one line. A full disk is a failure (exit 1), an unwritable folder a mistake."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunFailed(
                f"{path}: {error.strerror}; what was finished is kept: free some space and give the same command again"
            ) from None
        raise RunFolderError(f"{path} cannot be written: {error.strerror}; choose another folder with --out") from None


def make_folder(path: Path) -> None:
    """The folder that --out names, and those above it. RunFolderError for a file, or where none can be made."""
    if path.is_file():
        raise RunFolderError(f"{path} is a file; give a folder with --out")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)


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

    def _check_same(self, earlier: dict[str, Any]) -> None:
        resolved = earlier.get("resolved")
        if not isinstance(resolved, dict | None):
            raise DataError(f"{self.path / RUN}: resolved is a JSON {type(resolved).__name__}, needed is an object")
        old = {"experiment": earlier.get("experiment"), **(resolved or {})}
        new = {"experiment": self.manifest["experiment"], **json.loads(json.dumps(self.manifest["resolved"]))}
        differing = [name for name in {**new, **old} if self._clash(name, old.get(name), new.get(name))]
        if differing:
            named = [f"{name} = {_short(old.get(name))}, not {_short(new.get(name))}" for name in differing[:3]]
            advice = [f"{self.advice[name]}, " for name in differing if name in self.advice]
            raise RunFolderError(
                f"{self.path} holds a run with {' and '.join(named)}; "
                f"{''.join(advice)}choose another --out, or give --fresh to drop the old run"
            )
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


def asked(folder: Path) -> dict[str, int] | None:
    """NAME: how many leading lines the last complete call asked for; None where run.json does not say."""
    counts = read_json(folder / RUN).get("asked") if (folder / RUN).exists() else None
    return counts if isinstance(counts, dict) and all(isinstance(n, int) for n in counts.values()) else None


def names_of(folder: Path) -> list[str]:
    """What a run's last call asked for lines of; NAME.rankN.jsonl of a single process belongs to NAME."""
    names = {path.name.split(".")[0] for path in folder.glob("*.jsonl")}
    counts = asked(folder)
    return sorted(names if counts is None else names & counts.keys())


def merged(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """id: line, over NAME.jsonl and the files of single processes."""
    found: dict[str, dict[str, Any]] = {}
    for path in [folder / f"{name}.jsonl", *sorted(folder.glob(f"{name}.rank*.jsonl"))]:
        if path.exists():
            for row in read_rows(path):
                found.setdefault(row_id(row), row)
    return found


def stored_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of one file that a run's last call asked for; all of a folder in LongBench's own layout."""
    if (folder / RUN).exists():
        counts = asked(folder)
        return list(merged(folder, name).values())[: None if counts is None else counts.get(name, 0)]
    return read_rows(folder / f"{name}.jsonl", ours=False)


def row_id(row: Mapping[str, Any]) -> str:
    """What tells one line of a file from another: `_id`, or the cell of a perplexity, passkey or attention line."""
    if "_id" in row:
        return str(row["_id"])
    keys = ("document", "window", "length", "depth", "trial", "scale")
    return " ".join(f"{key}={row[key]}" for key in keys if key in row)


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


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions of what decides numbers, and the commit of the checkout this code runs from, if any."""
    versions = {"e2bench": e2bench.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    return {"versions": versions, "commit": commit, "dirty": bool(_git("status", "--porcelain")) if commit else None}


def _git(*arguments: str) -> str | None:
    root = Path(e2bench.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def manifest(
    experiment: str, *, settings: Mapping[str, Any], resolved: Mapping[str, Any], **rest: Any
) -> dict[str, Any]:
    """The contents of run.json but for its times."""
    head = {"format": 1, "experiment": experiment, "settings": dict(settings), "resolved": dict(resolved)}
    return {**head, **rest, **environment()}


def check_folder(path: Path, what: str) -> Path:
    """The folder itself; DataError when it is absent or no folder."""
    if not path.is_dir():
        raise DataError(f"no folder {path}; {what}")
    return path


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """File name: SHA-256."""
    import hashlib

    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
