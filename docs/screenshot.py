"""Make docs/page.png, the picture of the page in the README: `python docs/screenshot.py`. Needs chromium, chromedriver.

The page is that of the committed runs of the tiny model (results/tiny), at its table of perplexities.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from e2bench.reporting import write_report

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from report_browser import browser  # noqa: E402

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_report(ROOT / "results" / "tiny", Path(folder) / "report")
        with browser(Path(folder) / "profile") as page:
            page.emulate(features=[{"name": "prefers-color-scheme", "value": "light"}])
            page.open(Path(folder) / "report" / "index.html", "#samples?by-task=passkey 8,192&by-order=up")
            page.wait("return window.samples && document.querySelectorAll('#detail .card').length > 3")
            time.sleep(0.5)  # the previews of the list
            page.screenshot(ROOT / "docs" / "page.png")
