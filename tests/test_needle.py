"""A needle in real text: prompts that fit, needles at their depth, other texts under other names, the pictures."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import e2bench
from e2bench.data.source import OWN, DataSource
from e2bench.errors import E2BenchError
from e2bench.experiments.haystacks import Feed
from e2bench.experiments.needle import Hay, border, make_cells, with_needle
from e2bench.files import read_rows
from e2bench.models.loading import embedded_model, load_tokenizer
from e2bench.models.texts import Texts
from e2bench.reporting import write_report
from e2bench.rope.methods import RopeScaling

TEXT = "The committee met on Monday. It talked about roads; nobody agreed! Was the bridge closed? It was, at 3.15. "
HAY = Hay("minutes.txt", TEXT * 3, DataSource(OWN, "minutes.txt"))
SENTENCES = st.lists(
    st.sampled_from(["It rains.", "Was it late?", "No 3.5 of them!", "下雨了。", "x"]), min_size=1, max_size=40
)
NEEDLE = "One of the special magic numbers for odd-lamp is: 7654321."


@pytest.fixture(scope="module")
def codec() -> Texts:
    codec = Texts()
    codec.tokenizer, _ = load_tokenizer(str(embedded_model()))
    return codec


@given(SENTENCES, st.floats(0, 1))
def test_the_hay_is_kept_and_the_needle_stands_between_words(sentences: list[str], depth: float) -> None:
    hay = " ".join(sentences)
    text = with_needle(hay, NEEDLE, depth)
    before, after = text.split(NEEDLE)
    assert (before.strip(" ") + after.strip(" ")).replace(" ", "") == hay.replace(" ", "")
    assert abs(len(before) - depth * len(hay)) <= 20  # no sentence here is longer
    assert not before or before.rstrip()[-1] in ".?!。" or "x" in sentences or len(sentences) == 1


def test_a_needle_stands_at_the_next_end_of_a_sentence_else_of_a_word() -> None:
    assert with_needle("One is a. Two is b. Three.", "N.", 0.3) == "One is a. N. Two is b. Three."
    assert with_needle("One is a. Two is b. Three.", "N.", 0) == "N. One is a. Two is b. Three."
    assert with_needle("One is a. Two is b. Three.", "N.", 1) == "One is a. Two is b. Three. N."
    assert with_needle("no end of a sentence here", "N.", 0.5) == "no end of a N. sentence here"
    assert border("abcdef", 3) == 3  # nothing to stand at


def test_a_needle_stands_where_its_depth_says_in_text_with_long_lines() -> None:
    hay = " ".join(["word"] * 60 + ["end."] + ["word"] * 300)  # its one sentence ends at a sixth
    at = with_needle(hay, "NEEDLE.", 0.25).index("NEEDLE.")
    assert abs(at / len(hay) - 0.25) < 1 / 40


@pytest.mark.parametrize("length", [256, 700])
def test_a_prompt_is_as_long_as_fits(codec: Texts, length: int) -> None:
    cells = list(make_cells(Feed(codec, None), [(length, RopeScaling())], HAY, [0.0, 0.5, 1.0], 4, seed=0))
    sizes = [len(cell.ids) for cell in cells]
    assert max(sizes) <= length - 32 and min(sizes) > length - 32 - 24  # keys differ in tokens
    assert [cell.depth for cell in cells[::4]] == [1.0, 0.5, 0.0]  # neighbours share the longest beginnings
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        text = codec.decode(cell.ids)
        assert text.count(cell.key) == 1 and "A special magic number is hidden" in text
        at = text.index(cell.key) / len(text)
        assert abs(at - (0.2 + 0.6 * cell.depth)) < 0.3  # behind the task line, before the question


def test_a_length_too_short_for_the_question_is_refused(codec: Texts) -> None:
    with pytest.raises(E2BenchError, match="prompt has at least"):
        list(make_cells(Feed(codec, None), [(64, RopeScaling())], HAY, [0.0], 1, seed=0))


def reader(prompts: list[str]) -> list[str]:
    """Finds what stands in the last two thirds."""
    answers = []
    for prompt in prompts:
        asked = re.search(r"number for (\S+) mentioned in the provided text is$", prompt)
        assert asked is not None
        found = re.search(rf"for {re.escape(asked[1])} is: (\d+)\.", prompt[len(prompt) // 3 :])
        answers.append(f" {found[1]}" if found else "unknown")
    return answers


def needle(folder: Path, answer: Callable[[list[str]], Sequence[str]] = reader, **settings: Any) -> e2bench.library.Run:
    settings = {"lengths": "512", "depths": 5, "trials": 2, "chat_template": "none"} | settings
    tokenizer, _ = load_tokenizer(str(embedded_model()))
    return e2bench.run("needle", answer, tokenizer=tokenizer, window="8k", out=folder, **settings)


def test_a_run_finds_what_is_read_and_is_drawn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "minutes.txt"
    own.write_text(TEXT * 3, encoding="utf-8")
    run = needle(tmp_path / "runs" / "own", data=own)
    assert run.scores["lengths"][0] | {"interval": 0} == {
        "length": 512, "scale": 1, "haystack": "minutes.txt", "accuracy": 0.6, "interval": 0, "trials": 10,
    }  # fmt: skip
    grown = needle(tmp_path / "runs" / "own", data=own, lengths="512,700")
    assert [cell["trials"] for cell in grown.scores["lengths"]] == [10, 10]
    own.write_text(f"{TEXT}Another text. " * 3, encoding="utf-8")
    with pytest.raises(E2BenchError, match=r"another"):
        needle(tmp_path / "runs" / "own", data=own, lengths="512,700")
    demo = needle(tmp_path / "runs" / "demo")
    assert "the hay is demo text, as every table says" in capfd.readouterr().err
    assert demo.settings["data_source"]["kind"] == "demo" and demo.scores["lengths"][0]["haystack"] == "demo"
    write_report(tmp_path / "runs", tmp_path / "report")
    with (tmp_path / "report" / "needle.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["run"] == "own" and row["length"] == "512"]
    assert {row["depth"]: row["successes"] for row in rows} == {
        "all": "6", "0": "0", "0.25": "0", "0.5": "2", "0.75": "2", "1": "2",
    }  # fmt: skip
    assert {row["haystack"] for row in rows} == {"minutes.txt"}
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Haystack minutes.txt: a text of its own." in page


def test_a_file_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(E2BenchError, match="no text to hide a needle in"):
        needle(tmp_path / "run", data=tmp_path / "empty.txt")


def several(prompts: list[str]) -> list[str]:
    """Answers the needles of the prompt's second half."""
    return [" ".join(re.findall(r" is: (\S+)\.", prompt[len(prompt) // 2 :])) for prompt in prompts]


def test_rulers_needles_are_counted_by_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    tokenizer, _ = load_tokenizer(str(embedded_model()))
    settings = {"lengths": "1k", "tasks": "niah_multivalue,fwe", "samples": 4, "data": "demo", "chat_template": "none"}
    e2bench.run("ruler", several, tokenizer=tokenizer, window="8k", out=tmp_path / "run", **settings)
    assert "depths" not in read_rows(tmp_path / "run" / "fwe.jsonl")[0]
    lines = read_rows(tmp_path / "run" / "niah_multivalue-demo.jsonl")
    for line in lines:
        found = [output in line["pred"].split() for output in line["outputs"]]
        assert found == [depth > 0.5 for depth in line["depths"]] and len(found) == 4
    write_report(tmp_path / "run", tmp_path / "report")
    with (tmp_path / "report" / "ruler-depths.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["trials"]) for row in rows) == 16
    assert {float(row["share"]) for row in rows if float(row["depth"]) >= 0.6} == {1.0}
    assert {float(row["share"]) for row in rows if float(row["depth"]) < 0.5} <= {0.0}
