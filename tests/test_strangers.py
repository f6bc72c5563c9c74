"""What a stranger's files and servers can do: limits of inputs, claims that are not so, keys, one hostile line."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_folders
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from e2bench import environment, files
from e2bench.cli import score as score_command
from e2bench.confined import Beyond, Confined
from e2bench.data import corpus
from e2bench.data.corpus import Document, choose_documents, encode_beginning, read_documents
from e2bench.errors import DataError, E2BenchError, ModelError, RunFailed
from e2bench.experiments.stored import score_folder
from e2bench.models import claims
from e2bench.models.endpoint import Endpoint, NoAnswer
from e2bench.models.loading import ModelSpec, embedded_model
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.models.secrets import Secret, is_loopback, place_of
from e2bench.models.served import ServedModel
from e2bench.prompts.task import read_examples
from e2bench.prompts.templates import rendered
from e2bench.reporting import samples, write_report
from e2bench.reporting.figures import Series, canvas, draw_lines
from e2bench.reporting.runs import scan
from e2bench.reporting.table import latex_text
from e2bench.runs.lines import merged
from e2bench.runs.processes import Processes
from e2bench.scoring import statistics
from e2bench.tasks.longbench import BY_NAME

KEY = "sk-Zq81/+kd03=Mvx7wLh2"

# ---- servers and keys


class Server(ThreadingHTTPServer):
    """Answers the probe well, and every further request with `answer`(handler)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler], None] = lambda handler: handler.reply(choice(" one"))
        self.models: list[dict[str, Any]] = [{"id": "tiny", "max_model_len": 1024}]
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply({"data": self.server.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.reply(choice("a")) if body["max_tokens"] == 1 else self.server.answer(self)

    def reply(self, value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("content-type", "application/json"), ("content-length", str(len(data))), *headers):
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def drip(self, first: bytes, again: bytes) -> None:
        """Send something every 50 ms until nobody listens."""
        self.wfile.write(first)
        while True:
            self.wfile.write(again)
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def choice(text: str, finish: Any = "stop", **rest: Any) -> dict[str, Any]:
    return {"model": "tiny", "choices": [{"index": 0, "text": text, "finish_reason": finish, **rest}]}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("E2BENCH_API_KEY", KEY)
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def ask(server: Server, tokenizer: Any, answer: Any, budget: int = 8, deadline_s: float = 30.0) -> Any:
    server.answer = answer if callable(answer) else lambda handler: handler.reply(answer)
    endpoint = Endpoint(server.url, attempts=2, backoff_s=0.0, timeout_s=20, deadline_s=deadline_s)
    model = ServedModel(endpoint, tokenizer, served="tiny", native=512, concurrency=1)
    ((_, got),) = model.generate([Prompt(model.encode("One, two"), budget, text="One, two")])
    return got


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            {"choices": [choice("a")["choices"][0], {"index": 1, "text": "b", "finish_reason": "stop"}]},
            "several choices",
        ),
        ({"choices": [{"index": 3, "text": "b", "finish_reason": "stop"}]}, "several choices"),
        (choice(" a", {"x": "y" * 100_000}), "a finish_reason that is a dict"),
        (choice([" a"]), "another form than OpenAI's"),
    ],
)
def test_an_answer_of_another_form_is_refused(server: Server, tokenizer: Any, answer: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as info:
        ask(server, tokenizer, answer)
    assert len(str(info.value)) < 500


def test_text_behind_the_end_of_an_answer_is_refused(server: Server, tokenizer: Any) -> None:
    events = b"".join(b"data: " + json.dumps(choice(t, f)).encode() + b"\n\n" for t, f in (("a", "stop"), ("b", None)))

    head = b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    with pytest.raises(ModelError, match="text behind the end"):
        ask(server, tokenizer, lambda handler: handler.wfile.write(head + events))


@pytest.mark.parametrize("finish", ["abort", "content_filter", "error", "z" * 100_000])
def test_an_end_that_is_no_answer_fails_the_run_with_exit_1(server: Server, tokenizer: Any, finish: str) -> None:
    with pytest.raises(NoAnswer, match="is no answer") as info:
        ask(server, tokenizer, choice(" Pa", finish))
    assert info.value.exit_code == 1 and len(str(info.value)) < 600


def test_tokens_are_counted_here_whatever_the_server_says(server: Server, tokenizer: Any) -> None:
    lie = {"prompt_tokens": 99, "completion_tokens": 1}
    got = ask(server, tokenizer, choice(" one two three", "length") | {"usage": lie})
    assert len(got.ids) == len(tokenizer(" one two three", add_special_tokens=False)["input_ids"]) > 1
    with pytest.raises(NoAnswer, match=r"answers with \d+ tokens where 8 were asked for"):
        ask(server, tokenizer, choice(" word" * 40, "length") | {"usage": lie})
    halves = ask(server, tokenizer, choice("\N{REPLACEMENT CHARACTER}" * 8, "length"))  # three tokens each, sent as one
    assert len(halves.ids) == 8


@pytest.mark.parametrize(
    "begin",
    [
        b"",  # not even the headers come to an end
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n",
    ],
    ids=["headers", "stream", "object"],
)
def test_drip_feeding_meets_an_overall_deadline(server: Server, tokenizer: Any, begin: bytes) -> None:
    again = b": alive\n\n" if begin else b"x-drip: 1\r\n"
    first = begin or b"HTTP/1.1 200 OK\r\n"
    started = time.monotonic()
    with pytest.raises(RunFailed, match=r"did not complete an answer in 1 s"):
        ask(server, tokenizer, lambda handler: handler.drip(first, again), deadline_s=1.0)
    assert time.monotonic() - started < 20


FORMS = {
    "plain": KEY,
    "cut short": KEY[:14],
    "its end": KEY[9:],
    "as a URL has it": KEY.replace("/", "%2F").replace("+", "%2b").replace("=", "%3D"),
    "every letter escaped": "".join(f"%{ord(c):02X}" for c in KEY),
    "as JSON has it": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "as HTML has it": "".join(f"&#{ord(c)};" for c in KEY),
    "base 64": base64.b64encode(KEY.encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_no_message_shows_the_key(server: Server, tokenizer: Any, form: str) -> None:
    said = FORMS[form]
    bodies: list[Any] = [
        lambda h: h.reply({"error": {"message": f"{'x' * 190} {said}"}}, 400),
        lambda h: h.reply({"error": f"bad key {said}"}, 400),
        lambda h: h.reply(b"", 307, (("location", f"http://x:{said}@evil.example/{said}?k={said}"),)),
        lambda h: h.reply(choice("a") | {"model": said}),
        lambda h: h.reply(choice("a", finish=said)),
        lambda h: h.reply(said.encode()),
        lambda h: h.reply({"error": said}, 503),
    ]
    for body in bodies:
        with pytest.raises(E2BenchError) as info:
            ask(server, tokenizer, body)
        text = str(info.value)
        assert not [KEY[at : at + 8] for at in range(len(KEY) - 7) if KEY[at : at + 8] in text], text
        assert said not in text


def test_a_key_that_comes_back_in_an_answer_is_not_stored(server: Server, tokenizer: Any) -> None:
    for said in FORMS.values():
        with pytest.raises(NoAnswer, match="gives back the key"):
            ask(server, tokenizer, choice(f" Bearer {said}"), budget=900)
    server.models = [{"id": f"m-{KEY}", "max_model_len": 64}]
    with pytest.raises(E2BenchError, match="cannot be stored"):
        ServedModel(Endpoint(server.url), tokenizer, served=None, native=None)


def test_a_placeholder_is_no_key() -> None:
    assert not Secret("EMPTY").is_in("EMPTY") and not Secret(None).is_in("any text") and not Secret(None)


def test_a_key_goes_over_http_to_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2BENCH_API_KEY", KEY)
    for url in ("http://10.0.0.1/v1", "http://localhost.evil.example/v1", "http://127.0.0.1.evil.example/v1"):
        with pytest.raises(E2BenchError, match=r"over plain http.*--insecure"):
            Endpoint(url)
        Endpoint(url, insecure=True).close()
    for url in ("http://127.0.0.5:1/v1", "http://[::1]:1/v1", "http://localhost/v1", "https://10.0.0.1/v1"):
        Endpoint(url).close()
    monkeypatch.delenv("E2BENCH_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Endpoint("http://10.0.0.1/v1").close()
    assert not is_loopback("") and place_of("file:///etc/passwd") == "elsewhere" == place_of("//[")


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", "ftp://127.0.0.1:9"), ("ALL_PROXY", "gopher://127.0.0.1:9"), ("SSL_CERT_FILE", "/nowhere/ca.pem")],
)
def test_proxies_and_certificates_that_cannot_be_used_are_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(E2BenchError, match=r"as the environment says.*SSL_CERT_FILE"):
        Endpoint("https://host.example/v1")


# ---- limits of inputs


def test_bootstraps_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values, weights = np.random.default_rng(1).random((2, 203))
    picks = np.random.default_rng(0).integers(0, 203, (statistics.RESAMPLES, 203))
    means = np.percentile(values[picks].mean(axis=1), [2.5, 97.5]).tolist()
    ratios = np.percentile(values[picks].sum(axis=1) / weights[picks].sum(axis=1), [2.5, 97.5]).tolist()
    for picked in (1, 203, 1000, 1 << 20):
        monkeypatch.setattr(statistics, "PICKED", picked)
        assert statistics.interval(values.tolist()) == means
        assert statistics.ratio_interval(values, weights) == ratios


def test_a_parquet_file_of_one_text_a_million_times_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array(["x" * 30_000]))
    pq.write_table(pa.table({"text": text}), tmp_path / "x.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 10_000  # and 30 GB as text
    with pytest.raises(DataError, match="unpacks to more than 64 MiB"):
        for _ in read_documents(tmp_path / "x.parquet"):
            pass
    pq.write_table(pa.table({"text": ["one text"] * 300}), tmp_path / "good.parquet")
    assert len(list(read_documents(tmp_path / "good.parquet"))) == 300
    monkeypatch.setattr(corpus, "FREE_BYTES", 1000)
    pq.write_table(
        pa.table({"text": ["y" * 100_000]}), tmp_path / "long.parquet", compression="zstd", use_dictionary=False
    )
    with pytest.raises(DataError, match="more than text can"):
        next(read_documents(tmp_path / "long.parquet"))


def test_a_gzip_of_many_small_lines_has_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "FREE_BYTES", 100_000)
    with gzip.open(tmp_path / "x.jsonl.gz", "wb") as file:
        file.write(b'{"text": "one two three"}\n' * 20_000)
    with pytest.raises(DataError, match="more than text can"):
        for _ in read_documents(tmp_path / "x.jsonl.gz"):
            pass


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(files, "MOST_LINE_BYTES", 1000)
    monkeypatch.setattr(corpus, "MOST_LINE_BYTES", 1000)
    path = tmp_path / f"trec.{suffix}"
    path.write_bytes(b'{"text": "' + b"x" * 2000)
    with pytest.raises(DataError, match="more than"):
        list(read_documents(path))
    if suffix == "jsonl":
        with pytest.raises(DataError, match="a line of more than"):
            read_examples(tmp_path, BY_NAME["trec"])
        with pytest.raises(DataError, match="a line of more than"):
            files.read_rows(path)


DEEP = {
    "list": "[" * 200_000 + "]" * 200_000,
    "object": '{"a":' * 500 + "1" + "}" * 500,
    "just below": "[" * 150 + "]" * 150,
}


@pytest.mark.parametrize("deep", DEEP)
def test_brackets_inside_brackets_have_a_limit(tmp_path: Path, deep: str) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"text": "a", "meta": {DEEP[deep]}}}\n')
    (tmp_path / "run.json").write_text(f'{{"a": {DEEP[deep]}}}')
    for read in (lambda: list(read_documents(tmp_path / "x.jsonl")), lambda: files.read_json(tmp_path / "run.json")):
        with pytest.raises(DataError, match=r"deep|recursion") as info:
            read()
        assert len(str(info.value)) < 400


