"""The 21 rows: official templates by hash, lm-eval's own numbers beside ours, early stops that change no score."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from e2bench.errors import DataError, E2BenchError
from e2bench.prompts.task import FIELDS, Task, read_examples, render, templates
from e2bench.scoring.metrics import score_row
from e2bench.tasks.longbench import BY_NAME, LONGBENCH, PROMPT_SHA256, SELECTIONS, select

SHARED = Path(__file__).parents[2] / "shared" / "data" / "longbench"
NAMES = [task.name for task in LONGBENCH]
SETTLED = [task for task in LONGBENCH if task.settled]


def lm_eval_row(name: str) -> dict[str, Any]:
    """lm-eval's own task file, without importing lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    file = Path(spec.submodule_search_locations[0]) / "tasks" / "longbench" / f"{name}.yaml"
    return yaml.load(file.read_text(encoding="utf-8"), Loader)


# ---- prompts


@pytest.mark.parametrize("name", NAMES)
def test_the_template_is_the_official_one(name: str) -> None:
    text = templates([BY_NAME[name]])[name]
    assert hashlib.sha256(text.encode()).hexdigest() == PROMPT_SHA256[name]


@pytest.mark.skipif(not SHARED.is_dir(), reason="LongBench samples are not beside the checkout")
def test_the_hashes_are_those_of_longbenchs_own_file() -> None:
    official = json.loads((SHARED / "templates.sha256.json").read_text(encoding="utf-8"))
    assert {name: official[name] for name in NAMES} == PROMPT_SHA256


def test_six_templates_need_repair_and_no_other() -> None:
    repaired = {task.name for task in LONGBENCH if task.repair}
    assert repaired == {"triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"}


def test_braces_and_newlines_inside_the_texts_are_left_alone() -> None:
    row = {"context": "{input} {{x}} %s\n", "input": "{context}"}
    assert render("A {context}B {input}C", row) == "A {input} {{x}} %s\nB {context}C"
    assert render("A {context}B {input}C", row, with_context=False) == "A B {context}C"


def test_a_prompts_file_takes_the_place_of_lm_evals_copies(tmp_path: Path) -> None:
    file = tmp_path / "dataset2prompt.json"
    file.write_text(json.dumps({"trec": "{context} => {input}"}), encoding="utf-8")
    assert templates([BY_NAME["trec"]], file) == {"trec": "{context} => {input}"}
    with pytest.raises(DataError, match="no prompt for 'lsht'"):
        templates([BY_NAME["lsht"]], file)


@pytest.mark.parametrize("content", ["[]", "{", '{"trec": 1}', '{"trec": "{context} {question}"}', '{"trec": "{"}'])
def test_a_prompts_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(E2BenchError, match=r"prompts\.json"):
        templates([BY_NAME["trec"]], file)


# ---- rows


def test_a_task_that_lm_eval_does_not_have_needs_a_prompts_file() -> None:
    with pytest.raises(E2BenchError, match=r"no LongBench prompt named 'mine'; give one for mine with --prompts"):
        templates([dataclasses.replace(LONGBENCH[0], name="mine")])


@pytest.mark.parametrize("task", LONGBENCH, ids=NAMES)
def test_budget_and_split_agree_with_lm_eval(task: Task) -> None:
    row = lm_eval_row(task.name)
    assert row["generation_kwargs"]["max_gen_toks"] == task.max_new_tokens
    assert row["generation_kwargs"]["do_sample"] is False


def test_the_table_holds_the_official_counts() -> None:
    assert len(LONGBENCH) == 21 and sum(task.samples for task in LONGBENCH) == 4750
    unwrapped = {task.name for task in LONGBENCH if not task.chat_template}
    assert unwrapped == {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    assert {t.name for t in LONGBENCH if t.first_line_only} == {"trec", "triviaqa", "samsum", "lsht"}
    assert [t.name for t in LONGBENCH if t.stop_at_newline] == ["samsum"]
    assert sum(task.in_longbench_e for task in LONGBENCH) == 13
    counts = {name: len(tasks) for name, tasks in SELECTIONS.items()}
    assert counts == {"all": 21, "en": 14, "zh": 5, "code": 2, "e": 13}


def test_longbench_e_uses_the_prompts_and_metrics_of_its_tasks() -> None:
    tasks = select("e")
    assert [task.name for task in tasks] == [f"{task.name}_e" for task in LONGBENCH if task.in_longbench_e]
    assert templates(tasks)["trec_e"] == templates([BY_NAME["trec"]])["trec"]
    assert all(task.metric is BY_NAME[task.template_name].metric for task in tasks)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("trec", ["trec"]),
        ("lcc, trec ,lcc", ["trec", "lcc"]),
        ("code,repobench-p", ["lcc", "repobench-p"]),
        ("all", NAMES),
    ],
)
def test_a_selection_is_in_table_order_and_names_none_twice(names: str, chosen: list[str]) -> None:
    assert [task.name for task in select(names)] == chosen


