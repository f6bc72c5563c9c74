"""RULER: samples equal to its own generator's, sizes that fit, its metrics, and runs that grow, compare and report."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer
from test_server import connect, server, text_of  # noqa: F401

import e2bench
from e2bench.data.ruler.sizing import Budget, Drawn, largest
from e2bench.data.ruler.sources import MissingFile, Pairs, Sources, essay_text, hotpotqa, punkt, squad
from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.experiments.base import experiment
from e2bench.experiments.haystacks import Feed, Maker, tokenizer_key
from e2bench.models.loading import embedded_model, load_tokenizer
from e2bench.models.texts import Texts
from e2bench.prompts.chat import chat_wrapper
from e2bench.reporting import write_report
from e2bench.scoring.ruler import effective_length, string_match_all, string_match_part, weighted_mean
from e2bench.tasks.demo import DemoTexts
from e2bench.tasks.ruler import BY_NAME, RULER, SEED, THRESHOLD, select

SHARED = Path(__file__).parents[2] / "shared" / "data" / "ruler"
OFFLINE = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
LLAMA_31 = list(zip((4096, 8192, 16384, 32768, 65536, 131072), (95.5, 93.8, 91.6, 87.4, 84.7, 77.0), strict=True))


def no_file(name: str) -> Path:
    raise MissingFile(name)


def codec_of(folder: Path) -> Texts:
    codec = Texts()
    codec.tokenizer, _ = load_tokenizer(str(folder))
    return codec


@pytest.fixture(scope="module")
def codec() -> Texts:
    return codec_of(embedded_model())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "ruler-cache"
    monkeypatch.setenv("E2BENCH_CACHE", str(folder))
    return folder


def drawn(codec: Texts, name: str, length: int, count: int, sources: Sources | None = None) -> list[Drawn]:
    task = BY_NAME[name]
    budget = Budget(Feed(codec, None).tokens, length, task.max_new_tokens, SEED, name)
    samples = task.maker.samples(task.template, task.answer_prefix, budget, sources or Sources(no_file))
    return list(islice(samples, count))


# ---- samples


@pytest.mark.skipif(not SHARED.is_dir(), reason="the samples of RULER's own generator are not here")
@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "fwe"])
def test_samples_equal_those_of_rulers_own_generator(name: str) -> None:
    smollm2 = codec_of(SHARED / "tokenizer")
    rows = [json.loads(line) for line in (SHARED / "4096" / f"{name}.jsonl").read_text("utf-8").splitlines()]
    made = drawn(smollm2, name, 4096, len(rows))
    assert [(one.input, one.outputs, one.answer_prefix) for one in made] == [
        (row["input"], row["outputs"], row["answer_prefix"]) for row in rows
    ]


# SHA-256 over two samples at 1,536 tokens with the embedded tokenizer, written when all 30 samples of RULER's own
# generator were equal (the test above).
HASHES = {
    "niah_single_1": "a9407cf3ba3f6760",
    "niah_multikey_2": "2e51c58e4454be5b",
    "niah_multikey_3": "b9d7e49a9cc95462",
    "vt": "d48424022e3d5491",
    "cwe": "535608c4b4db946f",
    "fwe": "c0aa0f2c365b1dc1",
}


@pytest.mark.parametrize("name", [*OFFLINE, "niah_multivalue-demo", "niah_multiquery-demo", "qa_1-demo"])
def test_samples_fit_hold_their_answers_and_are_the_same_at_any_number(codec: Texts, name: str) -> None:
    sources = DemoTexts() if BY_NAME[name].is_demo else None
    made = drawn(codec, name, 1536, 2, sources)
    assert drawn(codec, name, 1536, 1, sources) == made[:1]
    for one in made:
        assert all(output in one.input for output in one.outputs)
        tokens = len(codec.encode(one.input + one.answer_prefix, special_tokens=False))
        assert (0 if sources else 1300) < tokens + BY_NAME[name].max_new_tokens <= 1536  # essays shrink by 500 words
    if name in HASHES:
        text = json.dumps([[one.input, one.answer_prefix, one.outputs] for one in made])
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == HASHES[name]


def test_pairs_are_every_adjective_and_noun_once_in_sorted_order() -> None:
    adjectives, nouns = ["well", "well-off", "well-known", "bad", "wel"], ["off-day", "cat", "known-cat", "cat", "x"]
    listed = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    pairs = Pairs(adjectives, nouns)
    assert list(pairs) == listed == pairs[:] and len(pairs) == len(listed)
    assert random.Random(3).choices(pairs, k=9) == random.Random(3).choices(listed, k=9)


@pytest.mark.parametrize("fit", [3, 5, 6, 17, 40, 99])
def test_the_largest_size_that_fits_is_found(fit: int) -> None:
    def draw(size: int) -> Drawn:
        return Drawn("x" * size, "", [])

    found = largest(draw, lambda one: len(one.input) <= fit, first=5, last=40)
    assert found == min(max(fit, 5), 40)


def test_with_a_chat_template_the_whole_prompt_fits_and_the_prefix_stands_behind_it(codec: Texts) -> None:
    task = BY_NAME["niah_single_1"]
    maker = Maker(Feed(codec, chat_wrapper("vicuna", codec.tokenizer)), tokenizer_key(codec.tokenizer), SEED, None)
    for one in maker.make([task], [1024], 3):
        prompt = maker.feed.prompt(one, early_stop=True)
        assert re.search(
            r" ASSISTANT: The special magic number for \S+ mentioned in the provided text is$", prompt.text
        )
        assert 1024 - 60 < len(prompt.ids) + 128 <= 1024
        outputs = one.stored.read()["outputs"]
        assert prompt.settled is not None and prompt.settled(f" {outputs[0]}!") and not prompt.settled(outputs[0][:-1])


def test_a_window_too_short_for_a_task_is_refused_and_one_for_its_usual_step_is_not(codec: Texts) -> None:
    with pytest.raises(E2BenchError, match="vt: its smallest prompt and an answer of 30 tokens do not fit 512"):
        drawn(codec, "vt", 512, 1)
    (one,) = drawn(codec, "niah_single_2-demo", 512, 1, DemoTexts())
    assert one.outputs[0] in one.input


def test_questions_are_read_as_their_authors_publish_them() -> None:
    asked = {"question": "Q?", "is_impossible": False, "answers": [{"text": "a"}, {"text": "b"}]}
    impossible = asked | {"question": "no", "is_impossible": True}
    paragraphs = [{"context": "two", "qas": [asked, impossible]}, {"context": "one", "qas": []}]
    found = squad({"data": [{"paragraphs": paragraphs}, {"paragraphs": [{"context": "three", "qas": []}]}]})
    assert found.documents == ["one", "three", "two"]
    assert [(q.text, q.answers, q.documents, q.near) for q in found.questions] == [("Q?", ["a", "b"], [2], [0])]
    hops = hotpotqa([{"question": "Q?", "answer": "yes", "context": [["B", ["x. ", "y."]], ["A", ["z."]]]}])
    assert hops.documents == ["A\nz.", "B\nx. y."] and list(hops.questions[0].documents) == [1, 0]


def test_essays_come_from_json_or_parquet_and_sentences_from_punkt(tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": "One essay.\n\nIt  ends."}))
    pd.DataFrame({"text": ["One", "two"]}).to_parquet(tmp_path / "essays.parquet")
    assert essay_text(tmp_path / "essays.parquet") == "One two"
    for name, text in (("collocations.tab", ""), ("sent_starters.txt", ""), ("abbrev_types.txt", "dr\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "ortho_context.tab").write_text("")
    assert punkt(tmp_path).tokenize("See Dr. Who. He knows.") == ["See Dr. Who.", "He knows."]
    found = {"essays": tmp_path / "PaulGrahamEssays.json", "punkt": tmp_path}
    sources = Sources(found.__getitem__)
    assert sources.essay_words == ["One", "essay.", "It", "ends."]
    assert sources.sentences(6) == ["One essay.", "It ends.", "One essay."]  # the essays begin anew


# ---- scores


def test_metrics_are_rulers() -> None:
    assert string_match_all("The numbers are 12 and ABC.", ["12", "abc", "7"]) == pytest.approx(2 / 3)
    assert string_match_part("It was Paris", ["london", "paris"]) == 1 and string_match_part("no", ["yes"]) == 0
    assert string_match_all("a\tb", ["a\nb"]) == 1  # control characters become newlines before matching
    assert string_match_all("x", []) == 0


def test_effective_length_and_weighted_means_are_those_of_rulers_readme() -> None:
    assert effective_length(LLAMA_31, THRESHOLD) == 32768
    assert effective_length([(4096, 80), (8192, 90)], THRESHOLD) is None
    assert weighted_mean(LLAMA_31, increasing=True) == pytest.approx(85.4, abs=0.05)
    assert weighted_mean(LLAMA_31, increasing=False) == pytest.approx(91.3, abs=0.05)


def test_tasks_are_chosen_by_name_in_rulers_order() -> None:
    assert [task.name for task in select("vt, niah_single_1")] == ["niah_single_1", "vt"]
    assert len(select("all")) == len(RULER) == 13
    with pytest.raises(UnknownName, match="did you mean 'niah_single_1'"):
        select("niah_singel_1")


# ---- runs


def reader(prompts: list[str]) -> list[str]:
    """Answers needles that stand in one line, and nothing else."""
    answers = []
    for prompt in prompts:
        asked = re.search(r"for (\S+) mentioned in the provided text (?:is|are)$", prompt)
        found = re.search(rf"for {re.escape(asked[1])} is: (\S+)\.", prompt) if asked else None
        answers.append(f" {found[1]}." if found else "unknown")
    return answers


def ruler(folder: Path, answer: Callable[[list[str]], Sequence[str]] = reader, **settings: Any) -> e2bench.library.Run:
    settings = {"lengths": "512", "tasks": "niah_single_1,fwe", "samples": 2, "chat_template": "none"} | settings
    tokenizer, _ = load_tokenizer(str(embedded_model()))
    return e2bench.run("ruler", answer, tokenizer=tokenizer, window="8k", out=folder, **settings)


def test_a_run_is_scored_grows_and_keeps_its_lines(tmp_path: Path) -> None:
    first = ruler(tmp_path)
    scores = first.scores
    assert scores["tasks"] == {"niah_single_1": 100.0, "fwe": 0.0} and scores["lengths"][0]["score"] == 50
    assert scores["effective_length"] is None and set(scores["averages"]["ruler"].values()) == {None}
    assert scores["details"]["fwe"]["expected"] == 500 and scores["details"]["fwe"]["scored"] == 2
    before = (tmp_path / "niah_single_1.jsonl").read_text().splitlines()
    asked: list[str] = []

    def counting(prompts: list[str]) -> list[str]:
        asked.extend(prompts)
        return reader(prompts)

    counting.__name__ = "reader"  # a function is known by its name
    grown = ruler(tmp_path, counting, lengths="512,768", tasks="niah_single_1,fwe,niah_multikey_3", samples=3)
    lines = (tmp_path / "niah_single_1.jsonl").read_text().splitlines()
    assert lines[:2] == before and len(lines) == 6 and len(asked) == 3 * 2 * 3 - 4
    assert [cell["length"] for cell in grown.scores["lengths"]] == [512, 768]
    assert grown.scores["tasks"]["niah_multikey_3"] == 100
    again = ruler(tmp_path, counting, samples=1)  # scores cover what was asked last
    assert len(asked) == 14 and again.scores["details"]["niah_single_1"]["scored"] == 1
    with pytest.raises(E2BenchError, match="seed"):
        ruler(tmp_path, seed=1)


def test_offline_other_texts_have_other_names_in_every_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = ruler(tmp_path / "run", lengths="1k", tasks="niah_single_2,niah_multikey_2,qa_1", samples=1)
    assert list(run.scores["details"]) == ["niah_single_2-demo", "niah_multikey_2", "qa_1-demo"]
    assert "over demo texts, as their names say: niah_single_2-demo, qa_1-demo" in capfd.readouterr().err
    assert run.settings["data_source"]["kind"] == "demo"
    write_report(tmp_path / "run", tmp_path / "report")
    with (tmp_path / "report" / "ruler-tasks.csv").open(encoding="utf-8") as file:
        assert {row["task"] for row in csv.DictReader(file)} == set(run.scores["details"])
    with (tmp_path / "report" / "ruler.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["effective"] for row in rows if row["model"] == "Llama3.1-8B"] == ["32k"]
    assert rows[-1]["tasks"] == "1 of 13, 2 demo" and rows[-1]["Avg"] == rows[-1]["effective"] == ""
    assert (tmp_path / "report" / "ruler-map.png").stat().st_size > 10_000
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "niah_single_2-demo" in page and '"niah_single_2"' not in page


def test_two_runs_compare_by_task_and_length(tmp_path: Path) -> None:
    ruler(tmp_path / "a", lengths="512,768")
    ruler(tmp_path / "b", lambda prompts: ["nothing"] * len(prompts), lengths="512,768")
    found = e2bench.compare(tmp_path / "a", tmp_path / "b")
    assert found["tasks"]["niah_single_1 512"]["difference"] == -100
    assert found["tasks"]["fwe 768"]["difference"] == 0 and found["unit"] == "points"


def test_all_thirteen_tasks_give_an_effective_length_and_averages(tmp_path: Path) -> None:
    rows = [
        {"_id": f"{length}-0", "dataset": task.name, "length": length, "scale": 1, "pred": "x", "finish": "eos"}
        | {"outputs": ["x" if length == 4096 else "y"]}
        for task in RULER
        for length in (4096, 8192)
    ]
    for task in RULER:
        text = "".join(json.dumps(row) + "\n" for row in rows if row["dataset"] == task.name)
        (tmp_path / f"{task.name}.jsonl").write_text(text)
    scores = experiment("ruler").summarise(tmp_path)
    assert scores["effective_length"] == 4096
    assert scores["averages"]["ruler"] == {"Avg": 50.0, "wAvg (inc)": 100 / 3, "wAvg (dec)": 200 / 3}
    assert experiment("ruler").closing(scores)[0].startswith("effective length (mean at least 85.6): 4k; Avg 50.00")


def test_samples_are_written_without_a_model_and_read_by_a_run(tmp_path: Path, cli: Callable[..., Any]) -> None:
    common = ["--lengths", "1k", "--tasks", "niah_single_1,vt", "--samples", "2"]
    made = cli("ruler", "--tokenizer", embedded_model(), *common, "--write-samples", tmp_path / "s")
    assert made.code == 0, made.err
    path = tmp_path / "s" / "1024" / "vt.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1] and rows[0]["length"] <= 1024 and len(rows[0]["outputs"]) == 5
    run = ruler(tmp_path / "run", lengths="1k", tasks="niah_single_1,vt", data=tmp_path / "s")
    assert run.scores["tasks"] == {"niah_single_1": 100.0, "vt": 0.0}
    assert run.settings["data_source"] == {"kind": "own", "name": "s", "verified": False}
    with pytest.raises(DataError, match=r"has no 512/vt\.jsonl"):
        ruler(tmp_path / "other", lengths="512", tasks="vt", data=tmp_path / "s")
    path.write_text(json.dumps(rows[0] | {"input": rows[0]["input"] * 2}) + "\n")
    with pytest.raises(DataError, match=r"vt\.jsonl:1 has \d+ tokens as it is fed"):
        ruler(tmp_path / "other", lengths="1k", tasks="vt", data=tmp_path / "s")


def test_rulers_own_files_are_read_from_a_folder(tmp_path: Path) -> None:
    paragraphs = [
        {"context": f"Town {n} lies in the north. " * 4, "qas": [{"question": f"Where is town {n}?"} | ANSWERED]}
        for n in range(30)
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    run = ruler(tmp_path / "run", lambda prompts: ["In the NORTH"] * len(prompts), tasks="qa_1", data=tmp_path)
    assert run.scores["tasks"] == {"qa_1": 100.0}
    assert list(run.settings["data"]) == ["squad"]


ANSWERED = {"is_impossible": False, "answers": [{"text": "the north"}]}


def test_a_served_model_answers(server: Any, tmp_path: Path) -> None:  # noqa: F811
    model = connect(server, byte_tokenizer(), text_of(" 1234567"))
    run = e2bench.run(
        "ruler", model, lengths="1k", tasks="niah_single_1", samples=1, out=tmp_path, chat_template="none"
    )
    (line,) = run.rows().to_dict("records")
    assert (
        line["pred"] == " 1234567"
        and line["outputs"][0] not in line["pred"]
        and run.scores["tasks"] == {"niah_single_1": 0.0}
    )
    assert server.bodies[-1]["max_tokens"] == 128