def test_many_tiny_values_are_refused_before_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_VALUES", 1000)
    with pytest.raises(DataError, match="brackets; no such thing is read"):
        files.parse_json("[" + "[]," * 2000 + "0]", "x")
    assert files.parse_json('["' + "," * 900 + '"]', "x") == ["," * 900]


def test_the_lines_of_a_run_are_limited_over_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(4):
        lines = "".join(json.dumps({"_id": f"{rank}-{n}"}) + "\n" for n in range(10))
        (tmp_path / f"trec.rank{rank}.jsonl").write_text(lines)
    assert len(merged(tmp_path, "trec")) == 40
    made = files.Limits

    monkeypatch.setattr("e2bench.runs.lines.Limits", lambda: made(rows=35))
    with pytest.raises(DataError, match=r"rank3\.jsonl:6: the lines up to here"):
        merged(tmp_path, "trec")
    monkeypatch.setattr("e2bench.runs.lines.MOST_PARTS", 3)
    with pytest.raises(DataError, match="more than 3 files"):
        merged(tmp_path, "trec")


SENTENCES = st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=40)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(words=SENTENCES, tokens=st.integers(2, 80), blank=st.sampled_from([" ", "\n", "", "  "]))
def test_the_beginning_of_a_long_text_has_the_ids_of_the_whole(
    tokenizer: Any, words: list[str], tokens: int, blank: str
) -> None:
    text = (blank.join(words) + " ") * 60

    def encode(part: str) -> list[int]:
        return list(tokenizer(part, verbose=False)["input_ids"])

    whole = encode(text)
    got = encode_beginning(Document(text, "x"), encode, tokens)
    assert got[:tokens] == whole[:tokens] and (len(got) >= tokens or got == whole)


