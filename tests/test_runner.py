"""The one loop: batches, memory that runs out, runs that are killed and continued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from e2bench.errors import RunFailed
from e2bench.files import read_json, read_rows
from e2bench.runs.folder import RunFolder
from e2bench.runs.items import Item, Row
from e2bench.runs.lines import RUN, merged
from e2bench.runs.manifest import manifest
from e2bench.runs.processes import Processes
from e2bench.runs.runner import plan, run

ABSURD = 1 << 48  # float32 numbers: no machine has a pebibyte


def items(costs: Sequence[int], group: str = "g") -> list[Item]:
    """Work of one file."""
    return [Item("trec", str(n), cost, group, None) for n, cost in enumerate(costs)]


def answer(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
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

    def breaking(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        for item, row in answer(batch, folder):
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(item.id)
            yield item, row

    todo = items([5, 4, 3, 2, 1])
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, breaking, todo, size=1)
    assert seen == ["0", "1", "2"] and set(merged(tmp_path, "trec")) == {"0", "1", "2"}
    later: list[str] = []

    def watching(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        later.extend(i.id for i in batch)
        yield from answer(batch, folder)

    assert [r["_id"] for r in start(tmp_path, watching, todo, size=1)] == list("01234")
    assert later == ["3", "4"]
    assert len(start(tmp_path, watching, todo)) == 5 and later == ["3", "4"]  # a complete run does nothing


def test_a_record_of_another_item_is_a_bug_and_stops_the_run(tmp_path: Path) -> None:
    def mixed(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        yield batch[0], {"_id": "other"}

    with pytest.raises(ValueError, match="'other' was made for item '0'"):
        start(tmp_path, mixed, items([1]))


# ---- memory


def needing(limit: int, tried: list[int]) -> Any:
    """Work that fits the memory in batches of at most `limit`; torch's own allocator refuses larger ones half-way."""

    def work(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        tried.append(len(batch))
        for at, (item, row) in enumerate(answer(batch, folder)):
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

    def work(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        tried.append(len(batch))
        if len(batch) > 1:
            torch.empty(ABSURD)
        yield from answer(batch, folder)

    assert len(start(tmp_path, work, items([1] * 5), size=5)) == 5
    assert tried == [5, 3, 2, 1, 1, 1, 2, 1, 1]


def test_one_item_too_large_for_the_memory_is_a_failure_that_names_it(tmp_path: Path) -> None:
    def work(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        if batch[0].id == "1":
            torch.empty(ABSURD)
        yield from answer(batch, folder)

    with pytest.raises(RunFailed, match="out of memory on trec 1 alone") as caught:
        start(tmp_path, work, items([3, 2, 1]), size=1)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert set(merged(tmp_path, "trec")) == {"0"}  # kept, and the run can be continued
    assert len(start(tmp_path, answer, items([3, 2, 1]))) == 3


def test_other_errors_are_not_taken_for_memory(tmp_path: Path) -> None:
    def work(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        raise RuntimeError("shape mismatch")
        yield

    with pytest.raises(RuntimeError, match="shape mismatch"):
        start(tmp_path, work, items([1, 1]))
