"""Where a run's data comes from, as run.json records it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PUBLIC, DEMO, OWN, HUB, GENERATED = "public", "demo", "own", "hub", "generated"


@dataclass(frozen=True)
class DataSource:
    """The source of a run's data.

    kind: `public` (a published data set), `demo` (comes with e2bench), `own` (a file or folder that the user named),
        `hub` (a data set of that name on the hub), `generated` (made by the experiment itself).
    name: of the data set, or the file's or folder's last component.
    verified: whether every file has the hash of the published one.
    """

    kind: str
    name: str = ""
    verified: bool = False

    def as_json(self) -> dict[str, Any]:
        """`data_source` of run.json."""
        return asdict(self)
