"""`e2bench data`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from e2bench.experiments.base import EXPERIMENTS
from e2bench.terminal import say, say_next

if TYPE_CHECKING:
    from e2bench.data.fetch import Archive


def run(name: str | None) -> None:
    """Fetch a data set and print where it is; without a name list them."""
    from e2bench.data.fetch import fetch, is_verified, size_bytes
    from e2bench.tasks.corpora import ABOUT, TRAINING, every_set, find_all

    if name is not None:
        chosen = name.lower()
        for archive in find_all(chosen):
            fetched = fetch(archive)
            print(fetched)
            say(f"{'verified' if is_verified(archive, fetched) else 'NOT verified'}: {archive.pin}")
        use = chosen if chosen in EXPERIMENTS else f"ppl --data {chosen}"
        say_next("e2bench train llama2-7b --dry-run" if chosen in TRAINING else f"e2bench {use} --model MODEL")
        return
    sets: dict[str, list[Archive]] = {}
    for archive in every_set():
        sets.setdefault(archive.part_of or archive.name, []).append(archive)
    for known, files in sets.items():
        about = ABOUT.get(known, f"{files[0].about} ({files[0].repo})")
        print(f"{known:<16} {_size([size_bytes(archive) for archive in files]):>16}  {about}")
    say_next("e2bench data NAME fetches one into the cache and prints where it is")


def _size(sizes: list[int | None]) -> str:
    """Of files together; of some of them a lower bound, of none only where it is said."""
    known = [size for size in sizes if size is not None]
    if not known:
        return "size: ask online"
    return f"{'' if len(known) == len(sizes) else 'over '}{sum(known) / 1e6:,.0f} MB"
