"""LongBench v2: its answer rule, prompts and cut, both accuracies, its own files, lm-eval's letters."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_server import Server, server, text_of  # noqa: F401 (a fixture)

import e2bench
from e2bench.data.fetch import fetch
from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.letters import ranking, renderer
from e2bench.experiments.questions import filled, read_examples, read_prompts
from e2bench.prompts.truncation import JOINED, fit
from e2bench.reporting.longbench2 import accuracies
from e2bench.reporting.runs import scan
from e2bench.rope.methods import RopeScaling
from e2bench.runs.items import Item
from e2bench.tasks.corpora import LONGBENCH2_PROMPTS
from e2bench.tasks.demo_choices import TELLINGS, write_longbench2
from e2bench.tasks.longbench2 import FIELDS, NEEDED, letter_of, settled

DOMAINS = ("Single-Document QA", "Multi-Document QA")
ASKED = "$Q$ (A) $C_A$ (B) $C_B$ (C) $C_C$ (D) $C_D$"
OWN_PROMPTS = {
    "0shot.txt": f"<text>$DOC$</text> {ASKED} Answer:",
    "0shot_cot.txt": f"<text>$DOC$</text> {ASKED} Think:",
    "0shot_cot_ans.txt": f"{ASKED} Thoughts: $COT$ So:",
    "0shot_no_context.txt": f"{ASKED} Guess:",
}


def example(number: int, **changes: Any) -> dict[str, Any]:
    """A question as data.json holds it; the right letter stands in the context."""
    answer = "ABCD"[number % 4]
    return {
        "_id": f"66f{number}",
        "domain": DOMAINS[number % 2],
        "sub_domain": "Legal",
        "difficulty": ("easy", "hard")[number % 2],
        "length": ("short", "medium", "long")[number % 3],
        "question": f" What is said {number}? ",
        **{f"choice_{letter}": f"{letter.lower()}{number}\n" for letter in "ABCD"},
        "answer": answer,
        "context": f"Begin {number}. The right one is {answer}. " + "The barn is red. " * 40 + f"End {number}.",
    } | changes


def written(folder: Path, rows: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "data", [example(number) for number in range(6)])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, text in OWN_PROMPTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- the demo data


def test_the_demo_questions_have_their_answers_in_the_text(tmp_path: Path) -> None:
    examples = read_examples(write_longbench2(tmp_path, examples=4) / "data.json", None, whole=False)
    read_prompts({name: tmp_path / name for name in NEEDED})
    assert len(examples) == 24 and {e["answer"] for e in examples} == set("ABCD")
    tellings = [re.escape(telling).replace(r"\{0\}", "(?P<person>[A-Z][a-z]+)") for telling in TELLINGS]
    tellings = [t.replace(r"\{1\}", "(?P<thing>[a-z]+)").replace(r"\{2\}", "(?P<place>the [a-z ]+)") for t in tellings]
    for asked in examples:
        found = (match for telling in tellings for match in re.finditer(telling, asked["context"]))
        told = {(match["person"], match["thing"], match["place"]) for match in found}
        assert len(told) == len({fact[:2] for fact in told})  # a thing is in one place
        said = set(re.findall("[A-Za-z]+", asked["question"]))
        of = [fact for fact in told if fact[0] in said]
        if asked["difficulty"] == "easy":
            right = next(place for _, thing, place in of if thing in said)
        else:
            right = str(sum(f" in {place}?" in asked["question"] for _, _, place in of))
        options = [asked[f"choice_{letter}"] for letter in "ABCD"]
        assert asked[f"choice_{asked['answer']}"] == right and options.count(right) == 1


@pytest.mark.parametrize("protocol", [{}, {"no_context": True}, {"scoring": "letters"}])
def test_demo_data_needs_no_network_and_is_marked(tiny_model: Any, tmp_path: Path, protocol: dict[str, Any]) -> None:
    run = e2bench.run("longbench2", tiny_model, data="demo", limit=2, window=512, out=tmp_path / "run", **protocol)
    assert run.settings["data_source"]["kind"] == "demo"
    (row,) = accuracies(scan(tmp_path))[0].rows
    assert (row["data"], row["averages_over"]) == ("demo (made-up), 2 samples", "DEMO DATA")


# ---- the answer's letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The correct answer is (C).", "C"),
        ("So: **The correct answer is (B)**", "B"),
        ("The correct answer is *D* because", "D"),
        ("The correct answer is A. No: The correct answer is (B)", "B"),  # brackets win, wherever they stand
        ("The correct answer is (A). The correct answer is (B)", "A"),
        ("the correct answer is (A)", None),
        ("The correct answer is (E)", None),
        ("The correct answer is Also none", "A"),  # a quirk of the official expression
        ("(A)", None),
        ("", None),
    ],
)
def test_the_letter_is_read_as_longbench_reads_it(response: str, letter: str | None) -> None:
    assert letter_of(response) == letter


PIECES = st.lists(st.sampled_from(["The correct answer is ", "(A)", "(B)", "C", "*", " ", "\n", "(E)"]), max_size=12)


@given(before=PIECES, after=PIECES)
def test_once_settled_no_further_text_changes_the_letter(before: list[str], after: list[str]) -> None:
    text = "".join(before)
    if settled(text):
        assert letter_of(text + "".join(after)) == letter_of(text) is not None


# ---- prompts and the cut


def test_placeholders_are_filled_in_one_after_the_other_and_stripped() -> None:
    asked = example(0, context="  the matrix $Q$ and $C_A$ ", question=" why? ", choice_A=" x ")
    assert filled("$DOC$|$Q$|$C_A$", asked) == "the matrix why? and x|why?|x"  # inside the document too
    assert filled("$Q$|$COT$", asked, "a thought") == "why?|a thought"


def test_both_ends_are_decoded_together_and_nothing_of_the_limit_is_lost(tiny_model: Any) -> None:
    text = "Grüße aus Köln. " * 30
    ids = tiny_model.encode(text)
    limit = 41
    cut = fit(text, tiny_model, limit=limit, room=1000, mode=JOINED)
    kept = ids[: limit // 2] + ids[-limit // 2 :]  # pred.py's own expression: 20 and 21
    assert len(kept) == limit and cut.text == tiny_model.decode(kept) and cut.truncated
    assert fit(text, tiny_model, limit=len(ids), room=len(ids), mode=JOINED).ids == ids


def test_prompts_are_known_by_their_hash_and_other_ones_are_said_to_be_so(prompts: Path) -> None:
    paths = {name: prompts / name for name in OWN_PROMPTS}
    texts, own = read_prompts(paths)
    assert texts == OWN_PROMPTS and set(own) == set(OWN_PROMPTS)
    with pytest.raises(DataError, match=r"0shot\.txt has no \$C_B\$"):
        (prompts / "0shot.txt").write_text("$DOC$ $Q$ $C_A$ $C_C$ $C_D$")
        read_prompts({"0shot.txt": prompts / "0shot.txt"})
    with pytest.raises(DataError, match=r"0shot_cot\.txt cannot be read: .*--prompts"):
        (prompts / "0shot_cot.txt").unlink()
        read_prompts({"0shot_cot.txt": prompts / "0shot_cot.txt"})


def test_the_official_prompts_are_taken_as_such() -> None:
    try:
        paths = {name: fetch(archive) for name, archive in LONGBENCH2_PROMPTS.items()}
    except DataError:
        pytest.skip("the official prompts are not here: e2bench data longbench2 fetches them")
    texts, own = read_prompts(paths)
    assert own == {} and all(placeholder in texts[name] for name, needed in NEEDED.items() for placeholder in needed)
    assert not any(text.endswith("\n") for text in texts.values())


# ---- runs


def test_a_run_keeps_the_window_grows_and_holds_longbenchs_fields(
    cli: Callable[..., Any], tiny_folder: Path, data: Path, prompts: Path, tmp_path: Path
) -> None:
    shared = ("--model", tiny_folder, "--data", data, "--prompts", prompts, "--window", 300, "--out", tmp_path / "run")
    first = cli("longbench2", *shared, "--limit", 1)
    assert first.code == 0 and "prompts of your own" in first.err and "1 of 503" in first.out
    before = lines_of(tmp_path / "run" / "longbench2.jsonl")
    assert cli("longbench2", *shared, "--limit", 3).code == 0
    lines = lines_of(tmp_path / "run" / "longbench2.jsonl")
    assert lines[:1] == before and [line["_id"] for line in lines] == ["66f0", "66f1", "66f2"]
    assert all(line["kept_tokens"] + 128 <= 300 and line["truncated"] for line in lines)
    assert list(lines[0])[: len(FIELDS)] == list(FIELDS) and {"response", "pred", "judge"} <= lines[0].keys()
    assert lines[0]["head"].startswith("<text>Begin 0") and lines[0]["tail"].endswith("Answer:")
    resolved = json.loads((tmp_path / "run" / "run.json").read_text())["resolved"]
    assert resolved["prompts"].keys() == {"0shot.txt"} and resolved["scoring"] == "official"
    refused = cli("longbench2", *shared, "--no-context")
    assert refused.code == 2 and "context" in refused.err


def run_function(answer: Any, model: Any, data: Path, prompts: Path, out: Path, **settings: Any) -> e2bench.Run:
    shared = {"data": data, "prompts": prompts, "window": "4k", "tokenizer": model.tokenizer, **settings}
    return e2bench.run("longbench2", answer, **shared, out=out)


def reader(prompts: list[str]) -> list[str]:
    """Answers from what the document says; without one, not at all."""
    return [
        f" The correct answer is ({p.split('The right one is ')[1][0]}) " if "The right one is" in p else "?"
        for p in prompts
    ]


def test_a_function_is_scored_with_and_without_the_document(
    tiny_model: Any, data: Path, prompts: Path, tmp_path: Path
) -> None:
    whole = run_function(reader, tiny_model, data, prompts, tmp_path / "whole")
    without = run_function(reader, tiny_model, data, prompts, tmp_path / "without", no_context=True)
    assert whole.scores["tasks"] == {"longbench2": 100} and without.scores["tasks"] == {"longbench2": 0}
    assert without.scores["averages"]["compensated"]["Overall"] == 25
    assert whole.rows()["response"].iloc[0] == "The correct answer is (A)"
    assert [run.scores["details"]["longbench2"]["protocol"] for run in (whole, without)] == [
        "zero-shot",
        "without context",
    ]
    compared = e2bench.compare(without.folder, whole.folder, allow=["context"])["tasks"]["longbench2"]
    assert (compared["samples"], compared["difference"], compared["better"]) == (6, 100, 6)


def test_thoughts_are_asked_for_first_and_the_answer_follows_from_them(
    tiny_model: Any, data: Path, prompts: Path, tmp_path: Path
) -> None:
    seen: list[str] = []

    def thinker(asked: list[str]) -> list[str]:
        seen.extend(asked)
        return [
            f" The correct answer is ({prompt.split('it says ')[1][0]})"
            if "So:" in prompt
            else f"\n it says {prompt.split('The right one is ')[1][0]} \n"
            for prompt in asked
        ]

    run = run_function(thinker, tiny_model, data, prompts, tmp_path / "cot", cot=True, limit=2)
    line = lines_of(run.folder / "longbench2.jsonl")[0]
    assert run.scores["tasks"]["longbench2"] == 100
    assert run.scores["details"]["longbench2"]["protocol"] == "chain of thought"
    assert line["response_cot"] == "it says A" and line["response"] == "The correct answer is (A)"
    assert "What is said 0? (A) a0 (B) b0 (C) c0 (D) d0 Thoughts: it says A So:" in seen
    assert (line["finish"], line["finish_first"]) == ("eos", "eos")
    thoughts, answer = (tiny_model.encode(t, special_tokens=False) for t in ("\n it says A \n", " " + line["response"]))
    assert line["new_tokens"] == len(thoughts) + len(answer)
    assert line["prompt_tokens"] == len(tiny_model.encode(filled(OWN_PROMPTS["0shot_cot.txt"], example(0))))


def test_a_served_model_answers(
    server: Server,  # noqa: F811
    cli: Callable[..., Any],
    tiny_folder: Path,
    data: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    server.answers = [text_of("The correct answer", " is (A)")]
    ended = cli(
        *("longbench2", "--model", server.url, "--tokenizer", tiny_folder, "--data", data, "--prompts", prompts),
        *("--limit", 4, "--input-limit", 200, "--out", tmp_path / "run", "--native-window", 1024),
    )
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["tasks"] == {"longbench2": 25}
    assert [body["max_tokens"] for body in server.bodies].count(128) == 4
    letters = cli(
        "longbench2", "--model", server.url, "--tokenizer", tiny_folder, "--data", data, "--scoring", "letters"
    )
    assert letters.code == 2 and "gives texts, not the losses" in letters.err


# ---- lm-eval's letters


def test_letters_are_ranked_by_lm_evals_own_numbers(tiny_model: Any, data: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import apply_template

    from e2bench.prompts.task import lm_eval_file

    window = 300
    text = lm_eval_file("longbench2/_longbench_common_yaml")["doc_to_text"]
    rows = [example(0, context="Short."), example(1)]  # the second is longer than the window
    asked = [apply_template(text, {**row, "choices": [row[f"choice_{x}"] for x in "ABCD"]}) for row in rows]
    assert [renderer()(row) for row in rows] == asked
    theirs = HFLM(pretrained=tiny_model.hf, tokenizer=tiny_model.tokenizer, max_length=window, device="cpu")
    items = [Item("x", row["_id"], 1, "", pair) for row, pair in zip(rows, zip(rows, asked, strict=True), strict=True)]
    with tiny_model.plain_attention():
        pairs = [[theirs._encode_pair(prompt, f" {letter}") for letter in "ABCD"] for prompt in asked]
        given = [[(("", ""), *pair) for pair in of_row] for of_row in pairs]
        wanted = [[score for score, _ in theirs._loglikelihood_tokens(of_row, disable_tqdm=True)] for of_row in given]
    found = [row for _, row in ranking(tiny_model, RopeScaling("none"), window)(items, None)]
    assert [row["truncated"] for row in found] == [False, True]
    for row, scores in zip(found, wanted, strict=True):
        assert row["choices"] == pytest.approx(scores, abs=1e-4)
        assert row["pred"] == "ABCD"[max(range(4), key=scores.__getitem__)]


def test_letters_are_another_score_under_another_name(
    tiny_model: Any, data: Path, prompts: Path, tmp_path: Path
) -> None:
    letters = e2bench.run("longbench2", tiny_model, data=data, scoring="letters", limit=2, out=tmp_path / "l")
    official = run_function(reader, tiny_model, data, prompts, tmp_path / "o", limit=2)
    assert letters.scores["tasks"].keys() == {"longbench2-letters"}
    assert [path.name for path in letters.folder.glob("*.jsonl")] == ["longbench2-letters.jsonl"]
    with pytest.raises(DataError, match="no task in common"):
        e2bench.compare(letters.folder, official.folder)
    e2bench.report([letters.folder, official.folder], out=tmp_path / "report")
    for name in ("longbench2", "longbench2-letters"):
        (row,) = csv.DictReader((tmp_path / "report" / f"{name}.csv").read_text().splitlines())
        assert row["averages_over"] == "ONLY 2 OF 503 SAMPLES" and row["run"] == {"longbench2": "o"}.get(name, "l")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "not the official number" in page and "temperature 0.1" in page


# ---- LongBench v2's own files

RESPONSES = ["The correct answer is (A)", "The correct answer is (B)", "none", "**The correct answer is D**", "", "x"]


def official_line(number: int, response: str, **changes: Any) -> dict[str, Any]:
    """A line as LongBench's pred.py writes it."""
    row = example(number)
    pred = letter_of(response)
    row["context"] = row["context"][:1000]
    return {**row, "response": response, "pred": pred, "judge": pred == row["answer"], **changes}


