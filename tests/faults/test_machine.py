"""What a machine can do to a run: full disks, folders nobody may write, memory that runs out, Ctrl-C twice.

Each run ends in one clear line, and the same command afterwards in the files of an undisturbed run.
"""

from __future__ import annotations

import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import slowed
from fault_runs import (
    Ended,
    check_same,
    data_bytes,
    failed_clearly,
    finish,
    snapshot,
    start,
    wait_for_lines,
    whole_lines,
)

from e2bench.tasks.demo import write_longbench

MIB = 1 << 20
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's, and so is what RLIMIT_DATA counts")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_longbench(tmp_path_factory.mktemp("demo"), examples=4)


@pytest.fixture(scope="module")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    finish(command(demo, folder / "run"))
    return folder / "run"


def command(demo: Path, out: Path, *more: str) -> list[object]:
    tasks = ("--tasks", "passage_count,trec", "--window", "400", "--batch-size", "1")
    return ["longbench", *tasks, "--data", demo, "--out", out, *more]


def ended_as_undisturbed(demo: Path, out: Path, whole: Path) -> None:
    """The same command once more: nothing done is done again, and the files are the undisturbed run's."""
    before = whole_lines(out)
    again = finish(command(demo, out))
    after = whole_lines(out)
    assert all(set(lines) <= set(after[name]) for name, lines in before.items())
    done = sum(map(len, before.values()))
    assert not done or f"{done} of 8 were done before" in again.said
    check_same(snapshot(out), snapshot(whole))


# ---- disks


@pytest.mark.parametrize("room", [0, 20, 1000, 3500])
def test_a_disk_that_is_full_at_any_file_ends_in_one_line_and_goes_on(
    demo: Path, whole: Path, tmp_path: Path, room: int
) -> None:
    """RLIMIT_FSIZE: 0 refuses the lock's first byte, 20 tears it, 1,000 refuses run.json, 3,500 a later line."""
    ended = start(command(demo, tmp_path / "run"), limits={resource.RLIMIT_FSIZE: room}).end()
    if ended.code:
        line = failed_clearly(ended, 1)
        assert "what was finished is kept: free some space" in line
    ended_as_undisturbed(demo, tmp_path / "run", whole)


