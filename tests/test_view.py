"""`e2bench view`: what is served to whom, and that a page follows its runs."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from report_browser import MISSING, browser
from report_folders import longbench_run, manifest, ppl_run, prediction, write_json, write_lines

from e2bench.errors import DataError, E2BenchError
from e2bench.reporting import view
from e2bench.reporting.view import View


@pytest.fixture
def results(tmp_path: Path) -> Path:
    longbench_run(tmp_path / "results" / "run", tasks=["qasper"])
    return tmp_path / "results"


@pytest.fixture
def server(results: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A view of `results` that looks at them ten times a second."""
    monkeypatch.setattr(view, "EVERY_S", 0.1)
    listening = threading.Event()
    servers: list[ThreadingHTTPServer] = []

    def started(one: ThreadingHTTPServer) -> None:
        servers.append(one)
        listening.set()

    thread = threading.Thread(target=view.serve, args=([results], 0), kwargs={"started": started})
    thread.start()
    assert listening.wait(30)
    yield servers[0]
    servers[0].shutdown()
    thread.join(10)
    assert not thread.is_alive()


def get(server: ThreadingHTTPServer, path: str, host: str = "127.0.0.1:1") -> tuple[int, str, bytes]:
    """(status, content type or address, body), the path sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    reply = connection.getresponse()
    answer = reply.status, reply.headers.get("Location") or reply.headers.get("Content-Type", ""), reply.read()
    connection.close()
    return answer


def test_the_report_is_served_and_nothing_else(server: ThreadingHTTPServer, results: Path) -> None:
    assert get(server, "/")[:2] == (302, "/1/index.html")
    status, kind, body = get(server, "/1/index.html?x=y")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"follows the runs" in body
    assert get(server, "/1/samples/index.js")[1].startswith("text/javascript")
    assert get(server, "/1/table1.csv")[0] == 200
    for path in ("/1/../1/index.html", "/1/..%2f..%2fetc/passwd", "//etc/passwd", "/1//etc/passwd", "/2/index.html",
                 "/1/", "/1", "/run/qasper.jsonl", "/1/samples/../index.html", "/1/samples", "/%2e%2e/x"):  # fmt: skip
        assert get(server, path)[0] == 404, path
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example:1", "evil.example", "", "127.0.0.1.evil.example:1"])
def test_a_name_that_is_not_this_machines_gets_nothing(server: ThreadingHTTPServer, host: str) -> None:
    assert get(server, "/1/index.html", host)[0] == 403


@pytest.mark.skipif(MISSING, reason="chromium and chromedriver are not installed")
def test_an_open_page_follows_a_run_and_keeps_its_filters(
    server: ThreadingHTTPServer, results: Path, tmp_path: Path
) -> None:
    with browser(tmp_path / "profile") as page:
        page.visit(f"http://127.0.0.1:{server.server_port}/1/index.html#samples?by-score=50,99.99")
        page.wait("return window.samples && document.getElementById('count').textContent.startsWith('3 of 3')")
        lines = [prediction("qasper", at, f"the barn {at}") for at in range(5)]
        write_lines(results / "run" / "qasper.jsonl", lines)
        page.wait("return document.getElementById('count')?.textContent.startsWith('5 of 5')", seconds=20)
        assert page.run("return document.getElementById('by-score').value") == "50,99.99"
        assert page.console() == []


def test_nothing_changed_makes_no_new_page_and_old_ones_are_taken_away(results: Path, tmp_path: Path) -> None:
    shown = View([results], tmp_path / "scratch")
    assert shown.refresh()
    assert not shown.refresh()
    for at in range(3):
        ppl_run(results / f"ppl{at}", [(512, 1, 3.0)])
        assert shown.refresh()
    assert [bool(files) for files in shown.states.values()] == [False, True, True, True]
    assert not (tmp_path / "scratch" / "1" / "index.html").exists()
    assert shown.answer("/1/index.html")[0] == 404
    assert shown.answer("/version.js")[2] == b'e2benchLoad("version","4");\n'


def test_runs_that_have_no_line_yet_are_waited_for(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_json(results / "run" / "run.json", manifest("longbench") | {"ended": None})
    shown = View([results], tmp_path / "scratch")
    assert not shown.refresh()
    assert b"no run in" in shown.answer("/")[2]
    write_lines(results / "run" / "qasper.jsonl", [prediction("qasper", 0, "the barn")])
    assert shown.refresh()
    assert shown.answer("/")[1] == "/1/index.html"


def test_absent_folders_and_taken_ports_are_refused(results: Path, server: ThreadingHTTPServer) -> None:
    with pytest.raises(DataError, match="no results folder"):
        view.serve([results / "absent"], 0)
    with pytest.raises(E2BenchError, match="give another with --port"):
        view.serve([results], server.server_port)
