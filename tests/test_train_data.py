"""Training rows: layouts, packing, mixture, order, resume."""

import gzip
import itertools
import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.train.data import IGNORED, Source, data_hashes
from e2bench.train.layouts import sharegpt_segments, summary_segments
from e2bench.train.miniature.tokenizer import train_tokenizer
from e2bench.train.rows import PackedRows, Piece, mixture, pack_gapless, pack_whole
from e2bench.train.tokens import tokenised, tokens_folder

CONVERSATION = {
    "conversations": [
        {"from": "gpt", "value": "Unasked."},
        {"from": "human", "value": "What is red?"},
        {"from": "gpt", "value": "A colour."},
        {"from": "human", "value": "And two?"},
        {"from": "gpt", "value": "A number."},
    ]
}
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["The quick brown fox jumps over the lazy dog. 0123456789 " * 20]
    return train_tokenizer(texts, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def texts(tmp_path):
    """40 documents `number:index` of 1 to 118 tokens, and the file that holds them."""
    documents = [f"{n} " * n for n in range(1, 41)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": t, "meta": {"pile_set_name": "x"}}) + "\n" for t in documents))
    return documents, path


def rows_of(files, tokenizer, count, *, window=64, **kwargs):
    source = Source([str(file) for file in files], **kwargs.pop("source", {}))
    rows = PackedRows([source], tokenizer, train_window=window, **kwargs)
    return list(itertools.islice(iter(rows), count))


def documents_in(rows, tokenizer):
    """Texts between BOS and EOS of all trained tokens, in order."""
    ids = [int(i) for row in rows for i in row["input_ids"][row["labels"] != IGNORED]]
    text = tokenizer.decode(ids)
    return [part.removesuffix("</s>") for part in text.split("<s>")[1:] if part.endswith("</s>")]


def test_no_document_is_lost_or_repeated_within_an_epoch(texts, tokenizer):
    documents, path = texts
    seen = documents_in(rows_of([path], tokenizer, 30, window=256), tokenizer)
    assert sorted(seen[:40]) == sorted(documents)
    assert sorted(seen[40:80]) == sorted(documents)


@pytest.mark.parametrize("whole_documents", [False, True])
def test_a_later_start_continues_with_the_same_rows(whole_documents, texts, tokenizer):
    _, path = texts
    shared = {"whole_documents": whole_documents, "seed": 3}
    rows = rows_of([path], tokenizer, 40, **shared)
    resumed = rows_of([path], tokenizer, 15, first_row=25, **shared)
    assert [int(row["row"]) for row in resumed] == list(range(25, 40))
    for row, again in zip(rows[25:], resumed, strict=True):
        assert all(torch.equal(row[name], again[name]) for name in row)
    other = rows_of([path], tokenizer, 40, whole_documents=whole_documents, seed=4)
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(rows, other, strict=True))


def test_epochs_come_in_different_orders(texts, tokenizer):
    _, path = texts
    seen = documents_in(rows_of([path], tokenizer, 30, window=256), tokenizer)
    assert seen[:40] != seen[40:80]


def test_whole_documents_are_never_cut(texts, tokenizer):
    documents, path = texts
    rows = rows_of([path], tokenizer, 40, whole_documents=True, window=256)
    for row in rows:
        text = tokenizer.decode(row["input_ids"][row["labels"] != IGNORED])
        parts = text.split("</s>")
        assert parts[-1] == "" and all(part.removeprefix("<s>") in documents for part in parts[:-1])


def test_documents_that_must_not_see_each_other_begin_at_position_zero(texts, tokenizer):
    _, path = texts
    for row in rows_of([path], tokenizer, 20, cross_documents=False, whole_documents=True, window=256):
        starts = row["input_ids"] == tokenizer.bos_token_id
        assert (row["position_ids"][starts] == 0).all()
        assert (row["labels"][row["position_ids"] == 0] == IGNORED).all()
        steps = row["position_ids"].diff()
        assert ((steps == 1) | (row["position_ids"][1:] == 0)).all()


@st.composite
def pieces_of_one_source(draw):
    """Pieces of 1 to 32 tokens, one after another."""
    lengths = draw(st.lists(st.integers(1, 32), min_size=1, max_size=80))
    ends = list(itertools.accumulate(lengths))
    return [Piece(0, end - length, end) for length, end in zip(lengths, ends, strict=True)]


@settings(max_examples=100)
@given(pieces_of_one_source())
def test_packing_keeps_every_token_in_rows_of_the_window(pieces):
    gapless = list(pack_gapless(pieces, 32))
    assert len(gapless) == pieces[-1].stop // 32
    tokens = [token for row in gapless for piece in row for token in range(piece.start, piece.stop)]
    assert tokens == list(range(32 * len(gapless)))
    whole = list(pack_whole(pieces, 32))
    assert all(sum(piece.stop - piece.start for piece in row) <= 32 for row in whole)
    packed = [piece for row in whole for piece in row]
    assert set(packed) <= set(pieces) and len(set(packed)) == len(packed)


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=4), st.integers(1, 200))
def test_the_mixture_keeps_its_token_shares_at_any_point(weights, count):
    streams = [itertools.repeat(Piece(i, 0, 5 + 7 * i)) for i in range(len(weights))]
    served = [0.0] * len(weights)
    for piece in itertools.islice(mixture(streams, weights), count):
        served[piece.source] += piece.stop
    longest = 5 + 7 * len(weights)
    relative = [tokens / weight for tokens, weight in zip(served, weights, strict=True)]
    assert max(relative) - min(relative) <= longest / min(weights)


