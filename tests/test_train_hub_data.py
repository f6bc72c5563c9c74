"""Training data named on the hub: fetched once, recorded with its commit; a real server on this machine answers."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from e2bench import hub
from e2bench.errors import DataError, E2BenchError
from e2bench.train.data import Source, data_hashes
from e2bench.train.finetune import train
from e2bench.train.plan import make_plan
from e2bench.train.recipe import load_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINES = "".join(json.dumps({"text": f"The {n}th line says {n} times. " * 8}) + "\n" for n in range(50)).encode()
FILE = "hf://datasets/some/texts@v1/part/a.jsonl"
ASKED: list[str] = []
PINNED = f"hf://datasets/some/texts@{COMMIT}/part/a.jsonl"


class Hub(BaseHTTPRequestHandler):
    """The hub's answers about one file of one data set."""

    def do_HEAD(self):
        if self.path.startswith("/datasets/"):  # its client also asks about itself
            ASKED.append(self.command)
        there = self.path in [f"/datasets/some/texts/resolve/{name}/part/a.jsonl" for name in ("v1", COMMIT)]
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(len(LINES) if there else 0))
        self.send_header("X-Repo-Commit", COMMIT)
        if not there:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", '"of-the-lines"')
        self.end_headers()
        if there and self.command == "GET":
            self.wfile.write(LINES)

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "tokens"))
    here = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    ASKED.clear()
    hub.is_online.cache_clear()
    yield
    hub.is_online.cache_clear()
    server.shutdown()
    server.server_close()


def test_a_training_fetches_its_data_and_records_the_commit(served, small_recipe, tmp_path):
    recipe = load_recipe(str(small_recipe), [f"data=[{{files: ['{FILE}']}}]", "steps=1"])
    assert "not there yet" in dict(make_plan(recipe).rows())["data"] and not ASKED  # a plan fetches nothing
    assert train(recipe, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "e2_config.json").read_text())["data"]
    assert list(stored) == [PINNED] and stored == data_hashes([Source([PINNED])])
    assert ASKED.count("GET") == 1
    assert "1 files" in dict(make_plan(recipe).rows())["data"]


def test_what_the_hub_does_not_have_is_said_in_one_line(served):
    with pytest.raises(DataError, match=r"hf://datasets/some/texts@v1/other\.jsonl cannot be had: .*404"):
        Source(["hf://datasets/some/texts@v1/other.jsonl"]).paths()


def test_without_a_network_the_command_that_fetches_it_is_named(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"hf download some/texts part/a\.jsonl --repo-type dataset --revision v1$"):
        Source([FILE]).paths(fetch=False)


@pytest.mark.parametrize("name", ["hf://some/texts/a.jsonl", "hf://datasets/some/texts", "hf://datasets/a/b/*.jsonl"])
def test_other_forms_are_refused(name):
    with pytest.raises(E2BenchError, match="write hf://datasets/OWNER/NAME@REVISION/PATH"):
        Source([name]).paths()
