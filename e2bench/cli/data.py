"""`e2bench data`."""

from __future__ import annotations

from e2bench.experiments.base import EXPERIMENTS
from e2bench.terminal import say


def run(name: str | None) -> None:
    """Fetch a data set and print where it is; without a name list them."""
    from e2bench.data.fetch import fetch, size_bytes
    from e2bench.tasks.corpora import every_set, find_all

    if name is not None:
        chosen = name.lower()
        for archive in find_all(chosen):
            print(fetch(archive))
        say(f"next: e2bench {chosen if chosen in EXPERIMENTS else f'ppl --data {chosen}'} --model MODEL")
        return
    for archive in every_set():
        size = size_bytes(archive)
        shown = "size: ask online" if size is None else f"{size / 1e6:,.0f} MB"
        print(f"{archive.part_of or archive.name:<12} {shown:>16}  {archive.about} ({archive.repo})")
    say("next: e2bench data NAME fetches one into the cache and prints where it is")
