"""The page and its files of samples, opened in a headless Chromium: filters, links, hostile text, size and speed."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_browser import MISSING, Page, browser
from report_folders import TASKS, attention_run, longbench_run, passkey_run, ppl_run, prediction

from e2bench.errors import DataError
from e2bench.reporting import details, samples, settings, write_report
from e2bench.reporting.page import _layout
from e2bench.reporting.runs import scan
from e2bench.reporting.table import Column, Table, to_csv

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


def test_samples_hold_scores_of_the_official_metric(report: Path) -> None:
    [qasper] = [group for group in _index(report) if group[1] == "qasper"]
    second = next(column for column in qasper[5] if column[0] == 1)
    assert second[3] == [66.67] * 3  # "the barn 0" against "the barn": 2 · 1/2 · 1 / (3/2)
    assert (second[5], second[6], second[7]) == ([1, 1, 1], [9000, 9001, 9002], [3500] * 3)  # truncated, prompt, kept
    assert _texts(report, second)[0][:2] == ["the barn 0", ["a red barn", "the barn"]]


def test_the_same_sample_has_the_same_place_in_every_system(report: Path) -> None:
    [qasper] = [group for group in _index(report) if group[1] == "qasper"]
    ids, first, second = qasper[2], *(column[1] for column in qasper[5])
    assert [ids[at] for at in second] == [ids[at] for at in first[:3]]


def test_no_text_leaves_its_script_or_is_an_object(report: Path) -> None:
    """What a file of samples runs is one call with arrays of texts and numbers: no name of a property is untrusted."""

    def plain(value: Any) -> bool:
        return all(map(plain, value)) if isinstance(value, list) else not isinstance(value, dict)

    files = sorted((report.parent / "samples").iterdir())
    assert [file.name for file in files] == ["0.js", "index.js"]
    for file in files:
        text = file.read_text("utf-8")
        assert not set("<>&\u2028\u2029") & set(text)
        assert plain(_loaded(file))
    assert "window.PWNED = 2" in files[0].read_text("utf-8")


def test_a_small_report_is_one_page_that_can_be_passed_on_alone(chromium: Page, tmp_path: Path) -> None:
    longbench_run(tmp_path / "results", tasks=["qasper"])
    write_report(tmp_path / "results", tmp_path / "out")
    alone = tmp_path / "alone" / "index.html"
    alone.parent.mkdir()
    alone.write_bytes((tmp_path / "out" / "index.html").read_bytes())
    _opened(chromium, alone)
    assert chromium.run("return document.querySelectorAll('#list .item').length") > 0
    chromium.wait("return document.getElementById('detail').textContent.includes('Reference')")


def test_long_texts_and_whole_prompts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "EMBEDDED_CHARS", 900_000)  # so many the page would hold itself
    lines = [prediction("qasper", 0, "x" * 900_000), prediction("qasper", 1, "y", prompt="p" * 9000)]
    longbench_run(tmp_path / "results", tasks=["qasper"], predictions={"qasper": lines})
    write_report(tmp_path / "results", tmp_path / "out")
    page = tmp_path / "out" / "index.html"
    [[*_, [column]]] = _index(page)
    first, second = _texts(page, column)
    assert first[0] == "x" * 900_000
    assert first[2:] == ["", "Read the text 0. ", " Question: where is it? Answer:"]
    assert second[2:] == ["p" * 9000, "", ""]  # its ends are not said twice
    assert column[2] == [[0, 0, 0], [1, 0, 1]]  # a file each
    assert len(page.read_text("utf-8")) < 100_000


def test_a_report_keeps_its_samples_apart_and_takes_stale_ones_away(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    longbench_run(results / "run", tasks=["qasper"])
    for _ in range(2):
        write_report(results, out)
        (out / "samples" / "7.js").write_text("of a longer report that was killed")
        (out / "samples" / "mine.txt").write_text("kept")
    write_report(results, out)
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["0.js", "index.js", "mine.txt"]
    assert scan(results, out.parent).warnings == []
    other = tmp_path / "other"
    (other / "samples").mkdir(parents=True)
    ppl_run(other / "run", [(512, 1, 3.0)])
    with pytest.raises(DataError, match="samples exists and is not ours"):
        write_report(other, other)


def test_a_share_is_percent_for_people_and_a_share_in_files(tmp_path: Path) -> None:
    attention_run(tmp_path, (1024,))
    [table] = details.attention(scan(tmp_path))
    [row], shown = table.rows, {column.key: table.text(table.rows[0], column) for column in table.columns}
    assert (row["input_share"], shown["input_share"]) == (34 / 1024, "3.32")
    assert (row["top_heads"], shown["top_heads"]) == ("1.0 0.81, 0.1 0.40", "1.0 81%, 0.1 40%")
    assert f",{34 / 1024:.6f}," in to_csv(table) and "1.0 0.81, 0.1 0.40" in to_csv(table)


def test_settings_are_words_and_name_the_model(tmp_path: Path) -> None:
    checks = [{"check": "weights", "level": "ok", "found": "all there"}]
    for name, factor in (("one", 1), ("two", 2)):
        grid = [[512, "linear", factor], [1024, "linear", factor]]
        resolved = {"grid": grid, "model": "0f" * 32, "documents": ["ab" * 8, "cd" * 8][:factor], "scale": factor}
        more = {"checks": checks * factor, "continued": checks * factor, "work": {"seconds": factor}}
        ppl_run(tmp_path / name, [(512, factor, 3.0)], scale=factor, resolved=resolved, **more)
    [group] = settings.of_runs(scan(tmp_path))
    assert dict(group.shared) | {"model": "tiny (0f0f0f0f)", "lengths": "512, 1k"} == dict(group.shared)
    assert group.differing is not None
    differing = {column.key.removeprefix("setting.") for column in group.differing.columns}
    assert differing == {"run", "scale", "documents", "rope.factor"}
    assert [row["setting.documents"].partition(" ")[0] for row in group.differing.rows] == ["1,", "2,"]


def test_the_data_of_an_ablation_is_said_once_where_all_rows_share_it() -> None:
    columns = [Column("method", "Method"), Column("data", "Data")]
    table = Table("table4", "T", columns, [{"method": "a", "data": "x"}, {"method": "b", "data": "x"}], ["n"])
    shown, guests, notes = _layout(table)
    assert ([column.key for column in shown], guests, notes) == (
        ["method"],
        {"method": []},
        ["n", "All measured rows: x."],
    )
    table.rows[0]["data"] = "y"
    assert _layout(table)[1:] == ({"method": ["data"]}, ["n"])


def test_a_task_of_its_own_name_is_named_once(tmp_path: Path) -> None:
    passkey_run(tmp_path, 512, (512,))
    written: dict[str, str] = {}
    samples.write(scan(tmp_path), written.__setitem__)
    assert json.loads(written["samples/index.js"][len('e2benchLoad("index",') : -3])[0][1] == "passkey 512"


def test_links_out_of_the_docs_lead_to_pages_of_the_site() -> None:
    publish = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "publish.py"))
    page = SimpleNamespace(file=SimpleNamespace(src_uri="howto/x.md"))
    links = "../results.md#a", "../../results/tiny/report/figure7.png", "../../e2bench/rope", "https://x.org/a"
    moved = (
        "../results.md#a",
        "../repository/results/tiny/report/figure7.png",
        "../repository/e2bench/rope.md",
        links[3],
    )
    text = " ".join(map("[a]({})".format, (*links, "../../results/smollm2-e2")))
    want = " ".join(map("[a]({})".format, (*moved, "../repository/results/smollm2-e2/README.md")))
    assert publish["on_page_markdown"](text, page=page) == want


def test_the_docs_are_built_with_the_pages_of_committed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(__file__).parents[1] / "docs" / "publish.py"
    assert f"hooks: [docs/{file.name}]" in (file.parents[1] / "mkdocs.yml").read_text()
    publish = runpy.run_path(str(file))
    assert all((publish["ROOT"] / folder).is_dir() for folders in publish["REPORTS"].values() for folder in folders)
    ppl_run(tmp_path / "runs" / "a", [(512, 1, 2.9)])
    monkeypatch.setitem(publish["on_post_build"].__globals__, "REPORTS", {"small": [tmp_path / "runs"]})
    publish["on_post_build"](config={"site_dir": str(tmp_path / "site")})
    assert (tmp_path / "site" / "reports" / "small" / "index.html").exists()
    publish["on_startup"](command="serve", dirty=False)
    publish["on_post_build"](config={"site_dir": str(tmp_path / "served")})
    assert not (tmp_path / "served").exists()


def test_files_hold_many_samples_and_stay_small(tmp_path: Path) -> None:
    lines = [prediction("qasper", at, "word " * 4000) for at in range(60)]
    longbench_run(tmp_path / "run", tasks=["qasper"], predictions={"qasper": lines})
    written: dict[str, str] = {}
    summary = samples.write(scan(tmp_path), written.__setitem__)
    assert (summary.lines, summary.files) == (60, 3)
    assert all(len(text) < samples.FILE_CHARS + 100 for text in written.values())


def _loaded(file: Path) -> Any:
    found = re.fullmatch(r"e2benchLoad\((\d+|\"index\"),(.*)\);\n", file.read_text("utf-8"), re.S)
    assert found
    return json.loads(found[2])


def _index(report: Path) -> list[list[Any]]:
    """[experiment, task, ids, labels, finishes, columns] of each task."""
    found: list[list[Any]] = _loaded(report.parent / "samples" / "index.js")
    return found


def _texts(report: Path, column: list[Any]) -> list[list[Any]]:
    """The rows of texts of a run's lines."""
    rows = {file: _loaded(report.parent / "samples" / f"{file}.js") for file, _, _ in column[2]}
    starts = [next(s for s in reversed(column[2]) if s[2] <= at) for at in range(len(column[1]))]
    return [rows[file][row + at - first] for at, (file, row, first) in enumerate(starts)]


