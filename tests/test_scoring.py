"""Averages under three names, intervals, folders of ours and of LongBench's own layout."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2bench.errors import DataError
from e2bench.experiments.base import EXPERIMENTS, experiment
from e2bench.experiments.stored import current_scores, score_folder, write_scores
from e2bench.scoring.averages import averages, by_length, score_predictions
from e2bench.scoring.statistics import interval, mean
from e2bench.tasks.longbench import BY_NAME, LONGBENCH

PREDICTIONS = Path(__file__).parents[2] / "shared" / "data" / "predictions" / "minilongbench"

# GPT-3.5-Turbo-16k, LongBench's README at THUDM/LongBench 2e00731
GPT35 = {
    "narrativeqa": 23.6, "qasper": 43.3, "multifieldqa_en": 52.3, "multifieldqa_zh": 61.2,
    "hotpotqa": 51.6, "2wikimqa": 37.7, "musique": 26.9, "dureader": 28.7,
    "gov_report": 29.5, "qmsum": 23.4, "multi_news": 26.7, "vcsum": 16.0,
    "trec": 68.0, "triviaqa": 91.4, "samsum": 41.7, "lsht": 29.2,
    "passage_count": 4.5, "passage_retrieval_en": 71.0, "passage_retrieval_zh": 77.5,
    "lcc": 54.7, "repobench-p": 53.6,
}  # fmt: skip


def test_longbenchs_scheme_gives_the_averages_of_its_readme() -> None:
    found = averages(GPT35, LONGBENCH)["longbench"]
    # its README: 44.0 EN, 44.5 ZH, 44.7 All, from task scores of one decimal
    assert found["EN"] == pytest.approx(44.0, abs=0.05)
    assert found["ZH"] == pytest.approx(44.45, abs=0.05)
    assert found["All"] == pytest.approx(44.7, abs=0.05)


def test_the_category_scheme_leaves_code_out_of_chinese() -> None:
    found = averages(GPT35, LONGBENCH)
    by_hand = (61.2 + 28.7 + 16.0 + 29.2 + 77.5) / 5  # one Chinese task a category
    assert found["category"]["ZH"] == pytest.approx(by_hand)
    assert found["category"]["EN"] == found["longbench"]["EN"]


def test_the_papers_scheme_is_a_plain_mean_without_synthetic_tasks() -> None:
    found = averages(GPT35, LONGBENCH)["e2"]
    synthetic = {"passage_count", "passage_retrieval_en", "passage_retrieval_zh"}
    zh = ["multifieldqa_zh", "dureader", "vcsum", "lsht"]
    en = [name for name in GPT35 if name not in synthetic and name not in zh]
    assert (len(en), len(zh)) == (14, 4)
    assert found["EN"] == pytest.approx(sum(GPT35[n] for n in en) / 14)
    assert found["ZH"] == pytest.approx(sum(GPT35[n] for n in zh) / 4)
    assert found["All"] == pytest.approx((14 * found["EN"] + 4 * found["ZH"]) / 18)


MISSING = {
    "trec": "e2 EN, e2 All, longbench EN, longbench All, category EN, category All",
    "lsht": "e2 ZH, e2 All, longbench ZH, longbench All, category ZH, category All",
    "passage_count": "longbench EN, longbench All, category EN, category All",
    "lcc": "e2 EN, e2 All, longbench EN, longbench ZH, longbench All, category EN, category All",
}


@pytest.mark.parametrize(("missing", "null"), MISSING.items())
def test_an_average_with_a_task_missing_is_null_and_no_other(missing: str, null: str) -> None:
    found = averages({name: score for name, score in GPT35.items() if name != missing}, LONGBENCH)
    nulls = [f"{scheme} {c}" for scheme, columns in found.items() for c, value in columns.items() if value is None]
    assert ", ".join(nulls) == null


# ---- rows and intervals


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_interval_is_inside_the_values_and_the_same_each_time(values: list[float]) -> None:
    bounds = interval(values)
    assert bounds is not None and interval(values) == bounds
    low, high = bounds
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


def test_the_interval_of_many_values_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 4000)
    bounds = interval(values)
    assert bounds is not None
    half = 1.96 * values.std() / np.sqrt(len(values))  # central limit theorem
    assert bounds == pytest.approx([values.mean() - half, values.mean() + half], abs=0.05 * half)
    assert bounds == interval(values, seed=0) != interval(values, seed=1)  # stored intervals are those of seed 0


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert interval([0.5]) is None and interval([]) is None and mean([]) is None


def prediction(**fields: Any) -> dict[str, Any]:
    """A line of LongBench's own scripts."""
    return {"pred": "Date", "answers": ["Date"], "all_classes": ["Date", "Place"], "length": 5, **fields}


