"""Training data named on the hub: fetched once, recorded with its commit; a real server on this machine answers."""

import gzip
import hashlib
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow as pa
import pytest
from pyarrow import parquet

from e2bench import hub
from e2bench.data import beginning
from e2bench.data.fetch import Archive, cache_folder, fetch, is_verified
from e2bench.errors import DataError, E2BenchError
from e2bench.tasks import corpora
from e2bench.train.data import Source, data_hashes, documents
from e2bench.train.finetune import train
from e2bench.train.plan import make_plan
from e2bench.train.recipe import load_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINES = "".join(json.dumps({"text": f"The {n}th line says {n} times. " * 8}) + "\n" for n in range(50)).encode()
LONG = b"".join(json.dumps({"text": hashlib.sha512(b"%d" % n).hexdigest()}).encode() + b"\n" for n in range(10_000))
ARTICLES = [{"article": f"Article {n} about rain.", "abstract": f"It rains {n}."} for n in range(3)]
FILE = "hf://datasets/some/texts@v1/part/a.jsonl"
PINNED = f"hf://datasets/some/texts@{COMMIT}/part/a.jsonl"
ASKED: list[str] = []
RANGES: list[str] = []
FAIL_AT: list[int] = []  # ranges that are not answered


def as_parquet(rows):
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def packed(text):
    """Two frames, one behind the other, as parallel compressors write them."""
    return b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in (text[:700_000], text[700_000:]))


FILES = {
    "part/a.jsonl": LINES,
    "long.jsonl": LONG,
    "long.jsonl.zst": packed(LONG),
    "long.jsonl.gz": gzip.compress(LONG),
    "broken.jsonl.zst": packed(LONG)[:1000] + bytes(5000),
    "articles.parquet": as_parquet(ARTICLES),
}


class Hub(BaseHTTPRequestHandler):
    """The hub's answers about the files of one data set."""

    etag = None

    def do_HEAD(self):
        if self.path.startswith("/datasets/"):  # its client also asks about itself
            ASKED.append(self.command)
        name = self.path.removeprefix("/datasets/some/texts/resolve/").partition("/")[2]
        content = FILES.get(name) if f"/{COMMIT}/" in self.path or "/v1/" in self.path else None
        asked = self.headers.get("Range") if self.command == "GET" else None
        if content is not None and asked:
            RANGES.append(asked)
            start, stop = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            if start in FAIL_AT:
                content = None
        self.send_response(404 if content is None else 206 if asked else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            body = b""
        else:
            body = content[start : stop + 1] if asked else content
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop}/{len(content)}")
            self.send_header("ETag", f'"{self.etag or hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

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
    for record in (ASKED, RANGES, FAIL_AT):
        record.clear()
    monkeypatch.setattr(beginning, "RANGE_BYTES", 200_000)
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


def begun(name="long.jsonl.zst"):
    return Source([f"hf://datasets/some/texts@{COMMIT}/{name}"], megabytes=1)


@pytest.mark.parametrize("name", ["long.jsonl", "long.jsonl.zst", "long.jsonl.gz"])
def test_of_a_large_file_only_the_beginning_is_fetched(served, name):
    [path] = begun(name).paths()
    text = path.read_bytes()
    assert text == LONG[: LONG.rindex(b"\n", 0, 1_000_000) + 1]  # whole lines, as many as fit
    fetched, whole = 200_000 * len(RANGES), len(FILES[name])
    assert fetched < whole and RANGES[0] == "bytes=0-199999"
    about = json.loads(beginning.about_path(path).read_text())
    assert about["size"] == whole and about["file_sha256"] == hashlib.sha256(FILES[name]).hexdigest()
    assert about["read"] == fetched and about["sha256"] == hashlib.sha256(text).hexdigest()
    assert data_hashes([begun(name)]) == {f"hf://datasets/some/texts@{COMMIT}/{name}": about["sha256"]}
    assert sorted(file.suffix for file in path.parent.iterdir() if file.suffix != ".lock") == [".json", ".jsonl"]
    ASKED.clear()
    assert begun(name).paths() == [path] and not ASKED  # once


def test_a_broken_download_goes_on_where_it_stopped(served):
    FAIL_AT.append(400_000)
    with pytest.raises(DataError, match=r"zst cannot be had: .*at byte 400,000 of .*: the same command again$"):
        begun().paths()
    assert not list(cache_folder().rglob("*.jsonl"))
    FAIL_AT.clear()
    RANGES.clear()
    [path] = begun().paths()
    assert RANGES[0].startswith("bytes=400000-")
    assert path.read_bytes() == LONG[: LONG.rindex(b"\n", 0, 1_000_000) + 1]


def test_a_file_that_is_read_whole_is_held_to_the_hubs_hash(served, monkeypatch):
    source = Source([f"hf://datasets/some/texts@{COMMIT}/long.jsonl"], megabytes=5)
    monkeypatch.setattr(Hub, "etag", "0" * 64)
    with pytest.raises(DataError, match=r"is not what the hub says \(SHA-256 0000"):
        source.paths()
    monkeypatch.setattr(Hub, "etag", None)
    assert source.paths()[0].read_bytes() == LONG


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"hf://datasets/some/texts@{COMMIT}/articles.parquet", "only files in lines"),
        (f"hf://datasets/some/texts@{COMMIT}/broken.jsonl.zst", "cannot be unpacked"),
        ("hf://datasets/some/texts@v1/long.jsonl", "megabytes needs the file's commit"),
        ("here.jsonl", "megabytes is for files of the hub"),
    ],
)
def test_what_has_no_beginning_is_refused(served, name, reason):
    with pytest.raises(E2BenchError, match=reason):
        Source([name], megabytes=1).paths()


def test_articles_in_parquet_are_read(served):
    source = Source([f"hf://datasets/some/texts@{COMMIT}/articles.parquet"], layout="summary")
    assert [segments[1].text for segments in documents(source, None)] == [row["abstract"] for row in ARTICLES]


def test_a_published_file_is_held_to_its_published_hash(served, monkeypatch):
    row = Archive("texts", "some/texts", "long.jsonl", COMMIT, "1" * 64, None, "")
    monkeypatch.setitem(corpora.TRAINING, "texts", row)
    with pytest.raises(DataError, match="has not the published SHA-256"):
        Source([f"hf://datasets/some/texts@{COMMIT}/long.jsonl"]).paths()


def test_e2bench_data_fetches_the_beginning_that_a_recipe_reads(served):
    row = Archive("texts", "some/texts", "long.jsonl.zst", COMMIT, None, None, "", megabytes=1)
    path = fetch(row)
    assert not is_verified(row, path) and "nobody publishes" in row.pin
    assert begun().paths(fetch=False) == [path]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="is not what was fetched"):
        is_verified(row, path)


@pytest.mark.parametrize("name", ["llama2-7b", "llama2-13b", "smollm2"])
def test_recipes_name_the_files_that_e2bench_data_fetches(name):
    every = {f"hf://datasets/{one.repo}@{one.revision}/{one.filename}": one for one in corpora.TRAINING.values()}
    for source in load_recipe(name).data:
        for file in source.files:
            assert source.megabytes in (None, every[file].megabytes) or name == "smollm2"  # which reads less
