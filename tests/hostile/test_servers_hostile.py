"""Servers that answer with anything: over real sockets of this machine, and into the parts that read answers."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hostile_cases import bounded_memory, case, hostile, little_memory, mutated, numbers, objects, texts, values
from hypothesis import strategies as st

from e2bench.errors import E2BenchError, ModelError
from e2bench.models import endpoint as endpoints
from e2bench.models.endpoint import Endpoint
from e2bench.models.loading import embedded_model
from e2bench.models.protocols import Prompt
from e2bench.models.served import ServedModel

__all__ = ["little_memory"]
COMPLETION = {"model": "tiny", "choices": [{"text": " one", "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
MODELS = {"object": "list", "data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 1024}]}


class Server(ThreadingHTTPServer):
    """Answers GET with `models`, POST with `answer`: (status, headers, body), the body as bytes or as pieces."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: tuple[int, dict[str, str], Any] = plain(MODELS)
        self.answer: tuple[int, dict[str, str], Any] = plain(COMPLETION)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on bombs."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply(*self.server.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.reply(*self.server.answer)

    def reply(self, status: int, headers: dict[str, str], body: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in [body] if isinstance(body, bytes) else body:
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def plain(value: Any, status: int = 200, kind: str = "application/json") -> tuple[int, dict[str, str], bytes]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return status, {"content-type": kind}, body


def stream(*events: Any) -> tuple[int, dict[str, str], bytes]:
    lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return plain(lines + b"data: [DONE]\n\n", kind="text/event-stream")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model())


@pytest.fixture(scope="module")
def model(server: Server, tokenizer: Any) -> ServedModel:
    endpoint = Endpoint(server.url, attempts=1, backoff_s=0.0, timeout_s=20)
    return ServedModel(endpoint, tokenizer, served="tiny", native=512, concurrency=1)


def ask(model: ServedModel) -> None:
    ((_, got),) = model.generate([Prompt(model.encode("One, two"), 8, text="One, two")])
    assert isinstance(got.text.encode("utf-8"), bytes) and len(got.ids) <= 9


choices = st.lists(objects({"text": texts, "finish_reason": st.just("stop")}), max_size=2)
events = objects(
    {
        "model": st.just("tiny"),
        "choices": choices,
        "usage": objects({"prompt_tokens": numbers, "completion_tokens": numbers}),
    }
)
bodies = st.one_of(
    events.map(plain),
    st.lists(events, min_size=1, max_size=3).map(lambda some: stream(*some)),
    mutated(json.dumps(COMPLETION).encode()).map(plain),
    mutated(stream(COMPLETION)[2]).map(lambda body: plain(body, kind="text/event-stream")),
    st.tuples(values, st.sampled_from([200, 204, 301, 400, 401, 404, 418, 429, 500, 503])).map(lambda t: plain(*t)),
    st.binary(max_size=60).map(lambda body: (200, {"content-encoding": "gzip"}, body)),
)


@hostile(700, answer=bodies)
def test_answers_of_any_kind_are_text_or_one_line(
    server: Server, model: ServedModel, tmp_path_factory: pytest.TempPathFactory, answer: Any
) -> None:
    server.answer = answer
    with case(tmp_path_factory.getbasetemp()):
        ask(model)


entries = objects({"id": st.just("tiny"), "owned_by": texts, "max_model_len": numbers, "meta": values})
lists = st.one_of(
    st.lists(entries, max_size=2).map(lambda data: plain({"data": data})),
    values.map(plain),
    values.map(lambda data: plain({"data": data})),
)


@hostile(120, models=lists)
def test_lists_of_models_of_any_kind(
    server: Server, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, models: Any
) -> None:
    server.models, server.answer = models, plain(COMPLETION)
    try:
        with case(tmp_path_factory.getbasetemp()):
            endpoint = Endpoint(server.url, attempts=1, backoff_s=0.0, timeout_s=20)
            built = ServedModel(endpoint, tokenizer, served=None, native=None, concurrency=1)
            assert built.native_window > 0
    finally:
        server.models = plain(MODELS)


def test_an_answer_without_end_is_cut_off_in_little_memory(
    server: Server, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MOST_BYTES", 8 << 20)
    block, event = b"0" * (1 << 16), b'data: {"choices": [{"text": "' + b"x" * 200 + b'"}]}\n\n'
    bomb = gzip.compress(b"0" * (256 << 20), 9)
    answers = {
        "one line": (200, {"content-type": "text/event-stream"}, (block for _ in range(10_000))),
        "one object": (200, {"content-type": "application/json"}, (block for _ in range(10_000))),
        "tokens": (200, {"content-type": "text/event-stream"}, (event for _ in range(1_000_000))),
        "gzip": (200, {"content-type": "application/json", "content-encoding": "gzip"}, bomb),
    }
    for name, answer in answers.items():
        server.answer = answer
        with bounded_memory(200 << 20), pytest.raises(ModelError, match=r"MiB|max_tokens"):
            ask(model)
        assert name


@pytest.mark.parametrize("after", ["²", "-1", "9" * 400, "soon", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_busy_server_may_name_any_time(server: Server, model: ServedModel, after: str) -> None:
    server.answer = (429, {"retry-after": after, "content-type": "application/json"}, b"{}")
    with pytest.raises(E2BenchError, match="is lost: status 429"):
        ask(model)


def test_text_of_half_characters_is_read(server: Server, model: ServedModel, tmp_path: Path) -> None:
    server.answer = plain(b'{"choices": [{"text": "a\\ud800b", "finish_reason": "stop"}]}')
    ((_, got),) = model.generate([Prompt(model.encode("One"), 8, text="One")])
    assert got.text == "a?b"