def test_output_to_a_full_device_is_one_line(whole: Path) -> None:
    for arguments in (["score", str(whole), "--json"], ["score", str(whole)], ["models"], ["--help"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "e2bench", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 1, arguments
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
        assert done.stderr.startswith("e2bench: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_a_run_nothing(demo: Path, whole: Path, tmp_path: Path, closed: str) -> None:
    """No file of the run takes the place of a closed stream, where libraries would print into it."""
    line = shlex.join([sys.executable, "-m", "e2bench", *map(str, command(demo, tmp_path / "run"))])
    done = subprocess.run(f"{line} {closed}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    check_same(snapshot(tmp_path / "run"), snapshot(whole))


def test_a_file_where_the_folder_should_be_is_named(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "run is a file; give a folder with --out" in failed_clearly(start(command(demo, tmp_path / "run")).end(), 2)
    assert (tmp_path / "run").read_text() == "mine"


@needs_linux
def test_a_folder_that_cannot_be_written_is_one_line(demo: Path, tmp_path: Path) -> None:
    """/proc takes no folder from anyone, the superuser included."""
    for out in (Path("/proc/e2bench"), Path("/dev/null/run")):
        ended = start(command(demo, out)).end()
        assert "--out" in failed_clearly(ended, 2)


# ---- files of the run that were torn, cut or altered


def interrupted(demo: Path, out: Path) -> None:
    """Kill a run once it has made three of its eight lines."""
    run = start(command(demo, out), slowed=True)
    wait_for_lines(3, out, lambda: run.running)
    assert run.kill_after(0)


@pytest.fixture(scope="module")
def half(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("half") / "run"
    interrupted(demo, out)
    assert 3 <= sum(map(len, whole_lines(out).values())) < 8
    return out


def copied(half: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", half, tmp_path / "run"], check=True)
    return tmp_path / "run"


def test_a_torn_last_line_and_leftovers_of_half_written_files_are_cleared(
    demo: Path, half: Path, whole: Path, tmp_path: Path
) -> None:
    out = copied(half, tmp_path)
    lines = max(out.glob("*.jsonl"), key=lambda path: path.stat().st_size)
    lines.write_bytes(lines.read_bytes() + b'{"_id": "torn", "pred": "\xe4')
    (out / ".scores.json.999999.tmp").write_text('{"tasks": {"tr')  # killed between writing and renaming
    (out / ".trec.jsonl.999999.tmp").write_text('{"_id"')
    ended_as_undisturbed(demo, out, whole)


@pytest.mark.parametrize("cut", [1, 7, 300])
def test_a_result_file_cut_short_anywhere_is_filled_up_again(
    demo: Path, half: Path, whole: Path, tmp_path: Path, cut: int
) -> None:
    out = copied(half, tmp_path)
    for path in out.glob("*.jsonl"):
        path.write_bytes(path.read_bytes()[:-cut])
    ended_as_undisturbed(demo, out, whole)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("*.jsonl", b'{"_id": "x", "pred"\n', ".jsonl:1: not a JSON object"),
        ("*.jsonl", b"\0\0\0\0\n", ".jsonl:1: not a JSON object"),
        ("*.jsonl", b'{"_id": "\xff"}\n', ".jsonl:1: not UTF-8"),
        ("run.json", b'{"experiment": "longbe', "run.json is not readable JSON"),
        ("run.json", b"", "run.json is not readable JSON"),
        ("run.json", b"{}", "holds a run with experiment = none"),
        ("run.json", b'{"experiment": "longbench", "resolved": [1]}', "run.json"),
        ("run.json", b'{"experiment": "longbench", "resolved": "x"}', "run.json"),
    ],
)
def test_an_altered_file_is_named_and_nothing_is_touched(
    demo: Path, half: Path, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    out = copied(half, tmp_path)
    path = next(out.glob(name))
    path.write_bytes(content + (path.read_bytes() if name != "run.json" else b""))
    before = {file.name: file.read_bytes() for file in out.glob("*.js*")}
    line = failed_clearly(start(command(demo, out)).end(), 2)
    assert said in line
    assert {file.name: file.read_bytes() for file in out.glob("*.jsonl")} == {
        name: content for name, content in before.items() if name.endswith(".jsonl")
    }


def test_a_line_made_for_another_example_is_not_counted(demo: Path, whole: Path, tmp_path: Path) -> None:
    """A finished folder with a line too many, and one that stands twice: the run's own lines come first, once each.

    The stranger may be of an earlier call that asked for more: it stays behind them, and is in no score.
    """
    out = copied(whole, tmp_path)
    lines = (out / "trec.jsonl").read_bytes().splitlines(keepends=True)
    stranger = lines[0].replace(b'"_id": "demo-trec-0"', b'"_id": "stranger"')
    assert stranger != lines[0]
    (out / "trec.jsonl").write_bytes(b"".join([*lines, lines[0], stranger]))
    finish(command(demo, out))
    got, expected = snapshot(out), snapshot(whole)
    own, behind = got["trec.jsonl"][: len(expected["trec.jsonl"])], got["trec.jsonl"][len(expected["trec.jsonl"]) :]
    assert behind.count(b"\n") == 1 and b'"_id": "stranger"' in behind
    check_same(got | {"trec.jsonl": own}, expected)


# ---- memory


def ppl(documents: Path, out: Path) -> list[object]:
    """The longest window comes first: its activations are what needs the memory."""
    shape = ("--lengths", "64,4k", "--stride", "32", "--docs", "2", "--max-windows", "2", "--scale", "auto")
    return ["ppl", *shape, "--data", documents, "--out", out]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    texts = (
        "".join(f"Line {n} of {text}: {n * text} lamps and {n % 7} rivers. " for n in range(450)) for text in (3, 5)
    )
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    return path


@pytest.fixture(scope="module")
def measured(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    finish(ppl(documents, folder / "run"))
    return folder / "run"


@needs_linux
def test_memory_too_small_for_the_first_batch_is_one_line_and_more_of_it_ends_the_run(
    documents: Path, measured: Path, tmp_path: Path
) -> None:
    ended = start(ppl(documents, tmp_path / "run"), more_memory=80 * MIB).end()
    line = failed_clearly(ended, 1)
    assert "out of memory on ppl" in line and "window=4096" in line  # the longest comes first
    assert whole_lines(tmp_path / "run") == {}
    finish(ppl(documents, tmp_path / "run"))
    check_same(snapshot(tmp_path / "run"), snapshot(measured))


@needs_linux
def test_memory_that_runs_out_at_a_later_batch_keeps_what_was_made(
    documents: Path, measured: Path, tmp_path: Path
) -> None:
    run = start(ppl(documents, tmp_path / "run"), slowed=True)
    wait_for_lines(1, tmp_path / "run", lambda: run.running)
    resource.prlimit(run.pid, resource.RLIMIT_DATA, (data_bytes(run.pid) // 2,) * 2)
    assert "out of memory" in failed_clearly(run.end(), 1)
    kept = whole_lines(tmp_path / "run")
    assert sum(map(len, kept.values())) >= 1
    finish(ppl(documents, tmp_path / "run"))
    assert set(kept["ppl.jsonl"]) <= set(whole_lines(tmp_path / "run")["ppl.jsonl"])
    check_same(snapshot(tmp_path / "run"), snapshot(measured))


# ---- Ctrl-C


def hear_ctrl_c() -> None:
    """What a shell starts in the background ignores it, and so would the children of these tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted_twice(arguments: Sequence[object], out: Path, apart_s: float) -> Ended:
    """A process of its own, from its start to its exit: two SIGINTs once the first line is there."""
    line = [sys.executable, slowed.__file__, *map(str, arguments)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, **pipes, text=True, preexec_fn=hear_ctrl_c) as process:
        wait_for_lines(1, out, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        time.sleep(apart_s)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
    return Ended(process.returncode, said)


@pytest.mark.parametrize("apart_s", [0.0, 0.2])
def test_ctrl_c_twice_is_one_line_and_goes_on(demo: Path, whole: Path, tmp_path: Path, apart_s: float) -> None:
    ended = interrupted_twice(command(demo, tmp_path / "run"), tmp_path / "run", apart_s)
    assert "interrupted; give the same command again" in failed_clearly(ended, 130)
    assert "Exception ignored" not in ended.said
    ended_as_undisturbed(demo, tmp_path / "run", whole)
