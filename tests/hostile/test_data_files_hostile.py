"""Documents, examples, prompts and chat templates: bytes of any kind, bombs among them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hostile_cases import bounded_memory, case, hostile, little_memory, mutated, objects, texts, values
from hypothesis import strategies as st

from e2bench import files
from e2bench.data.corpus import read_documents
from e2bench.errors import DataError, E2BenchError
from e2bench.models.loading import embedded_model
from e2bench.prompts.chat import chat_wrapper
from e2bench.prompts.task import read_examples, render, templates
from e2bench.prompts.templates import rendered
from e2bench.tasks.longbench import BY_NAME

__all__ = ["little_memory"]
LINE = json.dumps({"text": "A text, ein Text, 一段文字。", "meta": {"n": [1, 2.5, None]}}, ensure_ascii=False).encode()
EXAMPLE: dict[str, Any] = {
    "input": "Who?",
    "context": "Anna.",
    "answers": ["Anna"],
    "length": 1,
    "all_classes": ["Person", "Place"],
    "_id": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def read(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with case(folder):
        for document in read_documents(folder / name):
            assert document.text.strip() and len(document.id) == 16


@hostile(1000, content=st.one_of(mutated(LINE + b"\n" + LINE), st.binary(max_size=80), values.map(dumped)))
def test_json_lines_of_any_bytes(folder: Path, content: bytes) -> None:
    read(folder, "x.jsonl", content)


@hostile(400, content=st.one_of(mutated(gzip.compress(LINE * 20, mtime=0)), st.binary(max_size=60)))
def test_gzip_of_any_bytes(folder: Path, content: bytes) -> None:
    read(folder, "x.jsonl.gz", content)


@hostile(200, content=st.one_of(st.binary(max_size=60), texts.map(lambda t: t.encode("utf-8", "surrogatepass"))))
def test_plain_text_of_any_bytes(folder: Path, content: bytes) -> None:
    (folder / "x.txt").write_bytes(content)
    with case(folder):
        list(read_documents(folder / "x.txt"))


def parquet_bytes() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["one text", "another", "a third"] * 20, "n": list(range(60))}), out)
    return bytes(out.getvalue())


@hostile(500, content=st.one_of(mutated(parquet_bytes()), st.binary(max_size=40).map(lambda b: b"PAR1" + b + b"PAR1")))
def test_parquet_of_any_bytes(folder: Path, content: bytes) -> None:
    read(folder, "x.parquet", content)


def test_a_small_gzip_that_unpacks_to_gigabytes_is_refused_in_little_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_LINE_BYTES", 8 << 20)
    with gzip.open(folder / "bomb.jsonl.gz", "wb", 9) as bomb:
        bomb.write(b'{"text": "')
        for _ in range(256):
            bomb.write(b"0" * (1 << 20))
    assert (folder / "bomb.jsonl.gz").stat().st_size < 1 << 20
    with bounded_memory(100 << 20), pytest.raises(DataError, match="a line of more than 8 MiB"):
        list(read_documents(folder / "bomb.jsonl.gz"))


good = {name: st.just(value) for name, value in EXAMPLE.items()}


@hostile(1000, example=objects(good), task=st.sampled_from(["trec", "passage_count", "lcc", "hotpotqa", "samsum"]))
def test_examples_with_fields_of_any_kind(folder: Path, example: dict[str, Any], task: str) -> None:
    (folder / f"{task}.jsonl").write_bytes(dumped(example) + b"\n")
    with case(folder):
        for checked in read_examples(folder, BY_NAME[task]):
            prompt = render("{context} {input}", checked)
            assert prompt.encode("utf-8") and isinstance(checked["_id"], str)


FIELDS = ("{context}", "{input}", "{context.__class__}", "{context!r}", "{input:>99999999999}", "{0}", "{}", "{{", "}")
pieces = st.lists(st.one_of(st.sampled_from(FIELDS), texts), max_size=5).map("".join)


@hostile(600, prompt=st.one_of(pieces, values))
def test_prompt_templates_fill_in_two_texts_and_nothing_else(folder: Path, prompt: Any) -> None:
    (folder / "prompts.json").write_bytes(dumped({"trec": prompt}))
    with case(folder):
        filled = templates([BY_NAME["trec"]], folder / "prompts.json")["trec"]
        rendered = render(filled, {"context": "", "input": ""})
        assert len(rendered) <= len(filled) and "<class" not in rendered


@hostile(300, content=mutated(dumped({"trec": "{context} {input}", "lcc": "{context}"})))
def test_prompt_files_of_any_bytes(folder: Path, content: bytes) -> None:
    (folder / "prompts.json").write_bytes(content)
    with case(folder):
        templates([BY_NAME["trec"]], folder / "prompts.json")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(embedded_model())
    rendered(found, [{"role": "user", "content": "x"}], template="x")  # the process that templates run in, once
    return found


ESCAPES = (
    "{{ messages[0].__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "{% for i in range(99999999) %}x{% endfor %}",
    "{{ raise_exception('no') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ messages[0]['content'] }}",
)
jinja = st.lists(st.one_of(st.sampled_from(ESCAPES), texts), min_size=1, max_size=3).map("".join)


@hostile(250, template=jinja)
def test_chat_templates_run_in_a_sandbox(folder: Path, tokenizer: Any, template: str) -> None:
    path = folder / "x.jinja"
    path.write_bytes(template.encode("utf-8", "surrogatepass"))
    with case(folder):
        wrapper = chat_wrapper(str(path), tokenizer)
        assert wrapper and "<class" not in wrapper.apply("a prompt")


def test_the_escapes_are_refused_not_ignored(folder: Path, tokenizer: Any) -> None:
    for template in ESCAPES[:4]:
        (folder / "x.jinja").write_text(template)
        with pytest.raises(E2BenchError, match="cannot wrap a prompt"):
            chat_wrapper(str(folder / "x.jinja"), tokenizer)
