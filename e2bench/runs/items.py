"""The work of a run: one item a line, and what makes lines of items."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2bench.runs.folder import RunFolder


@dataclass(frozen=True)
class Item:
    """One record to make. `cost` in tokens orders the work; only items of an equal `group` share a batch.

    sample: hash of what the record is made from, where its id does not say it; stored in the record as `sample`.
    """

    file: str
    id: str
    cost: int
    group: Hashable
    payload: Any
    sample: str | None = None


Row = Mapping[str, Any]
Measure = Callable[[Sequence[Item], "RunFolder"], Iterator[tuple[Item, Row]]]