def official(folder: Path, lines: list[dict[str, Any]], name: str = "GLM-4-9B-Chat.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def result_py(lines: list[dict[str, Any]], *, compensated: bool) -> dict[str, float]:
    """What LongBench's result.py counts, unrounded."""

    def share(chosen: list[dict[str, Any]]) -> float:
        return 100 * sum(0.25 if compensated and c["pred"] is None else int(c["judge"]) for c in chosen) / len(chosen)

    parts = {"Overall": lines}
    parts |= {name: [x for x in lines if x["difficulty"] == name.lower()] for name in ("Easy", "Hard")}
    parts |= {name: [x for x in lines if x["length"] == name.lower()] for name in ("Short", "Medium", "Long")}
    return {name: share(chosen) for name, chosen in parts.items()}


def test_its_own_files_score_as_its_own_script_counts_them(cli: Callable[..., Any], tmp_path: Path) -> None:
    lines = [official_line(number, response) for number, response in enumerate(RESPONSES)]
    folder = official(tmp_path / "results" / "glm", lines)
    scored = cli("score", folder, "--json")
    averages = json.loads(scored.out)["averages"]
    assert averages["plain"] == pytest.approx(result_py(lines, compensated=False))
    assert averages["compensated"] == pytest.approx(result_py(lines, compensated=True))
    details = e2bench.score(folder)["details"]["longbench2"]
    assert details["groups"]["domain"][DOMAINS[1]]["scored"] == 3 and details["unanswered"] == 3
    assert (details["left_out"], details["protocol"]) == (497, "not recorded")
    e2bench.report(tmp_path / "results", out=tmp_path / "report")
    (row,) = csv.DictReader((tmp_path / "report" / "longbench2.csv").read_text().splitlines())
    assert (row["model"], row["Overall"], row["compensated"]) == ("glm", "50.0", "62.5")
    assert "LongBench v2, 6 of 503 samples" in row["data"]
    groups = csv.DictReader((tmp_path / "report" / "longbench2-groups.csv").read_text().splitlines())
    assert {(row["group"], row["value"]) for row in groups} >= {("all", "all"), ("domain", DOMAINS[0])}


def test_files_with_thoughts_are_told_and_a_letter_read_by_another_rule_is_said(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = official(tmp_path / "cot", [official_line(0, "(A)", response_cot="hm", pred="A", judge=True)])
    said = cli("score", folder)
    assert said.code == 0 and "1 lines have another `pred` than their response gives" in said.err
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["tasks"] == {"longbench2": 0}
    assert scores["details"]["longbench2"]["protocol"] == "chain of thought"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([official_line(0, "x"), official_line(0, "y")], "two lines have the _id '66f0'"),
        ([official_line(0, "x", answer="E")], "answer is 'E'; needed is one of A, B, C, D"),
        ([official_line(0, "x") | {"response": None}], "response is None; needed is a text"),
        ([official_line(0, "x", difficulty="harder")], "needed is one of easy, hard"),
        ([official_line(0, "x") | {"response": 5}], "response is 5"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, lines: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        e2bench.score(official(tmp_path / "a", lines))
    assert "\n" not in str(caught.value) and "GLM-4-9B-Chat.jsonl" in str(caught.value)


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        official(tmp_path / "results", [official_line(0, "x")], name)
    with pytest.raises(DataError, match=r"holds 2 files \(a, b.*one file of lines"):
        e2bench.score(tmp_path / "results")


# ---- what is refused


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([example(0, answer=float("nan"))], "question 1: answer is nan; needed is one of A, B, C, D"),
        ([example(0), {"_id": "x"}], "question 2: field 'domain' is missing"),
        ([{k: v for k, v in example(1).items() if k != "choice_C"}], "question 1: field 'choice_C' is missing"),
        ([example(0, choice_C=None)], "question 1: choice_C is None; needed is a text"),
        ([example(0), example(0)], "question 2: _id '66f0' is there twice"),
        ([example(0, length=4000)], "length is 4000; needed is one of short, medium, long"),
        ([example(0, context="\ud800")], "half a surrogate pair"),
        ([], "is empty"),
        (["text"], "question 1 is a JSON str"),
        ({"rows": []}, "a JSON dict, needed is a list"),
    ],
)
def test_bad_data_is_one_line(tmp_path: Path, rows: Any, said: str) -> None:
    folder = written(tmp_path / "data", rows)
    with pytest.raises(DataError) as caught:
        read_examples(folder / "data.json", None, whole=False)
    assert said in str(caught.value) and "\n" not in str(caught.value) and "data.json" in str(caught.value)


def test_the_published_file_must_be_whole(data: Path) -> None:
    with pytest.raises(DataError, match="holds 6 questions, LongBench v2 has 503"):
        read_examples(data / "data.json", 2, whole=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cot": True, "no_context": True}, "two protocols of LongBench v2"),
        ({"scoring": "letters", "cot": True}, "without --cot; leave that out"),
        ({"scoring": "letters", "input_limit": 100}, "without --input-limit"),
        ({"scoring": "letters", "scale": "per-input"}, "one scale a run"),
        ({"scoring": "letter"}, "did you mean 'letters'"),
        ({"window": 100}, "longbench2: window 100 is too small"),
    ],
)
def test_settings_that_are_no_protocol_are_refused(
    tiny_model: Any, data: Path, prompts: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    given = {} if options.get("scoring") == "letters" else {"prompts": prompts}
    with pytest.raises(E2BenchError, match=said):
        e2bench.run("longbench2", tiny_model, data=data, **given, **options, out=tmp_path / "run")


def test_without_a_network_it_is_said_what_to_give(
    cli: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for arguments in (("longbench2",), ("data", "longbench2"), ("longbench2", "--data", data)):
        ended = cli(*arguments)
        assert ended.code == 2 and len(ended.err.strip().splitlines()) == 1, ended.err
        assert "--prompts FOLDER with the" in ended.err
        assert ("--data FOLDER" in ended.err) == ("--data" not in arguments)