def test_failed_rows_are_left_out_of_the_score() -> None:
    rows = [prediction(), prediction(pred="no"), prediction(pred="", finish="error")]
    assert score_predictions(rows, BY_NAME["trec"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"pred": None}, "pred must be text"),
        ({"answers": "Date"}, "answers a list"),
        ({"answers": [None]}, "answers"),
        ({"all_classes": None}, "all_classes"),
        ({"all_classes": [1]}, "all_classes"),
    ],
)
def test_a_line_that_cannot_be_scored_is_named(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_predictions([prediction(), prediction(**broken)], BY_NAME["trec"], where="x/trec.jsonl")


@pytest.mark.parametrize("field", ["pred", "answers", "all_classes"])
def test_a_line_without_a_field_is_named(field: str) -> None:
    row = {name: value for name, value in prediction().items() if name != field}
    with pytest.raises(DataError, match=rf"^x/trec\.jsonl.* 2 has no '{field}'; expected pred, answers, all_classes$"):
        score_predictions([prediction(), row], BY_NAME["trec"], where="x/trec.jsonl")
    with pytest.raises(DataError, match=r"^trec: prediction 1"):
        score_predictions([row], BY_NAME["trec"])


# ---- folders


def folder_of(path: Path, **files: list[dict[str, Any]]) -> Path:
    """A folder of prediction files."""
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"{name.replace('_P', '-p')}.jsonl").write_text(text, encoding="utf-8")
    return path


def test_longbenchs_own_folder_is_scored_row_by_row_even_with_equal_rows(tmp_path: Path) -> None:
    rows = [prediction(), prediction(), prediction(pred="Place\nDate")]  # the first line alone counts
    found = score_folder(folder_of(tmp_path, trec=rows, hotpotqa=[prediction(pred="the date.")]))
    assert found["tasks"] == {"trec": pytest.approx(200 / 3), "hotpotqa": 100.0}
    details = found["details"]["trec"]
    assert (details["scored"], details["expected"], details["left_out"], details["failed"]) == (3, 200, 197, 0)
    assert found["averages"]["e2"] == {"EN": None, "ZH": None, "All": None}
    assert not (tmp_path / "scores.json").exists()


def test_scores_are_written_whole(tmp_path: Path) -> None:
    scores = score_folder(folder_of(tmp_path, trec=[prediction()]))
    content = (tmp_path / "trec.jsonl").read_bytes()
    of = {"trec.jsonl": hashlib.sha256(content.rstrip()).hexdigest()}
    assert json.loads(write_scores(tmp_path, scores).read_text(encoding="utf-8")) == {**scores, "of": of}


def test_scores_of_other_lines_are_made_again(tmp_path: Path) -> None:
    write_scores(folder_of(tmp_path, trec=[prediction()]), score_folder(tmp_path))
    whole = current_scores(tmp_path)
    assert not whole[1] and whole[0]["tasks"]["trec"] == 100
    folder_of(tmp_path, trec=[prediction(), prediction(pred="no class")])
    assert current_scores(tmp_path) == (score_folder(tmp_path), True) and score_folder(tmp_path)["tasks"]["trec"] == 50
    (tmp_path / "trec.jsonl").unlink()  # lines that were not passed on
    assert current_scores(tmp_path)[1] is False