# --------------------------------------------------------------------------------------------------------- with browser


def test_opening_logs_nothing_and_runs_no_hostile_script(page: Page) -> None:
    assert page.console() == []
    assert page.run("return typeof window.PWNED") == "undefined"
    assert page.run("return document.querySelectorAll('img[src=x], svg, b').length") == 0


def _opened(chromium: Page, report: Path, address: str = "#samples") -> Page:
    """The page with its samples loaded."""
    chromium.visit("data:,")  # another address of the same file would not load it again
    chromium.open(report, address)
    chromium.wait("return window.samples && document.querySelector('#detail .prediction') !== null")
    return chromium


def test_hostile_samples_are_shown_as_they_are(chromium: Page, report: Path) -> None:
    page = _opened(chromium, report)
    page.type("#by-text", "PWNED")
    page.wait("return /^7 of [0-9]+ samples\\.$/.test(document.getElementById('count').textContent)")
    shown = set()
    for at in range(7):
        page.wait(f"return window.samples.chosen === {at} && window.samples.showing === window.samples.found[{at}]")
        page.wait("return document.querySelector('#detail h3').textContent.includes('qasper')")
        shown.add(page.texts("#detail .prediction")[0])
        page.type("#list", "\ue015")  # arrow down
        page.wait("return new Promise((done) => setTimeout(() => done(true), 40))")
    assert '<img src=x onerror="window.PWNED = 4">' in shown
    assert len(shown) == 7
    assert page.run("return typeof window.PWNED") == "undefined"
    assert page.run("return document.querySelectorAll('img[src=x], svg, b').length") == 0
    assert page.console() == []