def test_no_more_of_a_document_is_tokenized_than_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def encode(text: str) -> list[int]:
        asked.append(len(text))
        return list(range(len(text) // 4))

    monkeypatch.setattr(corpus, "MOST_TEXT_BYTES", 50_000)
    long = Document("word " * 40_000, "x:1")
    (chosen,) = choose_documents(iter([long]), encode, min_tokens=512, docs=1, seed=0, used=512)
    assert max(asked) < 5_000 and len(chosen.ids) >= 512
    with pytest.raises(DataError, match="--doc-tokens"):
        choose_documents(iter([long]), encode, min_tokens=512, docs=1, seed=0)


# ---- programs in a process of their own


def test_a_confined_function_answers_fails_and_starts_again() -> None:
    child = Confined("e2bench.models.claims:match_all", seconds=1.0, memory=64 << 20)
    assert child(patterns=["a.*"], names=["ab", "b"]) > 0 == child(patterns=["x"], names=["ab", "b"])
    with pytest.raises(Beyond, match="more than 1 s"):
        child(patterns=["(a+)+$"], names=["a" * 40 + "b"])
    assert child(patterns=["a"], names=["a"]) > 0
    with pytest.raises(Beyond, match="argument"):
        child(no="such")
    child.close()


TEMPLATES = {
    "a loop": ("{% for a in range(9999) %}{% for b in range(9999) %}{{ '' }}{% endfor %}{% endfor %}", "more than 2"),
    "doubling": ("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "MiB"),
    "a width": ("{{ '%999999999999d' % 1 }}", "MiB|memory|large|overflow"),
    "nesting": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "recursion|ended"),
    "much text": ("{% for i in range(99999) %}{{ messages[0].content }}{{ 'x' * 50 }}{% endfor %}", "writes"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_take_all_time_or_memory_are_one_line(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    template, reason = TEMPLATES[name]
    messages = [{"role": "user", "content": "a prompt"}]
    rendered(tokenizer, messages, template="x")  # starts the process
    monkeypatch.setattr("e2bench.prompts.templates._child.seconds", 2.0 if name == "a loop" else 60.0)
    with pytest.raises(Beyond, match=reason) as info:
        rendered(tokenizer, messages, template=template)
    assert len(str(info.value)) < 400


def test_a_template_is_rendered_as_transformers_does(tokenizer: Any) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}{% if not thinking %}!{% endif %}"
        "{{ {'a': 'é<'} | tojson }}"
    )
    messages = [{"role": "user", "content": "  été \\u0041 \u2028 {{ 1 }} 🙂\n"}, {"role": "assistant", "content": "b"}]
    for prompt in (True, False):
        want = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=prompt, tokenize=False, thinking=False
        )
        assert rendered(tokenizer, messages, template=template, prompt=prompt, thinking=False) == want


# ---- claims of model folders


@pytest.fixture
def model_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def changed(folder: Path, name: str, **values: Any) -> Path:
    stored = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**stored, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"num_hidden_layers": 40_000}, "40,000, and the weights hold"),
        ({"text_config": {"num_hidden_layers": 9_999}}, "num_hidden_layers = 9,999"),
        ({"num_local_experts": 10**9}, "at most 65,536 experts"),
        ({"_attn_implementation": "evil/kernels"}, "code from the hub"),
        ({"attn_implementation": {"": "sdpa", "text_config": "evil/kernels@main:fn"}}, "code from the hub"),
        ({"vision_config": {"_experts_implementation_internal": "evil/moe"}}, "code from the hub"),
    ],
)
def test_configs_that_claim_what_is_not_so_are_refused(model_folder: Path, values: dict[str, Any], reason: str) -> None:
    changed(model_folder, "config.json", **values)
    with pytest.raises(ModelError, match=reason):
        Model.load(ModelSpec(model=str(model_folder)))


