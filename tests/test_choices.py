"""Short benchmarks: likelihoods equal a plain pass over each text, templates, and lm-eval's own numbers untouched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from e2bench.cli import app
from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.experiments.choices import answering, items_of, read_rows_of, rows_together
from e2bench.experiments.stored import score_folder
from e2bench.files import read_rows
from e2bench.models.local import Model
from e2bench.reporting.runs import scan
from e2bench.reporting.tables import table_7
from e2bench.rope.methods import RopeScaling
from e2bench.runs.folder import RunFolder
from e2bench.runs.manifest import manifest
from e2bench.runs.processes import Processes
from e2bench.runs.runner import run as run_items
from e2bench.tasks.short import SHORT, Choice, answer_of, answered, select

RACE = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "short"
ROWS = {
    "piqa": {"goal": "boil water", "sol1": "heat a pot", "sol2": "paint a pot", "label": 0},
    "wsc": {
        "text": "Anna met Clara when she was ill, and helped.",
        "span1_text": "Clara",
        "span2_text": "she",
        "span2_index": 4,
        "label": 1,
    },
    "wsc273": {
        "text": "Anna lost the key. Her coat was wet.",
        "pronoun": "Her",
        "pronoun_loc": 19,
        "options": ["Anna", "the aunt's"],
        "label": 0,
    },
    "hellaswag": {
        "activity_label": "Sky",
        "ctx_a": "Look up.",
        "ctx_b": "the sky is",
        "ctx": "The sky is",
        "endings": ["blue.", "a fork.", "tired.", "loud."],
        "label": "0",
    },
    "social_iqa": {
        "context": "Ben was ill.",
        "question": "What will Ben do?",
        "answerA": "rest",
        "answerB": "run",
        "answerC": "sing",
        "label": "1",
    },
    "winogrande": {
        "sentence": "The violin stayed in the house because _ was old.",
        "option1": "the violin",
        "option2": "the sky",
        "answer": "1",
    },
    "nq_open": {"question": "where does anna keep the violin", "answer": ["in the old house", "the house"]},
}


def of(name: str):
    return next(task for task in SHORT if task.name == name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One folder of all benchmarks: two rows each, and five of RACE a level."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, row in ROWS.items():
        if name != "wsc":
            (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    for file in RACE.glob("race_*.jsonl"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("scale", [1, 4])
def test_likelihoods_over_a_shared_prefix_equal_a_pass_over_each_whole_text(tiny_model: Model, scale: int) -> None:
    texts = ["The grass is green. " * 40 + ending for ending in ("Here we go.", "Here we are", "No")]
    ids = [tiny_model.encode(text) for text in texts]
    with tiny_model.under(RopeScaling("linear", scale), 1024):
        found = tiny_model.option_scores(ids)
        want = [-float(tiny_model.token_nll(torch.tensor([one])).sum()) for one in ids]
    assert [count for _, count in found] == [len(one) - 1 for one in ids]
    assert [total for total, _ in found] == pytest.approx(want, rel=1e-5)


def test_options_without_a_common_beginning_are_scored_alike(tiny_model: Model) -> None:
    ids = [[5, 6, 7, 8], [9, 6, 7], [5, 6, 7, 8]]
    found = tiny_model.option_scores(ids)
    want = [-float(tiny_model.token_nll(torch.tensor([one])).sum()) for one in ids]
    assert [total for total, _ in found] == pytest.approx(want, rel=1e-5)
    with pytest.raises(DataError, match="fewer than two tokens"):
        tiny_model.option_scores([[5], [6, 7]])


def test_templates_put_each_option_into_the_whole_text() -> None:
    assert of("piqa").make(ROWS["piqa"]).texts == ("boil water heat a pot", "boil water paint a pot")
    assert of("hellaswag").make(ROWS["hellaswag"]).texts[1] == "The sky is a fork."
    made = of("winogrande").make(ROWS["winogrande"])
    assert made.texts[1] == "The violin stayed in the house because the sky was old."
    assert made.gold == 0
    siqa = of("siqa").make(ROWS["social_iqa"])
    assert siqa.texts[2] == "Ben was ill.\nQuestion: What will Ben do?\nA. rest\nB. run\nC. sing\nAnswer: C"
    assert siqa.labels[siqa.gold] == "A"


def test_wsc_puts_candidates_in_for_the_pronoun() -> None:
    assert of("wsc").make(ROWS["wsc"]) == Choice(
        ("Anna met Clara when she was ill, and helped.", "Anna met Clara when Clara was ill, and helped."),
        ("other", "Clara"),
        1,
    )
    assert of("wsc273").make(ROWS["wsc273"]).texts == (
        "Anna lost the key. Anna's coat was wet.",
        "Anna lost the key. The aunt's coat was wet.",
    )
    end = {"text": "I saw Ben. Anna saw him.", "pronoun": "him", "pronoun_loc": 20, "options": ["Ben", "The boy"]}
    made = of("wsc273").make(end | {"label": 0})
    assert made.texts == ("I saw Ben. Anna saw Ben.", "I saw Ben. Anna saw the boy.")


def test_ten_rows_of_race_have_letters_and_gold_answers() -> None:
    rows = [row for name in ("race_high", "race_middle") for row in read_rows_of(RACE, of(name), None)]
    assert len(rows) == 10
    for row in rows:
        made = of("race_high").make(row)
        assert made.labels == ("A", "B", "C", "D")
        assert all(text.endswith(f"Answer: {letter}") for text, letter in zip(made.texts, "ABCD", strict=True))
        assert made.labels[made.gold] == row["answer"]


def test_a_generated_answer_is_its_first_line_behind_answer_is() -> None:
    assert answer_of("\n The answer is: Paris.\nQuestion: more") == "Paris."
    assert answered(" The Old House!", ("old house",)) == (True, True)
    assert answered("in the old house of Anna", ("The old house",)) == (False, True)
    assert answered("", ("old house",)) == (False, False)


def test_names_of_tasks_are_ours_the_files_or_lm_evals() -> None:
    assert [task.name for task in select("nq_open,piqa,social_iqa")] == ["piqa", "siqa", "naturalquestions"]
    assert select("siqa") == select("social_iqa")
    with pytest.raises(UnknownName, match="did you mean 'piqa'"):
        select("pika")


def test_rows_that_do_not_fit_are_named_with_file_and_line(tmp_path: Path) -> None:
    for bad, message in (
        ("{", "piqa.jsonl:1: not a JSON object"),
        ('{"goal": "x"}', "field 'sol1' is missing"),
        (json.dumps(ROWS["piqa"] | {"label": 7}), "names none of the 2 options"),
        (json.dumps(ROWS["piqa"] | {"goal": 3}), "not a row of piqa"),
        ("", "is empty"),
    ):
        (tmp_path / "piqa.jsonl").write_text(bad + "\n")
        with pytest.raises(DataError, match=message):
            read_rows_of(tmp_path, of("piqa"), None)


def test_lines_hold_every_score_and_the_average_needs_every_task(tiny_model: Model, tmp_path: Path) -> None:
    work = [(of("piqa"), [ROWS["piqa"]] * 3), (of("naturalquestions"), [ROWS["nq_open"]])]
    folder = tmp_path / "run"
    described = manifest("short", settings={}, resolved={"all_tasks": ["piqa", "naturalquestions", "wsc"]})
    scaling = RopeScaling("linear", 2)
    with RunFolder(folder, described) as run:
        together = rows_together(tiny_model, scaling, None)
        measure = answering(tiny_model, scaling)
        run_items(items_of(work), measure, run, batch_size=together, processes=Processes(), title="short")
    lines = read_rows(folder / "piqa.jsonl")
    assert [line["_id"] for line in lines] == ["piqa-0", "piqa-1", "piqa-2"]
    best = max((0, 1), key=lines[0]["choices"].__getitem__)
    assert lines[0]["prediction"] == ("heat a pot", "paint a pot")[best]
    assert lines[0]["correct"] == (best == 0)
    scores = score_folder(folder)
    assert set(scores["tasks"]) == {"piqa", "naturalquestions"}
    assert scores["averages"] == {"Avg.": None}


def invoke(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception


def test_the_paper_suite_runs_on_local_data_and_averages_eight_columns(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (data / "wsc.jsonl").write_text(json.dumps(ROWS["wsc"]) + "\n")
    for level in ("high", "middle"):
        rows = [json.loads(line) for line in (RACE / f"race_{level}.jsonl").read_text().splitlines()]
        lines = (json.dumps({**row, "example_id": f"{level}{at}.txt"}) for at, row in enumerate(rows))
        (data / f"race_{level}.jsonl").write_text("\n".join(lines) + "\n")
    invoke("short", "--model", tiny_folder, "--data", data, "--scale", "4", "--limit", "2", "--out", out)
    scores = json.loads((out / "scores.json").read_text())
    assert len(scores["tasks"]) == 9
    of_table_7 = [score for name, score in scores["tasks"].items() if name != "wsc273"]
    assert scores["averages"]["Avg."] == pytest.approx(sum(of_table_7) / 8)
    run = json.loads((out / "run.json").read_text())
    assert run["rope"]["factor"] == 4 and "own_rows" not in run


@pytest.mark.parametrize("suite", ["paper", pytest.param("lm-eval", marks=pytest.mark.slow)])
def test_demo_rows_need_no_network_and_are_marked(tiny_folder: Path, tmp_path: Path, suite: str) -> None:
    tasks = [
        task.name for task in SHORT if suite == "paper" or task.name in ("wsc", "wsc273", "hellaswag", "race_high")
    ]
    out = tmp_path / "run"
    given = ("--suite", suite, "--tasks", ",".join(tasks))
    invoke("short", "--model", tiny_folder, "--data", "demo", *given, "--out", out)
    run = json.loads((out / "run.json").read_text())
    assert run["data_source"]["kind"] == "demo" and "own_rows" not in run
    scores = json.loads((out / "scores.json").read_text())
    assert [entry["scored"] for entry in scores["details"].values()] == [4] * len(tasks)
    (row,) = (row for row in table_7(scan(out))[0].rows if row["source"] == "measured")
    assert row["data"] == f"demo (made-up), {4 * len(tasks)} samples"
    assert row["averages_over"] == ("DEMO DATA" if suite == "paper" else "")


def test_wsc273_and_rows_of_ones_own_share_no_column_and_no_average_with_the_papers(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    invoke("short", "--model", tiny_folder, "--data", data, "--limit", "2", "--out", out)
    assert json.loads((out / "run.json").read_text())["own_rows"] == ["race_high", "race_middle"]
    assert json.loads((out / "scores.json").read_text())["averages"] == {"Avg.": None}
    (row,) = (row for row in table_7(scan(out))[0].rows if row["source"] == "measured")
    assert {"WSC273", "Race-H (own rows)", "Race-M (own rows)"} <= set(row)
    assert not {"WSC", "Race-H", "Race-M"} & set(row) and row["Avg."] is None
    assert row["averages_over"] == ""  # there is none
    assert row["data"].startswith("short benchmarks, 16 of ")


@pytest.mark.parametrize(
    "names",
    ["piqa,nq_open", pytest.param("piqa,wsc273,hellaswag,siqa,winogrande,race_high,nq_open", marks=pytest.mark.slow)],
)
def test_lm_evals_numbers_are_those_of_lm_eval_alone_on_the_exported_scale(
    tiny_folder: Path, data: Path, tmp_path: Path, names: str
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from e2bench.experiments.harness import task_manager

    out, exported, scratch = tmp_path / "run", tmp_path / "exported", tmp_path / "yaml"
    model = shutil.copytree(tiny_folder, tmp_path / "model")  # lm-eval wants room for 256 new tokens
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    common = ("--model", model, "--scale", "2")
    invoke("short", *common, "--suite", "lm-eval", "--data", data, "--tasks", names, "--out", out)
    invoke("export", *common, "--out", exported)
    scratch.mkdir()
    tasks = select(names)
    alone = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=1),
        tasks=[task.lm_eval for task in tasks],
        task_manager=task_manager(tasks, data, scratch),
    )
    ours = json.loads((out / "lm-eval.json").read_text())
    scores = json.loads((out / "scores.json").read_text())
    assert set(ours) == set(alone["results"]) == set(scores["tasks"])
    for name, found in ours.items():
        for key, value in found.items():
            if key != "version":
                assert value == pytest.approx(alone["results"][name][key], rel=1e-9), (name, key)
        metric = "exact_match,remove_whitespace" if name == "nq_open" else "acc,none"
        assert scores["tasks"][name] == pytest.approx(100 * found[metric])
    assert [line["correct"] for line in read_rows(out / "piqa.jsonl")] == [
        sample["acc"] for sample in alone["samples"]["piqa"]
    ]


def test_a_window_that_lm_eval_cannot_use_is_one_line(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("--suite", "lm-eval", "--data", data, "--tasks", "nq_open", "--out", tmp_path / "run")
    with pytest.raises(E2BenchError, match=r"lm-eval refuses nq_open: .*256"):
        invoke("short", "--model", tiny_folder, *arguments)


def test_what_is_missing_is_said_in_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    common = ("short", "--model", tiny_folder)
    with pytest.raises(UnknownName, match="suite"):
        invoke(*common, "--suite", "papers")
    with pytest.raises(DataError, match="no folder"):
        invoke(*common, "--data", tmp_path / "none")
    with pytest.raises(DataError, match=r"holds none of piqa, .*"):
        invoke(*common, "--data", tmp_path)
    with pytest.raises(DataError, match=r"has no hellaswag\.jsonl"):
        invoke(*common, "--data", tmp_path, "--tasks", "hellaswag")
    with pytest.raises(E2BenchError, match="is a list"):
        invoke(*common, "--scale", "2,4")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared samples are not here")
def test_every_shared_sample_makes_texts() -> None:
    seen = 0
    for task in SHORT:
        if (SHARED / f"{task.file}.jsonl").exists():
            rows = read_rows_of(SHARED, task, None)
            seen += len(rows)
            assert all(len(set(task.make(row).texts)) > 1 for row in rows if task.name != "naturalquestions")
    assert seen == 773
