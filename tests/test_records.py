"""Run folders: torn lines, other settings, the lock, full disks; what is on the disk is never lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2bench.errors import DataError, RunFailed, RunFolderError
from e2bench.files import encode_row, file_hashes, read_json, read_rows, write_atomic
from e2bench.runs.folder import RunFolder
from e2bench.runs.lines import RUN, merged, row_id
from e2bench.runs.lock import LOCK, STALE_S, boot_id
from e2bench.runs.manifest import environment, manifest

LONE_SURROGATES = st.text(st.characters(categories=("L", "N", "P", "S", "Z", "Cc", "Cs")), max_size=30)


def contents(**resolved: Any) -> dict[str, Any]:
    """A run.json of a made-up experiment."""
    return manifest("longbench", settings={}, resolved={"scale": 8, "tasks": ["trec"], **resolved})


def row(number: int, **more: Any) -> dict[str, Any]:
    """A line with an id."""
    return {"_id": str(number), "pred": f"answer {number}\n", **more}


def write(folder: Path, numbers: list[int], **options: Any) -> None:
    """Open a run, append lines to trec.jsonl, leave it incomplete."""
    with RunFolder(folder, contents(), **options) as run:
        for number in numbers:
            run.append("trec", row(number))


# ---- lines


@given(text=LONE_SURROGATES)
def test_any_text_survives_a_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    line = encode_row({"pred": text})
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert json.loads(line.decode("utf-8")) == {"pred": text}


def test_lines_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"_id": "a", "pred": "line\n\u2028 \x85 是 \ud83d"}, {"_id": "b", "n": 0.1}]
    (tmp_path / "x.jsonl").write_bytes(b"".join(encode_row(r) for r in rows))
    assert read_rows(tmp_path / "x.jsonl") == rows


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_dropped_and_redone(tmp_path: Path, cut: int) -> None:
    write(tmp_path, [1, 2, 3])
    file = tmp_path / "trec.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    with RunFolder(tmp_path, contents()) as run:
        assert set(run.done("trec")) == {"1", "2"}
        run.append("trec", row(3))
    assert read_rows(file) == [row(1), row(2), row(3)]


def test_a_line_without_its_newline_is_torn_even_if_it_is_whole_json(tmp_path: Path) -> None:
    write(tmp_path, [1])
    with (tmp_path / "trec.jsonl").open("ab") as file:
        file.write(encode_row(row(2))[:-1])
    assert set(merged(tmp_path, "trec")) == {"1"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"_id": 1', "not a JSON object"),
        (b"[1]", "a JSON list"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"\0\0", "not a JSON"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(encode_row(row(1)) + line + b"\n" + encode_row(row(2)))
    with pytest.raises(DataError, match=rf"x\.jsonl:2: .*{reason}"):
        read_rows(tmp_path / "x.jsonl")


def test_lines_are_told_apart_by_id_or_by_their_cell() -> None:
    assert row_id({"_id": 7, "length": 3}) == "7"
    assert row_id({"length": 4096, "depth": 0.5, "trial": 2, "scale": 1, "key": "x"}) == (
        "length=4096 depth=0.5 trial=2 scale=1"
    )


# ---- resuming


def test_a_run_is_continued_and_finished_in_the_given_order(tmp_path: Path) -> None:
    write(tmp_path, [2, 1])
    assert read_json(tmp_path / RUN)["ended"] is None
    with RunFolder(tmp_path, contents()) as run:
        assert set(run.done("trec")) == {"1", "2"}
        run.append("trec", row(3))
        run.finish({"trec": ["1", "2", "3"]})
    assert read_rows(tmp_path / "trec.jsonl") == [row(1), row(2), row(3)]
    assert read_json(tmp_path / RUN)["ended"] is not None
    assert not (tmp_path / LOCK).exists()


def test_the_start_of_a_continued_run_is_its_first(tmp_path: Path) -> None:
    write(tmp_path, [1])
    first = read_json(tmp_path / RUN)
    (tmp_path / RUN).write_text(json.dumps({**first, "started": "2020-01-01T00:00:00+00:00"}), encoding="utf-8")
    write(tmp_path, [2])
    assert read_json(tmp_path / RUN)["started"] == "2020-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": 16}, "scale = 8, not 16"),
        ({"tasks": ["trec", "lcc"]}, "tasks = trec, not trec,lcc"),
        ({"truncation": "ids"}, "truncation = none, not ids"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_touched(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    write(tmp_path, [1])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(RunFolderError, match=message), RunFolder(tmp_path, contents(**changed)):
        pass
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_setting_that_is_gone_is_named_too(tmp_path: Path) -> None:
    with RunFolder(tmp_path, contents(limit=2)):
        pass
    with pytest.raises(RunFolderError, match="limit = 2, not none"), RunFolder(tmp_path, contents()):
        pass


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [1])
    other = {**contents(), "experiment": "ppl"}
    with pytest.raises(RunFolderError, match="experiment = longbench, not ppl"), RunFolder(tmp_path, other):
        pass


def test_settings_that_json_changes_still_match(tmp_path: Path) -> None:
    for _ in range(2):  # a tuple is a list once it was read back, an integer key a text
        with RunFolder(tmp_path, contents(layers=(1, 2), by={1: "a"})):
            pass
    assert read_json(tmp_path / RUN)["resolved"]["layers"] == [1, 2]


def test_fresh_drops_the_old_run_whatever_its_settings(tmp_path: Path) -> None:
    write(tmp_path, [1])
    (tmp_path / "scores.json").write_text("{}", encoding="utf-8")
    with RunFolder(tmp_path, contents(scale=2), fresh=True) as run:
        assert set(run.done("trec")) == set()
    assert not (tmp_path / "scores.json").exists()


def test_resume_needs_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run to resume"), RunFolder(tmp_path, contents(), must_resume=True):
        pass
    write(tmp_path, [1])
    with RunFolder(tmp_path, contents(), must_resume=True) as run:
        assert set(run.done("trec")) == {"1"}


def test_a_folder_with_other_jsonl_files_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match="was not written by this run"), RunFolder(tmp_path, contents()):
        pass


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_run_json_that_is_no_object_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught, RunFolder(tmp_path, contents()):
        pass
    assert "\n" not in str(caught.value) and RUN in str(caught.value)


# ---- several processes


def test_lines_of_several_processes_are_merged_and_of_two_with_one_id_the_first_counts(tmp_path: Path) -> None:
    with RunFolder(tmp_path, contents(), rank=0, world=2) as first:
        first.append("trec", row(2, by=0))
        with RunFolder(tmp_path, contents(), rank=1, world=2) as second:
            second.append("trec", row(1, by=1))
            second.append("trec", row(2, by=1))
        assert (tmp_path / "trec.rank1.jsonl").exists()
        assert set(first.done("trec")) == {"1", "2"}
        first.finish({"trec": ["1", "2"]})
    assert read_rows(tmp_path / "trec.jsonl") == [row(1, by=1), row(2, by=0)]
    assert not list(tmp_path.glob("*.rank*"))


# ---- the lock


HOLDER = """
import sys, time
from pathlib import Path
from e2bench.runs.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_refused_naming_the_process_and_free_once_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        refused = pytest.raises(RunFolderError, match=f"in use by process {other.pid} on this machine")
        with refused, RunFolder(tmp_path, contents()):
            pass
        assert (tmp_path / LOCK).exists()  # a refused process leaves the holder's lock alone
        with refused, RunFolder(tmp_path, contents()):
            pass
        other.kill()
    assert (tmp_path / LOCK).exists()
    write(tmp_path, [1])
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("holder", [{"host": "elsewhere", "pid": 1}, {"host": "x", "pid": 1, "boot": "another"}])
def test_the_lock_of_another_machine_holds_while_it_gives_signs_of_life(tmp_path: Path, holder: dict[str, Any]) -> None:
    (tmp_path / LOCK).write_text(json.dumps(holder), encoding="utf-8")
    with (
        pytest.raises(RunFolderError, match=f"in use by process 1 on {holder['host']}"),
        RunFolder(tmp_path, contents()),
    ):
        pass
    assert (tmp_path / LOCK).exists()
    long_ago = time.time() - STALE_S - 1
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    write(tmp_path, [1])