@pytest.mark.parametrize(("names", "message"), [("hotpotqaa", "did you mean 'hotpotqa'"), (" ,", "names no task")])
def test_a_selection_that_means_nothing_is_refused(names: str, message: str) -> None:
    with pytest.raises(E2BenchError, match=message):
        select(names)
    assert [task.name for task in select("LCC")] == ["lcc"]


# ---- early stops change no score

PIECES = [
    "\n",
    "\n\n",
    " ",
    "x = 1",
    "# note",
    "//",
    "```",
    "`",
    "python",
    "return y",
    "Type: Date",
    "Date",
    "是",
    "体育",
]
PIECES += [
    "\r",
    "\x0b",
    "\x0c",
    "\x85",
    "\u2028",
    "A.",
    "0",
]  # what str.splitlines, but not the scorer, takes for an end
ANSWERS = ["Date", "x = 1", "    return y", "体育", "A. x"]


@given(text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=40))
@example("\n\n# a comment\n\nx = 1\n")
@example("```python\nx = 1\n```")
@example("\n \nDate\nmore")
@pytest.mark.parametrize("task", SETTLED, ids=[task.name for task in SETTLED])
def test_the_text_up_to_the_first_settled_point_scores_as_the_whole(task: Task, text: str) -> None:
    assert task.settled is not None
    cut = next((text[:n] for n in range(len(text) + 1) if task.settled(text[:n])), text)
    classes = ["Date", "体育", "Type"]

    def score(prediction: str) -> float:
        return score_row(task.metric, prediction, ANSWERS, all_classes=classes, first_line_only=task.first_line_only)

    assert score(cut) == score(text)


@pytest.mark.parametrize("task", SETTLED, ids=[task.name for task in SETTLED])
def test_once_settled_a_text_stays_settled(task: Task) -> None:
    assert task.settled is not None
    for text in ("Date\n", "x = 1\n", "\n\nx\n"):
        assert task.settled(text) and task.settled(text + "\n") and task.settled(text + "# `more`")


def test_tasks_without_a_first_line_rule_run_to_their_end() -> None:
    assert {t.group for t in SETTLED} == {"few_shot", "code"} and len(SETTLED) == 6


# ---- examples

GOOD = {"input": "q", "context": "c", "answers": ["a"], "length": 1, "all_classes": ["a"], "_id": "1"}


def lines(folder: Path, *rows: Any) -> Path:
    """trec.jsonl with these rows; a string is written as it is."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "trec.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_examples_are_read_in_order_and_limited(tmp_path: Path) -> None:
    rows = [{**GOOD, "_id": str(n)} for n in range(5)]
    folder = lines(tmp_path, rows[0], "", *rows[1:])
    assert [r["_id"] for r in read_examples(folder, BY_NAME["trec"])] == list("01234")
    assert [r["_id"] for r in read_examples(folder, BY_NAME["trec"], 2)] == ["0", "1"]


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "trec.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n")
    assert read_examples(tmp_path, BY_NAME["trec"])[0]["_id"] == "1"


@pytest.mark.parametrize("field", FIELDS)
def test_a_row_without_a_field_is_named_by_file_and_line(tmp_path: Path, field: str) -> None:
    broken = {name: value for name, value in GOOD.items() if name != field}
    folder = lines(tmp_path, {**GOOD, "_id": "0"}, broken)
    with pytest.raises(DataError, match=rf"trec\.jsonl:2: field '{field}' is missing"):
        read_examples(folder, BY_NAME["trec"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"input": "q"', "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('"text"', "a JSON str"),
        ({**GOOD, "answers": []}, "at least one text"),
        ({**GOOD, "answers": "a"}, "answers must be a list"),
        ({**GOOD, "answers": [1]}, "answers must be a list"),
        ({**GOOD, "context": None}, "context and input must be text"),
        ({**GOOD, "_id": "0"}, "stands twice"),
        ({**GOOD, "all_classes": "Date"}, "all_classes"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, row: Any, message: str) -> None:
    folder = lines(tmp_path, {**GOOD, "_id": "0"}, row)
    with pytest.raises(DataError, match=rf"trec\.jsonl:2: .*{message}"):
        read_examples(folder, BY_NAME["trec"])


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*trec\.jsonl"):
        read_examples(tmp_path, BY_NAME["trec"])
    with pytest.raises(DataError, match="is empty"):
        read_examples(lines(tmp_path), BY_NAME["trec"])


def test_a_surrogate_in_the_text_is_refused_by_file_and_line(tmp_path: Path) -> None:
    folder = lines(tmp_path, json.dumps({**GOOD, "context": "\ud800"}))
    with pytest.raises(DataError, match=r"trec\.jsonl:1: .*surrogate"):
        read_examples(folder, BY_NAME["trec"])


def test_a_classification_row_without_classes_is_refused_before_anything_is_generated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trec\.jsonl:1: .*all_classes"):
        read_examples(lines(tmp_path, {**GOOD, "all_classes": None}), BY_NAME["trec"])
