"""The report's page over 12 systems × 4,750 LongBench samples, generated: size, first paint, browser, filters, search.

    python benchmarks/page.py [--systems 12] [--share 1.0] [--rounds 5] [--keep FOLDER]

Needs chromium and chromedriver. Texts are made of words and have the lengths of real ones; each run folder is whole, so
that the official metrics score every line. The target is a first paint within 1 s.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import ROOT, write

from e2bench.reporting import write_report
from e2bench.tasks.longbench import LONGBENCH

sys.path.insert(0, str(ROOT / "tests"))
from report_browser import Page, browser
from report_folders import longbench_run, prediction

WORDS = ["the", "of", "barn", "window", "river", "that", "stone", "letter", "under", "paper", "answer", "seven"]


def folders(results: Path, systems: int, share: float) -> int:
    """Run folders with every task's number of samples, times `share`; the number of lines."""
    lines = 0
    for system in range(systems):
        draw = random.Random(system)

        def text(words: int, draw: random.Random = draw) -> str:
            return " ".join(draw.choices(WORDS, k=words))

        predictions = {}
        for task in LONGBENCH:
            words = task.max_new_tokens // 3 if task.max_new_tokens > 64 else 8
            made = [prediction(task.name, at, text(words)) for at in range(round(task.samples * share))]
            for line in made:
                is_text = not (line["all_classes"] or task.name.startswith("passage"))
                line |= {"answers": [text(words)] if is_text else line["answers"], "scale": system + 1}
                line |= {"pred": line["pred"] if not is_text else text(words)}
                line |= {"head": text(55), "tail": text(55), "finish": draw.choice(("eos", "length"))}
                line |= {"prompt_tokens": draw.randrange(1000, 40_000)}
            predictions[task.name] = made
        longbench_run(results / f"system-{system}", f"model-{system}", predictions=predictions, scale=system + 1)
        lines += sum(map(len, predictions.values()))
    return lines


def opened(page: Page, url: str, ready: str) -> dict[str, float]:
    """Seconds from the navigation's start to the first paint, and until `ready` is true."""
    page.visit("data:,")
    page.visit(url)
    page.wait(ready, seconds=60)
    script = """
        const paint = performance.getEntriesByName('first-contentful-paint')[0];
        return [paint.startTime / 1000, performance.now() / 1000];"""
    page.wait("return performance.getEntriesByName('first-contentful-paint').length > 0")
    paint, done = page.run(script)
    return {"first_paint": paint, "ready": done}


def filtered(page: Page) -> float:
    """Seconds to choose the samples of one task by score, and to draw them."""
    return float(
        page.run("""
            const from = performance.now();
            for (const [name, value] of [['task', 'qasper'], ['order', 'up'], ['task', ''], ['order', '']]) {
              const control = document.getElementById(`by-${name}`);
              control.value = value;
              control.dispatchEvent(new Event('change'));
            }
            document.getElementById('list').getBoundingClientRect();
            return (performance.now() - from) / 4000;""")
    )


def searched(page: Page) -> float:
    """Seconds to search all texts for words that none has."""
    began = time.perf_counter()
    page.run("document.getElementById('by-text').value = 'no such words'; samples.filter()")
    page.wait("return /^0 of .*[.]$/.test(document.getElementById('count').textContent)", seconds=300)
    return time.perf_counter() - began


def main() -> None:
    """Generate, report, open, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=int, default=12)
    parser.add_argument("--share", type=float, default=1.0, help="of each task's samples")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="put the generated runs and the report here")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = given.keep or Path(folder)
        lines = folders(root / "runs", given.systems, given.share)
        began = time.perf_counter()
        write_report(root / "runs", root / "report")
        result: dict[str, Any] = {"lines": lines, "report_seconds": time.perf_counter() - began}
        files = [path for path in (root / "report" / "samples").iterdir() if path.name != "index.js"]
        result["bytes"] = {
            "index.html": (root / "report" / "index.html").stat().st_size,
            "samples/index.js": (root / "report" / "samples" / "index.js").stat().st_size,
            "samples": sum(path.stat().st_size for path in files),
            "largest": max(path.stat().st_size for path in files),
        }
        url = (root / "report" / "index.html").resolve().as_uri()
        with browser(Path(folder) / "profile") as page:
            top = [opened(page, url, "return document.readyState === 'complete'") for _ in range(given.rounds)]
            shown = "return window.samples && document.querySelector('#detail .prediction') !== null"
            deep = [opened(page, f"{url}#samples", shown) for _ in range(given.rounds)]
            result["seconds"] = {
                "first_paint": [one["first_paint"] for one in top],
                "browser_ready": [one["ready"] for one in deep],
                "filter": [filtered(page) for _ in range(given.rounds)],
                "search": [searched(page)],
            }
    medians = {name: round(statistics.median(values), 3) for name, values in result["seconds"].items()}
    print(f"{lines:,} samples, report in {result['report_seconds']:.0f} s, {result['bytes']}")
    print(f"median seconds: {medians}")
    write("page", result, given.out)


if __name__ == "__main__":
    main()