def test_a_container_with_another_host_name_and_our_pid_is_told_from_a_dead_one(tmp_path: Path) -> None:
    mine = {"host": "the-old-container", "pid": os.getpid(), "boot": boot_id(), "started": "before"}
    (tmp_path / LOCK).write_text(json.dumps(mine), encoding="utf-8")
    write(tmp_path, [1])  # the kernel says that nobody holds it
    assert set(merged(tmp_path, "trec")) == {"1"}


RACE = """
import sys, time
from pathlib import Path
from e2bench.errors import RunFolderError
from e2bench.runs.lock import FolderLock
folder, rounds, start = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
inside = folder / "inside"
for number in range(rounds):
    time.sleep(max(0.0, start + number * 0.02 - time.time()))
    try:
        with FolderLock(folder):
            inside.mkdir()  # fails where somebody else is inside
            time.sleep(0.004)
            inside.rmdir()
            print("in")
    except RunFolderError:
        pass
"""


def test_of_many_that_open_at_the_same_instant_one_is_inside(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "60", str(time.time() + 3)]
    commands = [[sys.executable, "-c", RACE, *arguments] for _ in range(5)]
    racers = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    said = [racer.communicate() for racer in racers]
    assert [err for _, err in said if err] == []
    assert sum(out.count("in") for out, _ in said) >= 60
    assert not (tmp_path / LOCK).exists()


