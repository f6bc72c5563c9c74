"""Run folders: JSON lines appended whole, run.json, a lock, resume. Fields of every file: docs/files.md."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, RunFailed, RunFolderError
from e2bench.files import disk_errors, encode_row, is_beside, make_folder, read_json, write_atomic, write_json
from e2bench.runs.lines import LM_EVAL, RUN, SCORES, merged, read_run, row_id
from e2bench.runs.lock import FolderLock
from e2bench.runs.manifest import now
from e2bench.terminal import say

SHOWN_S = 90  # NFS keeps a folder's listing for up to 60 s


NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # a received folder's link must not lead an appended line elsewhere
# In run.json what a later call asked for replaces what stood there; how it went is an entry of its own in `continued`,
# and what made the first lines stays.
WENT = ("started", "device", "engine", "batch_size", "processes", "versions", "commit", "dirty")
KEPT = (*WENT, "model", "checks")
MAP = re.compile(r"(attention-\d+|ppl-[0-9a-f]{16})(-[\w.]+)*\.npz")  # arrays of a run


def owned(run: Mapping[str, Any]) -> set[str]:
    """Names of the NAME.jsonl files that a run.json's run wrote; of runs older than `files` those of its tasks."""
    files = run.get("files")
    if isinstance(files, list):
        return {str(name) for name in files}
    resolved = run.get("resolved")
    tasks = resolved.get("tasks") if isinstance(resolved, dict) else None
    asked = run.get("asked")
    names = {str(name) for name in tasks} if isinstance(tasks, list) else set()
    return {*names, *(asked if isinstance(asked, dict) else ()), str(run.get("experiment"))}