@pytest.mark.parametrize(
    ("file", "reason"),
    [("pytorch_model-1.bin", "--allow-pickle"), ("../x.safetensors", "outside"), ("a/b.safetensors", "outside")],
)
def test_an_index_maps_to_safetensors_beside_it(model_folder: Path, file: str, reason: str) -> None:
    index = {"weight_map": {"model.norm.weight": file, "lm_head.weight": "model.safetensors"}}
    (model_folder / claims.INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=reason):
        Model.load(ModelSpec(model=str(model_folder)))


@pytest.mark.parametrize("eos", ["</s>", [1, "</s>"], [[2]]])
def test_an_eos_id_that_is_text_is_one_line(model_folder: Path, eos: Any) -> None:
    changed(model_folder, "generation_config.json", eos_token_id=eos)
    with pytest.raises(ModelError, match=r"eos_token_id|cannot be loaded"):
        Model.load(ModelSpec(model=str(model_folder)))


def lora(folder: Path, base: Path, **values: Any) -> Path:
    config = json.loads((base / "config.json").read_text())
    size, layers = config["hidden_size"], config["num_hidden_layers"]
    weights = load_file(base / "model.safetensors")
    tensors = {}
    for layer in range(layers):
        rows = weights[f"model.layers.{layer}.self_attn.q_proj.weight"].shape[0]
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors |= {
            f"{stem}A.weight": np.zeros((2, size), np.float32),
            f"{stem}B.weight": np.zeros((rows, 2), np.float32),
        }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    changed(folder, "adapter_config.json", **known, base_model_name_or_path=str(base), **values)
    return folder


