"""Served models: real sockets on the loopback, answers good and bad; `transformers serve` on the tiny model."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from conftest import byte_tokenizer

from e2bench.errors import E2BenchError, ModelError, RunFailed
from e2bench.experiments.loading import load_model
from e2bench.experiments.longbench import LongBench
from e2bench.experiments.options import Common
from e2bench.experiments.passkey import PassKey
from e2bench.experiments.run import run_experiment
from e2bench.models.endpoint import Endpoint
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.models.served import ServedModel
from e2bench.rope.windows import parse_scale


def given(**values: Any) -> Common:
    """Shared settings of texts, as the command line gives them."""
    return Common.read(values)


NAME = "tiny"


class Server(ThreadingHTTPServer):
    """Answers /models with `entries`, and each completion with the next of `answers`; the last one stays."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.entries = [{"id": NAME, "owned_by": "vllm", "max_model_len": 1024}]
        self.answers, self.bodies, self.headers = [], [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Clients here hang up in the middle of answers on purpose."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply({"object": "list", "data": self.server.entries})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append({**body, "path": self.path})
        self.server.headers.append(dict(self.headers))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self, body)

    def reply(self, value, status=200, kind="application/json", length=None, headers=()):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data) if length is None else length))
        self.send_header("connection", "close")  # said, or a client may send its next request into the closing
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Silence."""


def text_of(*pieces, finish="stop", model=NAME, prompt_tokens=None, done=b"data: [DONE]\n\n"):
    """An event stream of text pieces, as vLLM sends it."""

    def answer(handler, body):
        count = prompt_tokens or len(body.get("prompt", ""))
        events = [{"model": model, "choices": [{"text": piece, "finish_reason": None}]} for piece in pieces]
        if finish:
            events.append({"model": model, "choices": [{"text": "", "finish_reason": finish}]})
            events.append({"model": model, "choices": [], "usage": {"prompt_tokens": count}})
        lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
        handler.reply(lines + done, kind="text/event-stream; charset=utf-8")

    return answer


def status(code, message="busy", headers=()):
    return lambda handler, body: handler.reply({"error": {"message": message}}, code, headers=headers)


def raw(data, kind="application/json", **rest):
    return lambda handler, body: handler.reply(data, kind=kind, **rest)


def hang_up(handler, body):
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(monkeypatch):
    for name in ("E2BENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def connect(server, tokenizer, *answers, **options):
    """A ServedModel whose probe is answered well; `answers` are those of the prompts that follow."""
    server.answers = [text_of("a"), *(answers or (text_of(" one", " two"),))]
    endpoint = Endpoint(server.url, timeout_s=5, attempts=4, backoff_s=0.01)
    return ServedModel(endpoint, tokenizer, served=None, native=128, **options)


def ask(model, text="The pass key is", **fields):
    prompt = Prompt(model.encode(text), **{"max_new_tokens": 8, **fields}, text=text)
    (_, generation), *_ = list(model.generate([prompt]))
    return generation


def test_a_prompt_goes_out_as_ids_greedy_and_comes_back_with_its_index(server, tokenizer):
    model = connect(server, tokenizer)
    prompts = [Prompt(model.encode(text), 8, text=text) for text in ("The sky", "The grass", "The sun")]
    answers = dict(model.generate(prompts))
    assert {index: g.text for index, g in answers.items()} == dict.fromkeys(range(3), " one two")
    assert {g.finish for g in answers.values()} == {"eos"}
    sent = {tuple(body["prompt"]): body for body in server.bodies[1:]}
    assert set(sent) == {tuple(prompt.ids) for prompt in prompts}
    assert all((b["temperature"], b["max_tokens"], b["model"]) == (0, 8, NAME) for b in sent.values())
    model.endpoint.close()


def test_an_answer_is_stopped_once_its_score_is_settled(server, tokenizer):
    model = connect(server, tokenizer, text_of(" 714", "32.", " The", " grass", finish="length"))
    generation = ask(model, settled=lambda text: "." in text)
    assert (generation.text, generation.finish) == (" 71432.", "scored")
    assert ask(model).finish == "length"


def test_a_stop_token_ends_an_answer_but_not_before_its_first_word(server, tokenizer):
    model = connect(server, tokenizer, text_of("\nAnna", "\nDialogue"))
    newline = frozenset(model.encode("\n", special_tokens=False)[-1:])
    generation = ask(model, stop_ids=newline, min_new_tokens=1)
    assert (generation.text, generation.finish) == ("\nAnna", "eos")
    assert (server.bodies[-1]["stop_token_ids"], server.bodies[-1]["min_tokens"]) == (sorted(newline), 1)
    server.entries = [{"id": NAME, "owned_by": "llamacpp", "meta": {"n_ctx": 512}}]
    other = connect(server, tokenizer, text_of("\nAnna", "\nDialogue"))
    assert ask(other, stop_ids=newline, min_new_tokens=1).text == "\nAnna"
    assert "min_tokens" not in server.bodies[-1]
    assert other.context == 512


@pytest.mark.parametrize(
    "fault",
    [
        status(429, headers=[("retry-after", "0")]),
        status(503),
        hang_up,
        raw(b""),
        raw(b'{"choices": [{"te'),
        raw(b'{"choices": []}', length=500),
        text_of(" one", finish="", done=b""),
    ],
    ids=["429", "503", "hangs up", "empty", "half JSON", "half body", "half stream"],
)
def test_a_faulty_answer_is_asked_for_again(server, tokenizer, fault):
    model = connect(server, tokenizer, fault, fault, text_of(" one", " two"))
    assert ask(model).text == " one two"
    assert len(server.bodies) == 4


def test_a_silent_server_is_asked_again_after_the_time_out(server, tokenizer):
    model = connect(server, tokenizer, lambda handler, body: time.sleep(2.5), text_of(" one"))
    model.endpoint._client.timeout = httpx.Timeout(1.0)
    assert ask(model).text == " one"


def test_a_lost_server_fails_resumably_and_keeps_what_came_before(server, tokenizer):
    model = connect(server, tokenizer, text_of(" one"), status(502, "worker died"), concurrency=1)
    prompts = [Prompt(model.encode(text), 8) for text in ("The sky", "The grass", "The sun")]
    kept = []
    with pytest.raises(
        RunFailed, match=r"is lost: status 502: worker died \(4 tries\).*the same command again"
    ) as info:
        for index, _ in model.generate(prompts):
            kept.append(index)
    assert kept == [0]
    assert info.value.exit_code == 1
    assert len(server.bodies) == 1 + 1 + 4


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (raw(b"<html>Sign in</html>", kind="text/html"), ModelError, "a web page, not with JSON.*ends in /v1"),
        (raw(b"[1, 2]"), ModelError, "a JSON list, needed is an object"),
        (raw(b""), RunFailed, "lost: an empty answer"),
        (raw(b'{"choices": [{"te'), RunFailed, "lost: an answer that is not whole JSON"),
        (text_of("a", model="mistral"), ModelError, "asked for 'tiny' and answers as 'mistral'.*--served-model"),
        (status(400, "maximum context length is 96"), ModelError, "status 400.*maximum context length is 96"),
        (status(401), ModelError, "refuses access.*E2BENCH_API_KEY in the environment"),
        (raw(b"", status=307, headers=[("location", "http://there/v1")]), ModelError, "redirects to http://there/v1"),
    ],
    ids=["page", "list", "nothing", "half", "other model", "context", "key", "redirect"],
)
def test_a_wrong_answer_gives_one_clear_line(server, tokenizer, answer, error, message):
    model = connect(server, tokenizer, answer)
    with pytest.raises(error, match=message) as info:
        ask(model)
    assert "\n" not in str(info.value)


def test_a_window_beyond_the_servers_context_is_refused(server, tokenizer):
    model = connect(server, tokenizer)
    with pytest.raises(E2BenchError, match="context is 1024 tokens, the window 2048: give --window 1024"):
        model.rope.check_length(2048)
    with pytest.raises(E2BenchError, match="context is 1024"):
        model.needed_bytes(1025)
    assert model.needed_bytes(1024) == 0


def test_the_scale_is_the_servers_and_a_number_only_sets_the_window(server, tokenizer):
    model = connect(server, tokenizer)
    assert model.rule(None, None).window(None) == 1024
    assert model.rule(None, None).scaling(1024).factor == 8
    assert model.rule(parse_scale("4"), None).window(None) == 512
    for scale, method in (("auto", None), ("per-input", None), ("2,4", None), ("4", "ntk")):
        with pytest.raises(E2BenchError, match=r"cannot change a server|fixed when a server starts"):
            model.rule(parse_scale(scale), method)


def test_another_count_of_prompt_tokens_is_said_once(server, tokenizer):
    lines = []
    model = connect(server, tokenizer, text_of(" one", prompt_tokens=99), warn=lines.append)
    ask(model)
    ask(model)
    assert len(lines) == 1
    assert "counts 99 tokens" in lines[0]


def test_a_server_that_takes_only_text_gets_text_that_encodes_to_the_ids(server, tokenizer):
    server.answers = [status(400, "prompt must be a string."), text_of(" one", prompt_tokens=99)]
    endpoint = Endpoint(server.url, timeout_s=5, attempts=2, backoff_s=0.01)
    model = ServedModel(endpoint, tokenizer, served=NAME, native=128)
    assert not model.takes_ids
    wrapped = Prompt(model.encode("The sky is blue."), 8, text="<s>The sky is blue.")  # a chat template writes BOS
    cut = Prompt([*model.encode("The sky"), *model.encode("blue.", special_tokens=False)], 8, text="The sky " * 20)
    for prompt, text in ((wrapped, "The sky is blue."), (cut, "The skyblue.")):
        list(model.generate([prompt]))
        assert server.bodies[-1]["prompt"] == text


def test_the_chat_endpoint_gets_the_text_unwrapped_and_applies_its_own_template(server):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"

    def chat(handler, body):
        delta = [{"delta": {"content": "one"}, "finish_reason": None}], [{"delta": {}, "finish_reason": "stop"}]
        data = b"".join(b"data: " + json.dumps({"model": NAME, "choices": c}).encode() + b"\n\n" for c in delta)
        handler.reply(data, kind="text/event-stream")

    server.answers = [chat]
    model = ServedModel(Endpoint(server.url), tokenizer, served=NAME, native=128, api="chat")
    assert ask(model, "The sky").text == "one"
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "The sky"}]
    assert server.bodies[-1]["path"] == "/v1/chat/completions"
    assert model.tokenizer.chat_template is None


def test_a_server_without_completions_says_which_option_helps(server, tokenizer):
    server.answers = [status(404, "Not Found")]
    with pytest.raises(ModelError, match="no /completions; give --served-api chat"):
        ServedModel(Endpoint(server.url), tokenizer, served=NAME, native=128)


def test_a_model_that_the_server_does_not_have_is_refused_with_those_it_has(server, tokenizer):
    server.answers = [status(404, "The model `big` does not exist.")]
    with pytest.raises(ModelError, match=r"does not exist.*--served-model big, the server has tiny"):
        ServedModel(Endpoint(server.url), tokenizer, served="big", native=128)
    server.entries = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(E2BenchError, match=r"lists 2 models \(a, b\); choose one: --served-model"):
        ServedModel(Endpoint(server.url), tokenizer, served=None, native=128)


def test_no_server_at_all_is_one_line(tokenizer):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ModelError, match=r"no server to use at .*start it first"):
        ServedModel(Endpoint(url, backoff_s=0.01), tokenizer, served=NAME, native=128)


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(server, tokenizer, monkeypatch):
    monkeypatch.setenv("E2BENCH_API_KEY", "sk-secret-1")
    model = connect(server, tokenizer, text_of(" one"), status(400, "bad key sk-secret-1"))
    ask(model)
    assert server.headers[-1]["Authorization"] == "Bearer sk-secret-1"
    assert "secret" not in json.dumps(model.describe())
    with pytest.raises(ModelError) as info:
        ask(model)
    assert "secret" not in str(info.value)
    for url in ("http://me:sk-secret-1@host/v1", "https://host/v1?key=sk-secret-1"):
        with pytest.raises(E2BenchError, match="carries a name, a key or options") as info:
            Endpoint(url)
        assert "secret" not in str(info.value)


def test_a_key_as_it_is_mounted_loses_its_newline_and_one_that_no_header_carries_is_refused(
    server, tokenizer, monkeypatch
):
    monkeypatch.setenv("E2BENCH_API_KEY", "sk-secret-1\n")
    model = connect(server, tokenizer, text_of(" one"))
    ask(model)
    assert server.headers[-1]["Authorization"] == "Bearer sk-secret-1"
    monkeypatch.setenv("E2BENCH_API_KEY", "sk-sécret-1")
    with pytest.raises(E2BenchError, match="E2BENCH_API_KEY holds characters") as info:
        Endpoint(server.url)
    assert "cret" not in str(info.value)


def test_an_address_that_is_none_is_one_line():
    with pytest.raises(E2BenchError, match="is not an address"):
        Endpoint("http://[::1/v1")


def test_a_served_model_is_refused_where_losses_are_needed(server, tiny_folder):
    with pytest.raises(E2BenchError, match="served models are for longbench, longbench2, ruler, passkey and needle"):
        load_model(given(model=server.url, tokenizer=str(tiny_folder)))
    with pytest.raises(E2BenchError, match="needs --tokenizer"):
        load_model(given(model=server.url), needs="Generator")


# a real server


@pytest.fixture(scope="module")
def real_server(tiny_folder, tmp_path_factory):
    """`transformers serve` on the tiny model, on the loopback."""
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tiny_folder), "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail(log.read_text()[-2000:])
            try:
                httpx.get(f"{url}/health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(20)


def whole(text):
    """Without the bytes of a last character that the budget cut: a stream leaves them out, a decoder shows U+FFFD."""
    return text.rstrip("\ufffd")


def test_greedy_answers_of_a_real_server_are_those_of_the_local_model(real_server, tiny_folder, tiny_model: Model):
    common = given(model=real_server, served_model_name=str(tiny_folder), tokenizer=str(tiny_folder), concurrency=3)
    served = load_model(common, needs="Generator")
    assert served.native_window == tiny_model.native_window == 128
    texts = ["The pass key is", "The grass is green. The sky", "def add(first, second):\n", "小明把地图放在哪里？"] * 2
    prompts = [Prompt(tiny_model.encode(text), 8 + at, text=text) for at, text in enumerate(texts)]
    local = {index: (whole(g.text), g.finish) for index, g in tiny_model.generate(prompts)}
    there = {index: (whole(g.text), g.finish) for index, g in served.generate(prompts)}
    assert there == local
    assert {finish for _, finish in there.values()} <= {"eos", "length"}


def test_longbench_on_a_real_server_gives_the_predictions_of_a_local_run(real_server, tiny_folder, tmp_path):
    row = {"input": "Question: Where is it?\nType:", "context": "Question: Who?\nType: Person\n" * 40, "length": 99}
    lines = [{**row, "answers": ["Place"], "all_classes": ["Person", "Place"], "_id": str(i)} for i in range(3)]
    lines[1]["context"] += "Question: When?\nType: Date\n"
    (tmp_path / "trec.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = LongBench.read({"tasks": "trec", "data": tmp_path, "chat_template": "none"})
    at = {"tokenizer": str(tiny_folder), "served_model_name": str(tiny_folder), "model": real_server}
    run_experiment(own, given(**at, window="120", out=tmp_path / "served"))
    run_experiment(own, given(model=str(tiny_folder), scale="1", window="120", out=tmp_path / "local"))

    def predictions(folder):
        rows = [json.loads(line) for line in (tmp_path / folder / "trec.jsonl").read_text().splitlines()]
        return {row["_id"]: (whole(row["pred"]), row["kept_tokens"]) for row in rows}

    assert predictions("served") == predictions("local")
    assert len(predictions("local")) == 3
    run = json.loads((tmp_path / "served" / "run.json").read_text())
    assert (run["model"]["architecture"], run["device"]) == ("served", "server")


def test_passkey_on_a_real_server_gives_the_answers_of_a_local_run(real_server, tiny_folder, tmp_path):
    own = PassKey.read({"lengths": "320", "depths": 2, "trials": 1, "early_stop": False})
    at = {"tokenizer": str(tiny_folder), "served_model_name": str(tiny_folder), "model": real_server}
    run_experiment(own, given(**at, out=tmp_path / "served"))
    run_experiment(own, given(model=str(tiny_folder), scale="1", out=tmp_path / "local"))
    served, local = (
        [json.loads(line) for line in (tmp_path / run / "passkey.jsonl").read_text().splitlines()]
        for run in ("served", "local")
    )
    assert [whole(row["pred"]) for row in served] == [whole(row["pred"]) for row in local]
    assert [(row["tokens"], row["new_tokens"]) for row in served] == [(304, 16)] * 2


# ---- answers that are none


@pytest.mark.parametrize("finish", ["abort", "content_filter", "error"])
def test_an_answer_that_ended_otherwise_than_by_itself_stops_the_run(server, tokenizer, finish):
    model = connect(server, tokenizer, text_of(" one", finish=finish))
    with pytest.raises(ModelError, match=f"ended an answer with '{finish}'"):
        ask(model)


def test_a_server_that_cuts_prompts_without_a_word_is_stopped(server, tokenizer):
    model = connect(server, tokenizer, text_of(" one", prompt_tokens=3))
    with pytest.raises(ModelError, match=r"read 3 tokens of a prompt that has \d+: it cuts prompts"):
        ask(model, text="The pass key is hidden somewhere in a long text.")


def test_an_answer_that_is_hidden_in_another_field_is_named(server, tokenizer):
    def thinking(handler, body):
        events = [
            {"model": NAME, "choices": [{"text": "", "reasoning_content": "Let me see", "finish_reason": "stop"}]}
        ]
        events.append({"model": NAME, "choices": [], "usage": {"prompt_tokens": 99, "completion_tokens": 7}})
        lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
        handler.reply(lines + b"data: [DONE]\n\n", kind="text/event-stream")

    model = connect(server, tokenizer, thinking)
    with pytest.raises(ModelError, match=r"counted 7 tokens in an answer without text.*reasoning_content"):
        ask(model)