class RunFolder:
    """One run on disk. Use as a context manager: the lock is held inside.

    manifest: the contents of run.json but for times. `manifest["resolved"]` decides whether a folder may be resumed.
    chooses: names in `resolved` that only choose which lines there are. They may differ from call to call: lines that
        exist are kept, missing ones added. True: entries that both calls have must agree (a task's version); False:
        what such a line was made from is told by the line itself (`sample`, or its id).
    advice: what to do where a setting of that name differs, beside another folder.
    unrecorded: settings that runs of older versions did not record. A folder that lacks one goes on, and it is said.
    implied: entries of `resolved` that the folder may be too old to have, with the value that its run then had.
    fresh: drop what an earlier run left there.    must_resume: refuse a folder without a run.
    rank, world: which of how many processes this is; rank 0 writes run.json and holds the lock.
    files: names of the NAME.jsonl files that it will write; None: not said.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        *,
        chooses: Mapping[str, bool] | None = None,
        advice: Mapping[str, str] | None = None,
        unrecorded: Collection[str] = (),
        implied: Mapping[str, Any] | None = None,
        fresh: bool = False,
        must_resume: bool = False,
        rank: int = 0,
        world: int = 1,
        files: set[str] | None = None,
    ) -> None:
        self.files, self.unrecorded = files, frozenset(unrecorded)
        self.stored: dict[str, Any] | None = None  # run.json of the calls before this one
        self.path, self.manifest, self.chooses, self.advice = path, manifest, chooses or {}, advice or {}
        self.implied = implied or {}
        self.data_changed = False  # whether a file of an earlier call has another hash now
        self.fresh, self.must_resume = fresh, must_resume
        self.rank, self.world = rank, world
        self._files: dict[str, int] = {}

    def __enter__(self) -> RunFolder:
        if self.rank == 0:
            make_folder(self.path)
            self._lock = FolderLock(self.path)
            self._lock.acquire()
            try:
                self._start()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        if self.rank == 0:
            self._lock.release()

    # starting and resuming

    def _start(self) -> None:
        earlier = self.path / RUN
        if self.fresh:
            self._clear()
        with disk_errors(self.path):
            for beside in filter(is_beside, self.path.glob(".*.tmp")):  # of a process killed inside `write_atomic`
                beside.unlink()
        self.stored = stored = read_run(self.path) if earlier.exists() else None
        if stored is not None:
            self._check_same(stored)
        elif self.must_resume:
            raise RunFolderError(f"{self.path} holds no run to resume; leave --resume out to start one")
        self._check_files(set() if stored is None else owned(stored), known=stored is not None)
        self.manifest["started"] = now()
        self._is_begun = stored is None
        if stored is None:
            write_json(earlier, {**self.manifest, "work": work_of({}), "ended": None})

    def begin(self) -> None:
        """Lines are about to be added: into a folder of earlier calls, run.json gets an entry for this one."""
        if not self._is_begun:
            write_json(self.path / RUN, {**self._with_this_call(), "ended": None})
            self._is_begun = True

    def _with_this_call(self) -> dict[str, Any]:
        """run.json of the earlier calls, with this one: what it asked for on top, how it went as an entry.

        What made the first lines stays as it was: machine, versions, commit, batch.
        """
        assert self.stored is not None
        entry = {name: self.manifest[name] for name in (*WENT, "settings") if name in self.manifest}
        kept = {name: self.stored[name] for name in KEPT if name in self.stored}
        return {**self.stored, **self.manifest, **kept, "continued": [*self._earlier_calls(), entry]}

    def _earlier_calls(self) -> list[Any]:
        calls = (self.stored or {}).get("continued")
        return calls if isinstance(calls, list) else []

    def _check_files(self, own: set[str], *, known: bool) -> None:
        """Refuse lines of somebody else's under a name of ours. own: what run.json says was written; known: by one."""
        for path in sorted(self.path.glob("*.jsonl")):
            name = path.name.split(".")[0]
            if name not in own and (name in self.files if self.files is not None else not known):
                raise RunFolderError(f"{path} was not written by this run; choose another --out")
        if self.files is not None:
            self.manifest["files"] = sorted(own | self.files)

    def is_another(self) -> bool:
        """Whether the folder holds a run that this one cannot go on with."""
        earlier = self.path / RUN
        return earlier.exists() and bool(self._differing(read_run(self.path))[0])

    def _differing(self, earlier: dict[str, Any]) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
        """Names of the settings that forbid to go on with `earlier` (a run.json), and both runs' settings."""
        resolved = earlier.get("resolved")
        if not isinstance(resolved, dict | None):
            raise DataError(f"{self.path / RUN}: resolved is a JSON {type(resolved).__name__}, needed is an object")
        old = {"experiment": earlier.get("experiment"), **self.implied, **(resolved or {})}
        new = {"experiment": self.manifest["experiment"], **json.loads(json.dumps(self.manifest["resolved"]))}
        return [name for name in {**new, **old} if self._clash(name, old.get(name), new.get(name))], old, new

    def _check_same(self, earlier: dict[str, Any]) -> None:
        differing, old, new = self._differing(earlier)
        if differing:
            raise another_run(self.path, {n: (old.get(n), new.get(n)) for n in differing}, self.advice)
        if lacking := sorted(self.unrecorded & new.keys() - old.keys()):
            say(
                f"{self.path} was begun by an older e2bench, which did not record {', '.join(lacking)}: whether they "
                "are the same now cannot be told"
            )
        if (before := engine_in(earlier)) != (after := engine_in(self.manifest)):
            say(f"{self.path} was begun with {before}, and goes on with {after}: its lines are of both")
        self.data_changed = _disagree(old.get("data"), new.get("data"))
        for name in self.chooses:  # what earlier calls chose is still in the folder
            if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
                self.manifest["resolved"][name] = {**old[name], **new[name]}

    def _clash(self, name: str, old: Any, new: Any) -> bool:
        """Whether a setting forbids to go on with the folder's lines."""
        if name in self.unrecorded and (old is None or (isinstance(old, str) and str(new).startswith(old))):
            return False  # not recorded, or a part of it
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
        """Drop the files of the run that run.json names; whatever else lies there is somebody's."""
        if not (self.path / RUN).exists():
            return
        try:
            names = owned(read_json(self.path / RUN))
        except DataError:  # a torn run.json: its lines are named by nothing, and stay
            names = set()
        with disk_errors(self.path):
            for file in sorted(self.path.iterdir()):
                ours = file.suffix == ".jsonl" and file.name.split(".")[0] in names
                if ours or file.name in (RUN, SCORES, LM_EVAL) or (names and MAP.fullmatch(file.name)):
                    file.unlink()

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
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | NO_LINKS, 0o644)
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

    def finish(self, order: Mapping[str, list[str]], *, tokens: int = 0, seconds: float = 0.0) -> None:
        """Merge every process's lines into NAME.jsonl in the given order of ids, and mark the run complete.

        Lines that only earlier calls asked for follow; `asked` in run.json says how many were asked for now. A file
        that would get the same content is not written: to ask a finished run again changes nothing in its folder.
        tokens, seconds: the items' cost that this call worked off and the time of all its processes; `work` in run.json
            sums them up over calls.
        Raises RunFailed when lines are missing, after waiting for a network's file system to show them.
        """
        self.close()
        for name, ids in order.items():
            lines = self._complete(name, ids)
            others = lines.keys() - set(ids)
            kept = [*ids, *(one for one in lines if one in others)]
            content = b"".join(encode_row(lines[i]) for i in kept)
            path = self.path / f"{name}.jsonl"
            if not path.exists() or path.read_bytes() != content:
                write_atomic(path, content)
            for part in self.path.glob(f"{name}.rank*.jsonl"):
                part.unlink()
        asked = {name: len(ids) for name, ids in order.items()}
        stored = self.stored or {}
        if not self._is_begun and stored.get("ended") and stored.get("asked") == asked:
            return
        self.begin()
        run = read_json(self.path / RUN)
        work = work_of(run)
        if tokens:
            work = {"tokens": work["tokens"] + tokens, "seconds": round(work["seconds"] + seconds, 3)}
        write_json(self.path / RUN, {**run, "work": work, "asked": asked, "ended": now()})

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