def test_the_same_sample_stands_side_by_side_with_its_differences(chromium: Page, report: Path) -> None:
    page = _opened(chromium, report, "#samples?run=b&task=qasper&id=" + prediction("qasper", 1, "")["_id"])
    page.wait("return document.querySelectorAll('#detail .card').length === 2")
    assert page.texts("#detail .card h5")[0].startswith("second")
    assert page.texts("#detail .card .prediction")[0] == "the barn 1"
    assert page.run("return document.querySelector('#detail .card:nth-child(2) ins').textContent").startswith(
        "</script>"
    )
    page.click("#detail h4 input")
    assert page.texts("#detail .card .prediction")[1] == HOSTILE[1]


def test_an_address_names_a_sample_and_its_filters(chromium: Page, report: Path) -> None:
    page = _opened(chromium, report, "#samples?by-run=b&by-order=long")
    page.type("#list", "\ue015")
    address = page.run("return location.hash")
    assert "by-run=b" in address and "by-order=long" in address and "run=b" in address
    shown = page.texts("#detail h3")
    _opened(page, report, address)
    assert page.texts("#detail h3") == shown
    assert page.run("return window.samples.chosen") == 1
    assert page.texts("#count")[0].startswith("6 of")


def test_scrolling_past_the_samples_leaves_the_address_alone(chromium: Page, report: Path) -> None:
    chromium.visit("data:,")
    chromium.open(report, "#table2")
    chromium.run("document.getElementById('samples').scrollIntoView()")
    chromium.wait("return window.samples !== undefined")
    assert chromium.run("return location.hash") == "#table2"


def test_rows_are_filtered_and_the_best_is_bold(page: Page) -> None:
    page.type("#table2 .filter input", "e² 13b")
    assert page.texts("#table2 .filter output") == ["2 of 14"]
    visible = "#table2 tbody tr:not([hidden]) td.model"
    assert page.texts(visible) == ["E²-LLM-Llama2-13B-16k", "E²-LLM-Llama2-13B-32k"]
    assert page.run("return document.querySelectorAll('tr.paper td.best').length") == 0


def test_no_title_is_cut_on_a_phone(page: Page) -> None:
    page.narrow(390, 844)
    try:
        wide = page.run("return document.documentElement.scrollWidth")
        titles = "[...document.querySelectorAll('h1, h2, h3, figcaption, p')]"
        cut = page.run(f"return {titles}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)")
        assert (wide, cut) == (390, [])
        page.wait("return document.getElementById('contents').open === false")
    finally:
        page.narrow(0, 0)


