"""The one loop: batches, memory that runs out, runs that are killed and continued."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from e2bench.errors import RunFailed
from e2bench.processes import Processes
from e2bench.records import RUN, RunFolder, manifest, merged, read_json, read_rows
from e2bench.runner import Item, Row, plan, run
from e2bench.tasks.demo import write_longbench

ABSURD = 1 << 48  # float32 numbers: no machine has a pebibyte


def items(costs: Sequence[int], group: str = "g") -> list[Item]:
    """Work of one file."""
    return [Item("trec", str(n), cost, group, None) for n, cost in enumerate(costs)]


def answer(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
    """Work that always succeeds."""
    for item in batch:
        yield item, {"_id": item.id, "batch": len(batch)}


def start(folder: Path, work: Any, todo: Sequence[Item], size: int = 4) -> list[dict[str, Any]]:
    """One run to its end; the lines of trec.jsonl."""
    with RunFolder(folder, manifest("longbench", settings={}, resolved={})) as run_folder:
        run(todo, work, run_folder, batch_size=lambda item: size, processes=Processes(), title="test")
    return read_rows(folder / "trec.jsonl")


# ---- the plan


@given(work=st.lists(st.tuples(st.integers(1, 50), st.sampled_from("abc")), max_size=40), size=st.integers(0, 7))
def test_batches_hold_every_item_once_in_one_group_the_costliest_first(work: list[tuple[int, str]], size: int) -> None:
    todo = [Item("f", str(n), cost, group, None) for n, (cost, group) in enumerate(work)]
    batches = plan(todo, lambda item: size)
    assert sorted(int(i.id) for b in batches for i in b) == list(range(len(todo)))
    for batch in batches:
        assert len(batch) <= max(1, size) and len({i.group for i in batch}) == 1
        assert [i.cost for i in batch] == sorted((i.cost for i in batch), reverse=True)
    firsts = [b[0].cost for b in batches]
    assert firsts == sorted(firsts, reverse=True)
    assert plan(todo, lambda item: size) == batches


def test_the_size_of_a_batch_follows_its_longest_item() -> None:
    batches = plan(items([100, 90, 10, 9, 8, 7]), lambda item: 200 // item.cost)
    assert [[i.cost for i in b] for b in batches] == [[100, 90], [10, 9, 8, 7]]


# ---- the loop


def test_records_end_in_the_order_of_the_items_and_the_run_is_complete(tmp_path: Path) -> None:
    assert [r["_id"] for r in start(tmp_path, answer, items([1, 9, 5, 7, 3]))] == list("01234")
    assert read_json(tmp_path / RUN)["ended"] is not None


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    seen: list[str] = []

    def breaking(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        for item, row in answer(batch):
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(item.id)
            yield item, row

    todo = items([5, 4, 3, 2, 1])
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, breaking, todo, size=1)
    assert seen == ["0", "1", "2"] and set(merged(tmp_path, "trec")) == {"0", "1", "2"}
    later: list[str] = []

    def watching(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        later.extend(i.id for i in batch)
        yield from answer(batch)

    assert [r["_id"] for r in start(tmp_path, watching, todo, size=1)] == list("01234")
    assert later == ["3", "4"]
    assert len(start(tmp_path, watching, todo)) == 5 and later == ["3", "4"]  # a complete run does nothing


def test_a_record_of_another_item_is_a_bug_and_stops_the_run(tmp_path: Path) -> None:
    def mixed(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        yield batch[0], {"_id": "other"}

    with pytest.raises(ValueError, match="'other' was made for item '0'"):
        start(tmp_path, mixed, items([1]))


# ---- memory


def needing(limit: int, tried: list[int]) -> Any:
    """Work that fits the memory in batches of at most `limit`; torch's own allocator refuses larger ones half-way."""

    def work(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        tried.append(len(batch))
        for at, (item, row) in enumerate(answer(batch)):
            if len(batch) > limit and at == len(batch) // 2:
                torch.empty(ABSURD)
            yield item, row

    return work


def test_a_batch_too_large_for_the_memory_is_halved_and_nothing_done_twice(tmp_path: Path) -> None:
    tried: list[int] = []
    lines = start(tmp_path, needing(2, tried), items([1] * 8), size=8)
    assert tried == [8, 2, 2]  # four were made before it failed; the other four in two halves
    assert [r["_id"] for r in lines] == [str(n) for n in range(8)]
    assert len((tmp_path / "trec.jsonl").read_bytes().splitlines()) == 8


def test_memory_that_runs_out_before_any_record_is_halved_down_to_one(tmp_path: Path) -> None:
    tried: list[int] = []

    def work(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        tried.append(len(batch))
        if len(batch) > 1:
            torch.empty(ABSURD)
        yield from answer(batch)

    assert len(start(tmp_path, work, items([1] * 5), size=5)) == 5
    assert tried == [5, 3, 2, 1, 1, 1, 2, 1, 1]


def test_one_item_too_large_for_the_memory_is_a_failure_that_names_it(tmp_path: Path) -> None:
    def work(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        if batch[0].id == "1":
            torch.empty(ABSURD)
        yield from answer(batch)

    with pytest.raises(RunFailed, match="out of memory on trec 1 alone") as caught:
        start(tmp_path, work, items([3, 2, 1]), size=1)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert set(merged(tmp_path, "trec")) == {"0"}  # kept, and the run can be continued
    assert len(start(tmp_path, answer, items([3, 2, 1]))) == 3


def test_other_errors_are_not_taken_for_memory(tmp_path: Path) -> None:
    def work(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        raise RuntimeError("shape mismatch")
        yield

    with pytest.raises(RuntimeError, match="shape mismatch"):
        start(tmp_path, work, items([1, 1]))


# ---- killed and continued, through the command line


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six examples of every task."""
    return write_longbench(tmp_path_factory.mktemp("demo"), examples=6)


TASKS = "samsum,lcc,multifieldqa_zh"


def arguments(model: Path, data: Path, out: Path) -> list[str]:
    """A LongBench run of 18 short prompts."""
    shared = ["--model", str(model), "--data", str(data), "--tasks", TASKS, "--out", str(out)]
    return ["longbench", *shared, "--window", "400", "--scale", "4", "--batch-size", "2"]


def lines_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every file's lines, without the time they took."""
    return {
        path.name: [{k: v for k, v in line.items() if k != "seconds"} for line in read_rows(path)]
        for path in sorted(folder.glob("*.jsonl"))
    }


def finished_lines(folder: Path) -> dict[str, set[bytes]]:
    """Whole lines by file, to the byte."""
    contents = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    return {name: set(content[: content.rfind(b"\n") + 1].splitlines()) for name, content in contents.items()}


@pytest.fixture(scope="module")
def undisturbed(tiny_folder: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end in a process of its own."""
    out = tmp_path_factory.mktemp("run") / "whole"
    command = [sys.executable, "-m", "e2bench", *arguments(tiny_folder, demo, out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return out


def test_a_killed_run_continues_to_the_files_of_an_undisturbed_one(
    tiny_folder: Path, demo: Path, undisturbed: Path, tmp_path: Path, cli: Any
) -> None:
    command = [sys.executable, "-m", "e2bench", *arguments(tiny_folder, demo, tmp_path)]

    def kept() -> int:
        return sum(map(len, finished_lines(tmp_path).values()))

    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while kept() < 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    before = finished_lines(tmp_path)
    assert 4 <= kept() < 18 and read_json(tmp_path / RUN)["ended"] is None
    assert (tmp_path / ".lock").exists()

    ended = cli(*arguments(tiny_folder, demo, tmp_path))
    assert ended.code == 0 and f"{sum(map(len, before.values()))} of 18 were done before" in ended.err
    assert lines_of(tmp_path) == lines_of(undisturbed)
    assert read_json(tmp_path / "scores.json") == read_json(undisturbed / "scores.json")
    after = finished_lines(tmp_path)
    assert all(lines <= after[name] for name, lines in before.items())  # a line made again would show other seconds


def test_a_disk_that_fills_up_ends_with_one_line_and_can_be_continued(
    tiny_folder: Path, demo: Path, undisturbed: Path, tmp_path: Path, cli: Any
) -> None:
    # room for the manifest and two lines of the longest task
    sizes = {path.name: path.stat().st_size for path in undisturbed.iterdir()}
    largest = max(size for name, size in sizes.items() if name.endswith(".jsonl"))
    assert sizes[RUN] < largest - 200, "the manifest outgrew the lines: give this test more examples"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest - 200}, {largest - 200})); "
    code = limit + "from e2bench.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments(tiny_folder, demo, tmp_path)]
    full = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert full.returncode == 1, full.stderr
    said = full.stderr.strip().splitlines()
    assert len(said) == 1 and "what was finished is kept: free some space" in said[0]
    before = finished_lines(tmp_path)
    assert before
    assert cli(*arguments(tiny_folder, demo, tmp_path)).code == 0
    assert lines_of(tmp_path) == lines_of(undisturbed)
    after = finished_lines(tmp_path)
    assert all(lines <= after[name] for name, lines in before.items())