def work_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """`work` of a run.json: the cost of the items made and the seconds of the processes that made them."""
    work = run.get("work")
    named = work if isinstance(work, dict) else {}
    numbers = {name: named.get(name) for name in ("tokens", "seconds")}
    return {name: value if isinstance(value, int | float) and value > 0 else 0 for name, value in numbers.items()}


def engine_in(run: Mapping[str, Any]) -> str:
    """Name, version and options of the engine of a run.json; empty where there is none."""
    engine = run.get("engine")
    if not isinstance(engine, dict):
        return ""
    options = engine.get("options")
    return " ".join(
        map(str, [engine.get("name"), engine.get("version"), *(options if isinstance(options, list) else [])])
    )


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


def another_run(
    path: Path, differing: Mapping[str, tuple[Any, Any]], advice: Mapping[str, str] | None = None
) -> RunFolderError:
    """The refusal of a folder whose run has other settings: name: (there, now)."""
    named = [f"{name} = {words(old)}, not {words(new)}" for name, (old, new) in list(differing.items())[:3]]
    hints = [f"{(advice or {})[name]}, " for name in differing if name in (advice or {})]
    return RunFolderError(
        f"{path} holds a run with {' and '.join(named)}; "
        f"{''.join(hints)}choose another --out, or give --fresh to drop the old run"
    )


def words(value: Any) -> str:
    """A value as a user would write it: lists by commas, a grid's cells as `512 linear g 4`, nothing as none."""
    if _is_grid(value):
        text = ", ".join(f"{length} {method} g {scale}" for length, method, scale in value)
    elif isinstance(value, list | tuple):
        text = ",".join(words(one) for one in value)
    elif value is None or isinstance(value, bool):
        text = "none" if value is None else "yes" if value else "no"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