def test_on_a_phone_the_source_stands_at_the_rows_name(page: Page) -> None:
    column = "return getComputedStyle(document.querySelector('#table1 td.source')).display"
    badge = "return getComputedStyle(document.querySelector('#table1 tr.measured td.key'), '::before').content"
    assert (page.run(column), page.run(badge)) == ("table-cell", "none")
    page.narrow(390, 844)
    try:
        assert (page.run(column), page.run(badge)) == ("none", '"measured"')
    finally:
        page.narrow(0, 0)


def test_all_columns_of_table_1_are_in_sight(page: Page) -> None:
    wide, room = page.run("const t = document.querySelector('#table1 .scroll'); return [t.scrollWidth, t.clientWidth]")
    assert wide <= room


def test_two_figures_of_one_kind_differ_in_the_contents(chromium: Page, tmp_path: Path) -> None:
    for name in ("first", "second"):
        attention_run(tmp_path / "results" / name, (1024,), generated=2, model=f"a model that was named {name}")
    write_report(tmp_path / "results", tmp_path / "out")
    chromium.open(tmp_path / "out" / "index.html")
    assert chromium.texts("nav a[href^='#figure6'] span") == ["Figure 6. Attention of the answer over the input"] * 2
    said = chromium.texts("nav a[href^='#figure6'] small")
    assert [text.split(",")[0] for text in said] == [f"a model that was named {name}" for name in ("first", "second")]
    cut = "return [...document.querySelectorAll('nav small')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    assert chromium.run(cut) == 0


def test_short_references_share_a_box_and_leave_the_answer_in_sight(chromium: Page, tmp_path: Path) -> None:
    lines = [prediction("qasper", 0, "pear") | {"answers": [f"word {at}" for at in range(10)]}]
    longbench_run(tmp_path / "results", tasks=["qasper"], predictions={"qasper": lines})
    write_report(tmp_path / "results", tmp_path / "out")
    page = _opened(chromium, tmp_path / "out" / "index.html")
    assert page.texts("#detail > h4")[0] == "References, 10"
    assert page.texts("#detail > pre")[0].split("\n") == [f"word {at}" for at in range(10)]


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


def test_filters_and_order_choose_samples(chromium: Page, report: Path) -> None:
    page = _opened(chromium, report)

    def choose(name: str, value: str) -> None:
        script = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; "
        page.run(script + "s.dispatchEvent(new Event('change'))", f"by-{name}", value)

    choose("run", "b")
    assert page.texts("#count")[0].startswith("6 of")
    choose("score", "50,99.99")
    assert all(50 <= float(score) < 100 for score in page.texts("#list .score"))
    choose("order", "long")
    page.wait("return document.querySelector('#detail .card .facts').textContent.includes('prompt tokens 9,002')")
    for name, value, hits in (("input", "1", 4), ("input", "0", 0), ("length", "8193,16384", 4), ("finish", "eos", 4)):
        choose(name, value)
        assert page.texts("#count")[0].startswith(f"{hits} of"), (name, value)
        choose(name, "")
    page.type("#by-text", "nothing has this")
    page.wait("return /^0 of .*\\.$/.test(document.getElementById('count').textContent)")
    assert page.texts("#detail")[0] == "No sample fits these filters."


def test_dark_mode_and_print_change_the_page(page: Page) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    page.emulate(features=[{"name": "prefers-color-scheme", "value": "light"}])
    light = page.run(background)
    page.emulate(features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run(background) != light
    drawn = "return document.querySelector('#passkey img').currentSrc"
    page.run("document.querySelector('#passkey img').loading = 'eager'")
    page.wait(f"{drawn}.endsWith('passkey-dark.png')")
    page.emulate(media="print")
    assert page.run("return getComputedStyle(document.querySelector('.browser')).display") == "none"
    page.emulate(media="")


def test_4750_samples_are_on_the_page_and_few_are_drawn(chromium: Page, tmp_path: Path) -> None:
    """benchmarks/page.py measures the time of 57,000; this many show a page that holds them, or draws them all."""
    text = "Vocabulary sized like real predictions, with references as long as a summary has. " * 8
    per_task = {task: [prediction(task, at, text + str(at)) for at in range(227)] for task in TASKS}
    for lines in per_task.values():
        for line in lines:
            line |= {"head": text[:300], "tail": text[:300], "finish": "error"}  # unscored: this test is the page's
    longbench_run(tmp_path / "results", predictions=per_task)
    write_report(tmp_path / "results", tmp_path / "out")
    assert (tmp_path / "out" / "index.html").stat().st_size < 200_000
    _opened(chromium, tmp_path / "out" / "index.html")
    assert chromium.texts("#count")[0].startswith("4,767 of")
    for at in (0, 1000, 100_000):
        chromium.run(f"""
            const list = document.getElementById('list');
            list.scrollTop = {at};
            list.dispatchEvent(new Event('scroll'));""")
        assert 0 < chromium.run("return document.querySelectorAll('#list .item').length") < 60