def test_our_own_second_run_on_the_folder_is_refused(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path, contents()),
        pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"),
        RunFolder(tmp_path, contents()),
    ):
        pass


@pytest.mark.parametrize("torn", ["", '{"host"', "[]", '{"host": "h", "pid": "x"}', '{"pid": 0, "host": ""}'])
def test_a_torn_lock_is_taken_over(tmp_path: Path, torn: str) -> None:
    (tmp_path / LOCK).write_text(torn, encoding="utf-8")
    write(tmp_path, [1])
    assert set(merged(tmp_path, "trec")) == {"1"}


def test_fresh_drops_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "lcc.jsonl").write_text("mine\n")
    (tmp_path / "embeddings.npz").write_bytes(b"mine")
    with RunFolder(tmp_path, contents(), files={"trec"}) as folder:
        folder.append("trec", {"_id": "1"})
    with RunFolder(tmp_path, contents(scale=2), files={"trec"}, fresh=True):
        assert not (tmp_path / "trec.jsonl").exists()
    assert (tmp_path / "lcc.jsonl").read_text() == "mine\n" and (tmp_path / "embeddings.npz").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_of_somebody_else_under_a_name_of_ours_is_refused_and_kept(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "trec.jsonl").write_text("mine\n")
    refused = pytest.raises(RunFolderError, match=r"was not written by this run; choose another --out$")
    with refused, RunFolder(tmp_path, contents(), files={"trec"}, fresh=fresh):
        pass
    assert (tmp_path / "trec.jsonl").read_text() == "mine\n"


def test_no_link_is_followed_when_lines_are_written(tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    profile.write_text("alias ls='ls'\n")
    run = tmp_path / "run"
    write(run, [1])
    (run / "trec.jsonl").unlink()
    (run / "trec.jsonl").symlink_to(profile)
    with pytest.raises(RunFolderError), RunFolder(run, contents()) as folder:
        folder.append("trec", {"_id": "2"})
    assert profile.read_text() == "alias ls='ls'\n"


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trec.jsonl")
    (tmp_path / "run.json").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"):
        read_rows(tmp_path / "trec.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        read_json(tmp_path / "run.json")


def test_a_refused_run_leaves_no_lock(tmp_path: Path) -> None:
    write(tmp_path, [1])
    with pytest.raises(RunFolderError), RunFolder(tmp_path, contents(scale=2)):
        pass
    assert not (tmp_path / LOCK).exists()


# ---- disks

FULL = """
import resource, sys
from pathlib import Path
from e2bench.errors import RunFailed
from e2bench.runs.folder import RunFolder
from e2bench.runs.manifest import manifest
folder = RunFolder(Path(sys.argv[1]), manifest("longbench", settings={}, resolved={}))
with folder as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        for number in range(100):
            run.append("trec", {"_id": str(number), "pred": "x" * 90})
    except RunFailed as error:
        print(error)
        sys.exit(1)
"""


def test_a_full_disk_is_a_failure_of_one_line_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "what was finished is kept" in done.stdout and done.stdout.count("\n") == 1
    kept = len(merged(tmp_path, "trec"))
    assert kept == 8  # of 119 bytes each, in 1,000
    with RunFolder(tmp_path, manifest("longbench", settings={}, resolved={})) as run:
        assert set(run.done("trec")) == {str(n) for n in range(kept)}
        run.append("trec", {"_id": "8", "pred": "x" * 90})
    assert len(read_rows(tmp_path / "trec.jsonl")) == 9


def test_a_file_in_the_way_of_the_folder_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RunFolderError, match="--out"), RunFolder(tmp_path / "file" / "run", contents()):
        pass
    with pytest.raises(RunFolderError, match="--out"), RunFolder(tmp_path / "file", contents()):
        pass


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    target.write_text("old", encoding="utf-8")
    (tmp_path / "taken").mkdir()
    with pytest.raises((RunFailed, RunFolderError)):
        write_atomic(tmp_path / "taken", "new")  # a folder cannot be renamed over
    write_atomic(target, "new")
    assert target.read_text(encoding="utf-8") == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.json", "taken"]


def test_hashes_and_versions_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"abc")
    # SHA-256 of "abc", FIPS 180-2 appendix B.1
    want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hashes([tmp_path / "a.jsonl"]) == {"a.jsonl": want}
    assert {"e2bench", "python", "torch", "transformers"} <= environment()["versions"].keys()
