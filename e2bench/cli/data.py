"""`e2bench data`."""

from __future__ import annotations

from e2bench.experiments.base import EXPERIMENTS
from e2bench.terminal import say


def run(name: str | None) -> None:
    """Fetch a data set and print where it is; without a name list them."""
    from e2bench.data.fetch import fetch, fetch_beside, size_bytes
    from e2bench.tasks.corpora import DATASETS, find

    if name is not None:
        archive = find(name.lower())
        print(fetch(archive))
        if archive.beside:
            print(fetch_beside(archive))
        reader = archive.name if archive.name in EXPERIMENTS else f"ppl --data {archive.name}"
        say(f"next: e2bench {reader} --model MODEL")
        return
    for archive in DATASETS.values():
        size = size_bytes(archive)
        shown = "size: ask online" if size is None else f"{size / 1e6:,.0f} MB"
        print(f"{archive.name:<12} {shown:>16}  {archive.about} ({archive.repo})")
    say("next: e2bench data NAME fetches one into the cache and prints where it is")
