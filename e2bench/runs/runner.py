"""The one loop of every experiment: work items to records, in batches, resumable, on any number of processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from e2bench.errors import RunFailed
from e2bench.models.memory import is_exhausted, release_memory
from e2bench.runs.folder import RunFolder
from e2bench.runs.items import Item, Measure, Row
from e2bench.runs.lines import row_id
from e2bench.runs.processes import Processes

PLAIN_LINE_S = 30  # without a terminal, progress is a line so often


def run(
    items: Sequence[Item],
    measure: Measure,
    folder: RunFolder,
    *,
    batch_size: Callable[[Item], int],
    processes: Processes,
    title: str,
    note: Callable[[Row], str] | None = None,
) -> None:
    """Make the record of every item that `folder` does not hold yet.

    Batches are planned over the items left, longest first, so that a batch too large for the memory is met at once; on
    out-of-memory what is left of a batch is halved and tried again. Each record is on the disk as soon as it is made.
    note: text beside the bar, from the last record (a running perplexity, say).
    Raises RunFailed when a single item does not fit the memory.
    """
    processes.barrier(f"ready/{title}")
    batches = _shared_plan(items, folder, batch_size, processes, title)
    left = [item for batch in batches for item in batch]
    began = time.monotonic()
    with _Bar(title, items, left, enabled=processes.rank == 0, note=note) as bar:
        for batch in _claimed(batches, processes, title):
            for item, row in _halving(batch, measure, folder):
                if row_id(row) != item.id:
                    raise ValueError(f"record {row_id(row)!r} was made for item {item.id!r}")
                folder.append(item.file, row if item.sample is None else {**row, "sample": item.sample})
                bar.advance(item, row)
    folder.close()  # NFS shows a file's last lines to other machines once it is closed
    processes.barrier(f"finished/{title}")
    if processes.rank == 0:
        order: dict[str, list[str]] = {}
        for item in items:
            order.setdefault(item.file, []).append(item.id)
        spent = processes.world * (time.monotonic() - began)
        folder.finish(order, tokens=sum(item.cost for item in left), seconds=spent)
    processes.barrier(f"merged/{title}")


def plan(items: Sequence[Item], batch_size: Callable[[Item], int]) -> list[list[Item]]:
    """Batches of one group and near-equal cost, the costliest first; the same plan for the same items."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    batches = []
    for members in groups.values():
        members.sort(key=lambda item: -item.cost)
        while members:
            size = max(1, batch_size(members[0]))
            batches.append(members[:size])
            members = members[size:]
    return sorted(batches, key=lambda batch: -batch[0].cost)


def _shared_plan(
    items: Sequence[Item],
    folder: RunFolder,
    batch_size: Callable[[Item], int],
    processes: Processes,
    title: str,
) -> list[list[Item]]:
    """Rank 0's plan of what `folder` does not hold yet, for all ranks.

    Each rank's own would differ: batch sizes follow the memory that is free, and a network's file system may show one
    machine less than another.
    """

    def made() -> str:
        done = {name: folder.done(name) for name in {item.file for item in items}}
        for item in items:
            if item.sample is not None and (row := done[item.file].get(item.id)) is not None:
                folder.check_sample(item.file, row, item.sample)
        left = [item for item in items if item.id not in done[item.file]]
        if left:
            folder.begin()
        at = {(item.file, item.id): index for index, item in enumerate(items)}
        return json.dumps([[at[item.file, item.id] for item in batch] for batch in plan(left, batch_size)])

    return [[items[index] for index in batch] for batch in json.loads(processes.share(f"plan/{title}", made))]


def _claimed(batches: list[list[Item]], processes: Processes, title: str) -> Iterator[list[Item]]:
    if processes.world == 1:
        yield from batches
        return
    work = processes.round(title)
    while (index := processes.claim(work)) < len(batches):
        yield batches[index]


def _halving(batch: list[Item], measure: Measure, folder: RunFolder) -> Iterator[tuple[Item, Row]]:
    """Do a batch; on out-of-memory, do what is left of it in two halves."""
    made: set[str] = set()
    try:
        for item, row in measure(batch, folder):
            made.add(item.id)
            yield item, row
        return
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        reason = " ".join(str(error).split())[:160]
    left = [item for item in batch if item.id not in made]
    release_memory()
    if len(batch) == 1 or not left:
        raise RunFailed(
            f"out of memory on {batch[0].file} {batch[0].id} alone ({reason}); use a shorter window or --dtype bfloat16"
        )
    half = (len(left) + 1) // 2
    for part in (left[:half], left[half:]):
        if part:
            yield from _halving(part, measure, folder)


class _TokensPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['rate']:,.0f} tokens/s", style="cyan")


class _Bar:
    """Done, total, tokens a second and time left on stderr; a plain line now and then where there is no terminal."""

    def __init__(
        self,
        title: str,
        items: Sequence[Item],
        left: Sequence[Item],
        *,
        enabled: bool,
        note: Callable[[Row], str] | None,
    ) -> None:
        self.title, self.note, self.enabled = title, note, enabled
        self.total, self.done = len(items), len(items) - len(left)
        self.cost, self.cost_done = sum(item.cost for item in left), 0
        self.began = self.shown = time.monotonic()
        self.console = Console(stderr=True)
        self.progress: Progress | None = None

    def __enter__(self) -> _Bar:
        if not self.enabled:
            return self
        if self.done:
            self.console.print(f"{self.title}: {self.done} of {self.total} were done before", highlight=False)
        if self.console.is_terminal and self.done < self.total:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                _TokensPerSecond(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self.task = self.progress.add_task(self.title, total=self.cost, count=self._count(), rate=0.0, note="")
            self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def _count(self) -> str:
        return f"{self.done}/{self.total}"

    def advance(self, item: Item, row: Row) -> None:
        """One more record is on the disk."""
        self.done += 1
        self.cost_done += item.cost
        if not self.enabled:
            return
        elapsed = time.monotonic() - self.began
        rate = self.cost_done / max(elapsed, 1e-9)
        note = self.note(row) if self.note else item.file
        if self.progress is not None:
            self.progress.update(self.task, completed=self.cost_done, count=self._count(), rate=rate, note=note)
        elif time.monotonic() - self.shown > PLAIN_LINE_S:
            self.shown = time.monotonic()
            remaining = (self.cost - self.cost_done) / max(rate, 1e-9)
            left = f"{remaining / 60:.0f} min" if remaining >= 90 else f"{remaining:.0f} s"
            line = f"{self.title} {self._count()}  {rate:,.0f} tokens/s  {left} left  {note}"
            self.console.print(line, highlight=False)
