"""The page, opened in a headless Chromium: sorting, filtering, hostile predictions, size and speed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_browser import MISSING, Page, browser
from report_folders import TASKS, longbench_run, passkey_run, ppl_run, prediction

from e2bench.reporting import examples, write_report
from e2bench.reporting.runs import scan

HOSTILE = [
    "<script>window.PWNED = 1</script>",
    "</script><script>window.PWNED = 2</script>",
    "<!--<script>window.PWNED = 3",
    '<img src=x onerror="window.PWNED = 4">',
    "{{ 7 * 7 }}{% raw %}<b>bold</b>",
    "javascript:window.PWNED = 5",
    "\u2028window.PWNED = 6\u2029\x00\x1b[31m\ud800",
    '"]}</textarea></title></style><svg onload=window.PWNED=7>',
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with hostile predictions, hostile names and two models."""
    results = tmp_path_factory.mktemp("results")
    lines = [prediction("qasper", at, text) for at, text in enumerate(HOSTILE)]
    for line in lines:
        line |= {"answers": [line["pred"]], "head": line["pred"], "tail": line["pred"]}
    hostile = '<img src=x onerror="window.PWNED = 8">'
    longbench_run(results / "a", model=hostile, tasks=["qasper", "lcc"], predictions={"qasper": lines})
    longbench_run(results / "b", model="second", tasks=["qasper", "trec"], seed=1)
    ppl_run(results / "c", [(512, 1, 2.9), (1024, 2, 2.7)], scale="auto", model=hostile)
    passkey_run(results / "d", 512, (512, 1024))
    (results / "<b onmouseover=window.PWNED=9>.txt").write_text("x")
    out = tmp_path_factory.mktemp("out") / "report"
    write_report(results, out)
    return out / "index.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if MISSING:
        pytest.skip("chromium and chromedriver are not installed")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium: Page, report: Path) -> Page:
    chromium.open(report)
    chromium.console()
    return chromium


# ------------------------------------------------------------------------------------------------------ without browser


def test_hostile_text_is_embedded_but_never_as_markup(report: Path) -> None:
    html = report.read_text("utf-8")
    assert "window.PWNED" in html
    assert "<script>window.PWNED" not in html
    assert "<img src=x" not in html
    assert "<b onmouseover" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert "\u2028" not in html


def test_the_page_names_no_other_place(report: Path) -> None:
    """Self-contained: pictures are embedded, links lead to files of the same folder."""
    html = report.read_text("utf-8")
    markup = html[: html.index('<script type="application/json"')]
    linked = re.findall(r'(?:src|href)="([^"]*)"', markup)
    assert linked
    for target in linked:
        assert target.startswith(("data:", "#")) or (report.parent / target).exists(), target


def test_the_policy_lets_only_the_known_script_run(report: Path) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', report.read_text("utf-8"))
    assert policy
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1]


def test_examples_hold_scores_of_the_official_metric(report: Path) -> None:
    rows = _embedded(report)
    of_second = [row for row in rows if row["run"] == 1 and row["task"] == 1]
    assert [row["score"] for row in of_second] == [66.67] * 3  # "the barn 0" against "the barn": 2 · 1/2 · 1 / (3/2)
    assert of_second[0]["references"] == ["a red barn", "the barn"]
    assert of_second[0]["kept_tokens"] == 3500


def test_long_texts_are_cut_and_the_page_says_so(tmp_path: Path) -> None:
    line = prediction("qasper", 0, "x" * 9000)
    longbench_run(tmp_path / "results", tasks=["qasper"], predictions={"qasper": [line]})
    write_report(tmp_path / "results", tmp_path / "out")
    html = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "x" * 4001 not in html
    assert "[5,000 more characters]" in html
    assert "1 examples have texts of more than 4,000 characters" in html


def test_a_page_too_small_for_all_examples_keeps_an_even_share(tmp_path: Path) -> None:
    lines = [prediction("qasper", at, "word " * 100) for at in range(40)]
    longbench_run(tmp_path / "run", tasks=["qasper"], predictions={"qasper": lines})
    gathered = examples.collect(scan(tmp_path), page_chars=8000)
    assert gathered.limit == 250
    assert 0 < len(gathered.rows) < 40
    assert len(gathered.rows) + gathered.left_out == 40


def _embedded(report: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.read_text("utf-8"), re.S)
    assert found
    data = json.loads(found[1])
    return [dict(zip(data["fields"], row, strict=True)) for row in data["rows"]]