HARD = r"(([a-z_0-9.]+)+)+X"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"r": 10**6}, "r = 1,000,000"),
        ({"rank_pattern": {"q_proj": 10**6}}, "1000000, which no tensor|1,000,000"),
        ({"target_modules": HARD}, "more than 1 s"),
        ({"exclude_modules": HARD}, "more than 1 s"),
        ({"alpha_pattern": {HARD: 3}}, "more than 1 s"),
    ],
)
def test_adapters_that_would_build_or_search_without_end_are_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(claims._matching, "seconds", 1.0)
    config = {"target_modules": ["q_proj"], **values}
    config.setdefault("r", 2)
    folder = lora(tmp_path / "adapter", tiny_folder)
    changed(folder, "adapter_config.json", **config)
    with pytest.raises(ModelError, match=reason):
        Model.load(ModelSpec(model=str(folder)))


def test_a_good_adapter_is_still_merged(tiny_folder: Path, tmp_path: Path) -> None:
    folder = lora(tmp_path / "adapter", tiny_folder)
    changed(folder, "adapter_config.json", target_modules=r".*\.layers\.\d+\.self_attn\.(q_proj)")
    assert Model.load(ModelSpec(model=str(folder))).layers > 0


# ---- what was a traceback


def test_a_prompt_without_tokens_is_one_line() -> None:
    with pytest.raises(ModelError, match="no token at all"):
        Prompt([], 8)


def test_ids_beyond_the_vocabulary_are_one_line(tiny_model: Model) -> None:
    import torch

    with pytest.raises(ModelError, match="no embedding row"):
        list(tiny_model.generate([Prompt([1, tiny_model.vocab_size], 2)]))
    with pytest.raises(ModelError, match="no embedding row"):
        tiny_model.token_nll(torch.tensor([[1, 2, tiny_model.vocab_size + 5]]))