def test_a_line_of_other_values_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: a line")):
        score_folder(folder_of(tmp_path, trec=[prediction(kept_tokens="7", prompt_tokens=9)]))
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"experiment": "ppl"}')
    (run / "ppl.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match=re.escape(f"{run}: a line")):
        score_folder(run)


def test_the_details_of_a_task_say_how_its_score_came_about(tmp_path: Path) -> None:
    lengths = {"kept_tokens": 7, "prompt_tokens": 9}
    rows = [
        prediction(**lengths),  # of a version that did not say so: fewer tokens fed than there were
        prediction(pred="no", **lengths, truncated=False),  # the chat template made it longer: nothing is left out
        prediction(kept_tokens=9, prompt_tokens=9),
        prediction(truncated=True),
        prediction(kept_tokens=1),
        prediction(pred="", finish="error"),
    ]
    said = prediction(**lengths, truncated=False)
    details = score_folder(folder_of(tmp_path, trec=rows, hotpotqa=[said] * 200))["details"]
    low, high = details["trec"].pop("interval")
    assert 0 <= low < 80 < high == 100.0  # 0 or more of five in each resample
    assert details["trec"] == {
        "scored": 5, "expected": 200, "truncated": 2, "failed": 1, "left_out": 194,
        "metric": "classification", "version": BY_NAME["trec"].version,
        "by_length": {"0-4k": {"score": 80.0, "scored": 5}},
    }  # fmt: skip
    assert details["hotpotqa"]["truncated"] == details["hotpotqa"]["left_out"] == 0
    assert details["hotpotqa"]["interval"] == [100.0, 100.0]


def test_of_two_values_either_may_be_drawn_twice() -> None:
    assert interval([1.0, 0.0]) == [0.0, 1.0] == interval([0.0, 1.0])  # each extreme has one chance in four


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_is_summed_up_by_its_own_class(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment(name), "summarise", lambda folder: {"summed up": folder})
    (tmp_path / "run.json").write_text(json.dumps({"experiment": name}), encoding="utf-8")
    assert score_folder(tmp_path) == {"summed up": tmp_path}


def test_only_the_first_three_unknown_files_are_named(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").touch()
    with pytest.raises(DataError, match=r"unknown tasks \(a\.jsonl, b\.jsonl, c\.jsonl\)"):
        score_folder(tmp_path)


def test_a_folder_that_is_not_there_is_named_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"score takes a run's folder or one with LongBench .* \(NAME\.jsonl\)"):
        score_folder(tmp_path / "absent")


def test_lengths_and_scores_must_belong_together() -> None:
    assert by_length([3999, 4000, 8000], [1.0, 0.5, 0.0]) == {
        "0-4k": {"score": 100.0, "scored": 1},
        "4-8k": {"score": 50.0, "scored": 1},
        "8k+": {"score": 0.0, "scored": 1},
    }
    with pytest.raises(ValueError, match="zip"):
        by_length([1, 2], [1.0])


def test_a_task_of_failed_rows_alone_has_no_score(tmp_path: Path) -> None:
    found = score_folder(folder_of(tmp_path, trec=[prediction(finish="error", pred="")]))
    assert found["tasks"] == {} and found["details"]["trec"]["failed"] == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "notes.txt",
            "x",
            r" holds no \.jsonl file; .*one of narrativeqa, qasper, multifieldqa_en, multifieldqa_zh, …$",
        ),
        ("squad.jsonl", "{}\n", r"unknown tasks \(squad\.jsonl\)"),
        ("trec.jsonl", '{"pred": "x"\n', r"trec\.jsonl:1"),
        ("trec.jsonl", '{"pred": "x"}\n', r"/trec\.jsonl: prediction 1 has no 'answers'"),
        ("run.json", "{", "run.json"),
        ("run.json", '{"experiment": "chess"}', "'chess'"),
    ],
)
def test_a_folder_that_cannot_be_scored_is_an_error_that_says_why(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        score_folder(tmp_path)


def test_rouge_score_stands_beside_the_summaries_only(tmp_path: Path) -> None:
    rows = [prediction(pred="a b c d", answers=["a b x d"])]
    found = score_folder(folder_of(tmp_path, gov_report=rows, trec=[prediction()]), rouge_score=True)
    # LCS "a b d": 3 of 4 words on both sides, in either package
    assert found["details"]["gov_report"]["rouge_score"] == pytest.approx(75.0)
    assert found["tasks"]["gov_report"] == pytest.approx(75.0, abs=1e-5)
    assert "rouge_score" not in found["details"]["trec"]
    assert "rouge_score" not in score_folder(tmp_path)["details"]["gov_report"]  # it is slow: only when asked for
    failed = prediction(pred="", finish="error")
    found = score_folder(folder_of(tmp_path, gov_report=[*rows, failed], multi_news=[failed]), rouge_score=True)
    assert found["details"]["gov_report"]["rouge_score"] == pytest.approx(75.0)
    assert found["details"]["multi_news"]["rouge_score"] == 0.0


@pytest.mark.skipif(not PREDICTIONS.is_dir(), reason="published predictions are not beside the checkout")
def test_published_predictions_get_their_published_scores() -> None:
    found = score_folder(PREDICTIONS)
    official = json.loads((PREDICTIONS / "result.json").read_text(encoding="utf-8"))
    for name, score in found["tasks"].items():
        assert score == pytest.approx(official[name], abs=0.01), name