# --------------------------------------------------------------------------------------------------------- with browser


def test_opening_logs_nothing_and_runs_no_hostile_script(page: Page) -> None:
    assert page.console() == []
    assert page.run("return typeof window.PWNED") == "undefined"
    assert page.run("return document.querySelectorAll('img[src=x], svg, b').length") == 0


def test_hostile_examples_are_shown_as_they_are(page: Page) -> None:
    page.type("#by-text", "PWNED")
    page.wait("return document.getElementById('count').textContent.startsWith('7 of')")
    shown = set()
    for _ in range(7):
        shown.add(page.texts("#detail .prediction")[0])
        page.type("#list", "\ue015")  # arrow down
    assert '<img src=x onerror="window.PWNED = 4">' in shown
    assert page.run("return typeof window.PWNED") == "undefined"
    assert page.console() == []


def test_a_heading_sorts_up_then_down_then_back(page: Page) -> None:
    def cells() -> list[str]:
        return page.texts("#table2 tbody tr td:nth-child(7)")  # SAMSum, of the paper's rows alone

    button = "#table2 thead th:nth-child(7) button"
    as_made = cells()
    page.click(button)
    numbers = [float(cell) for cell in cells() if cell]
    assert numbers == sorted(numbers)
    assert cells()[-1] == ""  # empty cells stay last
    page.type(button, "\ue007")  # enter: the same by keyboard
    numbers = [float(cell) for cell in cells() if cell]
    assert numbers == sorted(numbers, reverse=True)
    assert cells()[-1] == ""
    page.click(button)
    assert cells() == as_made


def test_filters_and_order_choose_examples(page: Page) -> None:
    page.run("const s = document.getElementById('by-run'); s.value = 1; s.dispatchEvent(new Event('change'))")
    assert page.texts("#count")[0].startswith("6 of")
    page.run(
        "const s = document.getElementById('by-score'); s.value = '50,99.99'; s.dispatchEvent(new Event('change'))"
    )
    assert all(50 <= float(score) < 100 for score in page.texts("#list .score"))
    page.run("const s = document.getElementById('by-order'); s.value = 'long'; s.dispatchEvent(new Event('change'))")
    assert page.texts("#detail .facts")[0].find("prompt tokens 9002") > 0
    page.type("#by-text", "nothing has this")
    page.wait("return document.getElementById('count').textContent.startsWith('0 of')")
    assert page.texts("#detail")[0] == "No example fits these filters."


def test_dark_mode_and_print_change_the_page(page: Page) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    page.emulate(features=[{"name": "prefers-color-scheme", "value": "light"}])
    light = page.run(background)
    page.emulate(features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run(background) != light
    page.emulate(media="print")
    assert page.run("return getComputedStyle(document.querySelector('.browser')).display") == "none"
    page.emulate(media="")


def test_4750_predictions_open_and_scroll_fast(chromium: Page, tmp_path: Path) -> None:
    text = "Vocabulary sized like real predictions, with references as long as a summary has. " * 8
    per_task = {task: [prediction(task, at, text + str(at)) for at in range(227)] for task in TASKS}
    for lines in per_task.values():
        for line in lines:
            line |= {"head": text[:300], "tail": text[:300], "finish": "error"}  # unscored: this test is the page's
    longbench_run(tmp_path / "results", predictions=per_task)
    write_report(tmp_path / "results", tmp_path / "out")
    seconds = []
    while len(seconds) < 5 and not (seconds and min(seconds) < 2.0):  # other work on this machine is no fault of ours
        started = time.monotonic()
        chromium.open(tmp_path / "out" / "index.html")
        chromium.wait("return document.querySelectorAll('#list .item').length > 0", seconds=20)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 2.0
    assert chromium.texts("#count")[0].startswith("4,767 of")
    assert chromium.run("return document.querySelectorAll('#list .item').length") < 60
    slowest = chromium.run("""
        const list = document.getElementById('list');
        let slowest = 0;
        for (let at = 0; at < 200; at++) {
          const from = performance.now();
          list.scrollTop = at * 1000;
          list.dispatchEvent(new Event('scroll'));
          list.getBoundingClientRect();
          slowest = Math.max(slowest, performance.now() - from);
        }
        return slowest;""")
    assert slowest < 100  # milliseconds, on a loaded machine; about 2 are usual