def test_conversations_in_vicunas_format_train_on_answers_only(tokenizer, tmp_path):
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([CONVERSATION]))
    source = {"layout": "sharegpt", "loss": "answers"}
    (row,) = rows_of([path], tokenizer, 1, window=512, whole_documents=True, source=source)
    trained = tokenizer.decode(row["input_ids"][row["labels"] != IGNORED])
    assert set(trained.split("</s>")) == {" A colour.", " A number.", ""}
    text = tokenizer.decode(row["input_ids"])
    assert text.startswith("<s>A chat between a curious user")
    assert " USER: What is red? ASSISTANT: A colour.</s>USER: And two? ASSISTANT: A number.</s>" in text
    assert "Unasked" not in text


def test_a_chat_template_is_cut_at_its_answers(tokenizer):
    tokenizer.chat_template = CHATML
    segments = sharegpt_segments(CONVERSATION, tokenizer, "chat")
    assert [s.text for s in segments if s.answer] == ["A colour.\n", "A number.\n"]
    rendered = "".join(s.text for s in segments)
    assert rendered.startswith("<|user|>What is red?\n<|assistant|>A colour.")


def test_roles_that_nobody_knows_are_refused(tokenizer):
    with pytest.raises(DataError, match="turn from 'robot'"):
        sharegpt_segments({"conversations": [{"from": "robot", "value": "x"}]}, tokenizer, "vicuna")


def test_long_documents_train_on_their_abstract(tokenizer, tmp_path):
    example = {"article_text": ["First.", "Second."], "abstract_text": ["<S> Short. </S>", "<S> End. </S>"]}
    segments = summary_segments(example, tokenizer, "vicuna")
    assert [(s.text, s.answer) for s in segments] == [("First. Second.\n\nAbstract: ", False), ("Short. End.", True)]
    path = tmp_path / "arxiv.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(example) + "\n").encode()))
    source = {"layout": "summary", "loss": "answers"}
    (row,) = rows_of([path], tokenizer, 1, whole_documents=True, source=source)
    assert tokenizer.decode(row["input_ids"][row["labels"] != IGNORED]) == "Short. End.</s>"


def test_prompts_and_completions_are_joined_as_they_stand(tokenizer, tmp_path):
    path = tmp_path / "asked.jsonl"
    examples = [{"prompt": "The key is", "completion": " 7."}, {"prompt": "", "completion": "nothing asked"}]
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    source = {"layout": "completion", "loss": "answers"}
    (row,) = rows_of([path], tokenizer, 1, whole_documents=True, source=source)
    trained = tokenizer.decode(row["input_ids"][row["labels"] != IGNORED])
    assert set(trained.split("</s>")) == {" 7.", ""}
    assert "<s>The key is 7.</s>" in tokenizer.decode(row["input_ids"])