def test_a_tokenizer_that_breaks_down_is_one_line(model_folder: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    changed(model_folder, "tokenizer.json", truncation=truncation)
    with pytest.raises(ModelError, match="tokenizer"):
        Model.load(ModelSpec(model=str(model_folder)))


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_a_launchers_number_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known, value in (("WORLD_SIZE", "2"), ("RANK", "0"), (name, "x")):
        monkeypatch.setenv(known, value)
    with pytest.raises(E2BenchError, match=f"{name} is 'x' in the environment"):
        Processes.from_environment()
    with pytest.raises(E2BenchError, match=name):
        environment.check_launcher()


def test_folders_a_thousand_deep_are_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    report_folders.longbench_run(results)
    monkeypatch.chdir(results)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    monkeypatch.chdir(tmp_path)
    assert len(scan(results).runs) == 1
    subprocess.run(["rm", "-rf", str(results / "d")], check=True)  # shutil.rmtree goes no thousand deep


# ---- one hostile line

HOSTILE = (
    {"finish": float("nan")},
    {"finish": ["x"] * 3, "new_tokens": 10**400},
    {"prompt_tokens": float("inf"), "head": {"a": 1}, "tail": ["x"]},
    {"answers": [None, 3, ["x"]], "pred": "x"},
    {"pred": {"a": 1}},
    {"_id": float("nan")},
)


@pytest.mark.parametrize("hostile", HOSTILE, ids=[" ".join(one) for one in HOSTILE])
def test_one_hostile_line_leaves_the_examples_of_all_runs(tmp_path: Path, hostile: dict[str, Any]) -> None:
    report_folders.longbench_run(tmp_path / "results")
    (run,) = scan(tmp_path / "results").runs
    path = sorted(run.folder.glob("*.jsonl"))[0]
    before = len(shown(tmp_path / "results"))
    first = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as file:
        file.write(json.dumps({**first, "_id": "hostile", **hostile}) + "\n")
    stored = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "asked"}))
    assert len(shown(tmp_path / "results")) >= before


def shown(results: Path) -> list[Any]:
    """The score of every sample on the page; a browser's JSON has no NaN."""
    files: dict[str, str] = {}
    samples.write(scan(results), files.__setitem__)
    text = files["samples/index.js"]
    groups = json.loads(text[text.index("[") : text.rindex("]") + 1], parse_constant=pytest.fail)
    return [score for *_, columns in groups for column in columns for score in column[3]]


@pytest.mark.parametrize("correct", [float("nan"), 1e308, "1", [1], -1, 10**400])
def test_an_odd_correct_is_refused_by_score_and_left_out_by_the_page(tmp_path: Path, correct: Any) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    line = {"dataset": "piqa", "suite": "paper", "prediction": "a", "gold": "a", "choices": None, "scale": 1}
    rows = [{"_id": f"piqa-{n}", **line, "correct": 1} for n in range(3)]
    rows[1]["correct"] = correct
    (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"experiment": "short", "resolved": {}}))
    with pytest.raises(DataError, match="line piqa-1 has correct"):
        score_folder(folder)
    (folder / "scores.json").write_text(json.dumps({"tasks": {"piqa": 100.0}, "details": {}, "averages": {}}))
    assert shown(tmp_path) == [100.0, None, 100.0]


def test_a_run_with_failed_samples_has_no_average_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in report_folders.TASKS:
        report_folders.write_lines(tmp_path / f"{task}.jsonl", [report_folders.prediction(task, 0, "the barn")])
    assert None not in score_folder(tmp_path)["averages"]["e2"].values()
    with (tmp_path / "qasper.jsonl").open("a") as file:
        file.write(json.dumps(report_folders.prediction("qasper", 1, "", finish="error")) + "\n")
    scores = score_folder(tmp_path)
    assert scores["averages"]["e2"]["EN"] is None and scores["averages"]["e2"]["ZH"] is not None
    for as_json in (True, False):
        with pytest.raises(RunFailed, match=r"1 samples failed.*no average") as info:
            score_command.run(tmp_path, as_json=as_json, rouge_score=False)
        assert info.value.exit_code == 1


def test_names_with_underscores_and_quotes_survive_legends_and_latex() -> None:
    figure = canvas(4, 3)
    axes = figure.subplots()
    draw_lines(axes, [Series(name, [1, 2], [1, 2]) for name in ("_my_model", 'a "b" $x_1$', "plain")])
    names = axes.get_legend_handles_labels()[1]
    assert [name.strip() for name in names] == ["_my_model", 'a "b" $x_1$', "plain"]
    assert latex_text('_a"b') == r"\_a\char34{}b"
    assert latex_text("Ðð") == "??"  # LaTeX's default encoding has none


def test_a_report_of_a_run_named_with_an_underscore_is_written(tmp_path: Path) -> None:
    report_folders.longbench_run(tmp_path / "results", '_x "y"')
    write_report(tmp_path / "results", tmp_path / "out")
    assert r"\_x \char34{}y\char34{}" in "".join(p.read_text() for p in (tmp_path / "out").glob("*.tex"))
    assert "_x &#34;y&#34;" in (tmp_path / "out" / "index.html").read_text()