def test_a_missing_or_wrong_file_is_named(tokenizer, tmp_path, capfd):
    with pytest.raises(DataError, match=r"'nowhere/\*.jsonl' does not exist"):
        rows_of(["nowhere/*.jsonl"], tokenizer, 1)
    path = tmp_path / "other.jsonl"
    path.write_text('{"content": "x"}\n')
    with pytest.raises(DataError, match=r"other.jsonl: no example of layout 'text'"):
        rows_of([path], tokenizer, 1)
    path.write_text("Once upon a time.\n")
    with pytest.raises(DataError, match=r"^other\.jsonl cannot be read as JSON lines: "):
        rows_of([path], tokenizer, 1)
    assert "Failed to load" not in capfd.readouterr().err  # as `datasets` logs it
    with pytest.raises(UnknownName, match="did you mean 'sharegpt'"):
        Source(["x"], layout="sharegtp")
    with pytest.raises(E2BenchError, match="weight 0"):
        Source(["x"], weight=0)


def test_hashes_name_the_files_that_were_read(texts):
    _, path = texts
    (name, digest), *rest = data_hashes([Source([str(path)])]).items()
    assert name == "texts.jsonl" and len(digest) == 64 and not rest


# ---- the cache


def test_text_is_tokenised_once_and_checked_when_it_is_used(texts, tokenizer, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    documents, path = texts
    source = Source([str(path)])
    first = tokenised(source, tokenizer)
    said = capsys.readouterr().err
    assert "tokenising" in said and f"of {len(documents)} documents" in said and "may be deleted" in said
    assert first.folder.parent == tokens_folder()
    for begin, end, text in zip([0, *first.ends], first.ends, documents, strict=False):
        expected = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert first.tokens[begin:end].tolist() == [*expected, tokenizer.eos_token_id]
    monkeypatch.setattr("e2bench.train.tokens.documents", lambda *_: pytest.fail("read again"))
    assert np.array_equal(tokenised(source, tokenizer).tokens, first.tokens) and not capsys.readouterr().err
    file = first.folder / "tokens.bin"
    content = bytearray(file.read_bytes())
    content[9] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens\.bin is not what was written; delete the folder"):
        tokenised(source, tokenizer)


def test_other_files_and_other_settings_have_tokens_of_their_own(texts, tokenizer, tmp_path):
    _, path = texts
    folders = [tokenised(Source([str(path)]), tokenizer).folder]
    folders += [tokenised(Source([str(path)], loss="answers"), tokenizer).folder]
    path.write_text(path.read_text() + json.dumps({"text": "One more."}) + "\n")
    folders += [tokenised(Source([str(path)]), tokenizer).folder]
    other = train_tokenizer(["Other words in another order. " * 20], 290, tmp_path / "other")
    folders += [tokenised(Source([str(path)]), other).folder]
    assert len(set(folders)) == 4
    elsewhere = tmp_path / "copy.jsonl"
    elsewhere.write_bytes(path.read_bytes())
    assert tokenised(Source([str(elsewhere)]), tokenizer).folder == folders[2]


def test_a_token_that_the_model_does_not_have_is_refused_before_the_first_row(texts, tokenizer):
    _, path = texts
    with pytest.raises(DataError, match=r"the model has 5 embedding rows"):
        PackedRows([Source([str(path)])], tokenizer, train_window=64, vocabulary=5)


def test_passing_over_rows_looks_at_no_token(texts, tokenizer):
    """What a resumed run does with the rows before its first: 20,000 of them in seconds."""
    _, path = texts
    rows = PackedRows([Source([str(path)])], tokenizer, train_window=64, first_row=20_000)
    read = rows._tensors
    numbers = []
    rows._tensors = lambda number, row: numbers.append(number) or read(number, row)
    began = time.perf_counter()
    assert int(next(iter(rows))["row"]) == 20_000
    assert numbers == [20_000] and time.perf_counter() - began < 20
