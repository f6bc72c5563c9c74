"""Compare: paired differences by hand, and refusals that name what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_folders import manifest, prediction, write_json, write_lines
from typer.testing import CliRunner

from e2bench.cli import app
from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.compare import compare, load

ANSWERS = ["Paragraph 3", "Paragraph 3", "Paragraph 1", "Paragraph 3"]


def longbench(folder: Path, preds: list[str], **changes: object) -> Path:
    lines = [prediction("passage_retrieval_en", at, pred, **changes) for at, pred in enumerate(preds)]
    write_lines(folder / "passage_retrieval_en.jsonl", lines)
    write_json(folder / "run.json", manifest("longbench"))
    return folder


def test_differences_are_paired_by_id(tmp_path: Path) -> None:
    first = longbench(tmp_path / "a", ANSWERS)  # scores 1, 1, 0, 1
    second = longbench(tmp_path / "b", ["Paragraph 3", "Paragraph 2", "Paragraph 3", "Paragraph 3 or 4"])  # 1, 0, 1, .5
    lines = (second / "passage_retrieval_en.jsonl").read_text().splitlines()
    (second / "passage_retrieval_en.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    result = compare(first, second)
    row = result["tasks"]["passage_retrieval_en"]
    assert (row["samples"], row["first"], row["second"], row["difference"]) == (4, 75, 62.5, -12.5)
    assert (row["changed"], row["better"], row["worse"]) == (3, 1, 2)
    low, high = row["interval"]
    assert -100 <= low < -12.5 < high <= 100
    assert [change["difference"] for change in result["largest"]] == [-100, 100, -50]
    assert result["largest"][0]["predictions"] == ["Paragraph 3", "Paragraph 2"]


def test_a_run_against_itself_has_no_difference(tmp_path: Path) -> None:
    run = longbench(tmp_path / "a", ANSWERS)
    result = compare(run, run)
    assert result["tasks"]["passage_retrieval_en"]["interval"] == [0, 0]
    assert result["largest"] == []


def test_only_the_ten_largest_changes_are_listed(tmp_path: Path) -> None:
    result = compare(longbench(tmp_path / "a", ["3"] * 15), longbench(tmp_path / "b", ["4"] * 15))
    assert len(result["largest"]) == 10
    assert result["tasks"]["passage_retrieval_en"]["changed"] == 15


def test_runs_over_different_samples_are_refused_by_name(tmp_path: Path) -> None:
    first = longbench(tmp_path / "a", ANSWERS)
    with pytest.raises(DataError, match=r"a has 2 samples that .*b does not"):
        compare(first, longbench(tmp_path / "b", ANSWERS[:2]))
    with pytest.raises(DataError, match=r"reference .* these are different samples"):
        compare(first, longbench(tmp_path / "c", ANSWERS, answers=["Paragraph 9"]))
    more = longbench(tmp_path / "d", ANSWERS)
    write_lines(more / "trec.jsonl", [prediction("trec", 0, "barn")])
    with pytest.raises(DataError, match=r"d has trec, .*a does not; give --tasks passage_retrieval_en"):
        compare(first, more)
    assert list(compare(first, more, tasks=["passage_retrieval_en"])["tasks"]) == ["passage_retrieval_en"]
    with pytest.raises(DataError, match="a has no trec"):
        compare(first, more, tasks=["trec"])


def test_runs_of_different_experiments_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "p" / "run.json", manifest("passkey"))
    write_lines(tmp_path / "p" / "passkey.jsonl", [cell(512, 0.5, 0, True)])
    with pytest.raises(DataError, match=r"run of longbench, .* one of passkey"):
        compare(longbench(tmp_path / "a", ANSWERS), tmp_path / "p")


def cell(length: int, depth: float, trial: int, success: bool, scale: float = 1) -> dict:
    line = {"length": length, "depth": depth, "trial": trial, "scale": scale}
    return line | {"key": "12345", "pred": "1", "success": success}


def test_passkey_runs_at_two_scales_are_paired_by_cell(tmp_path: Path) -> None:
    for name, scale, hits in (("a", 1, [True, False]), ("b", 2, [True, True])):
        lines = [cell(512, 0.5, trial, hit, scale) for trial, hit in enumerate(hits)]
        write_lines(tmp_path / name / "passkey.jsonl", lines)
        write_json(tmp_path / name / "run.json", manifest("passkey"))
    row = compare(tmp_path / "a", tmp_path / "b")["tasks"]["512"]
    assert (row["first"], row["second"], row["better"]) == (50, 100, 1)
    write_lines(tmp_path / "c" / "passkey.jsonl", [cell(512, 0.5, 0, True, scale) for scale in (1, 2)])
    write_json(tmp_path / "c" / "run.json", manifest("passkey"))
    with pytest.raises(DataError, match="several scales"):
        load(tmp_path / "c")


def test_pass_keys_in_other_words_are_other_samples(tmp_path: Path) -> None:
    for name, resolved in (("old", {}), ("ours", {"template": "e2bench"}), ("landmark", {"template": "landmark"})):
        write_lines(tmp_path / name / "passkey.jsonl", [cell(512, 0.5, 0, True)])
        write_json(tmp_path / name / "run.json", manifest("passkey", resolved=resolved))
    assert compare(tmp_path / "old", tmp_path / "ours")["tasks"]["512"]["samples"] == 1
    with pytest.raises(DataError, match=r"template = e2bench, not landmark; .*--allow template"):
        compare(tmp_path / "old", tmp_path / "landmark")


def test_perplexity_is_compared_in_nats_a_token(tmp_path: Path) -> None:
    for name, sums in (("a", [20.0, 30.0]), ("b", [22.0, 30.0])):
        rows = [
            {"document": f"d{at}", "window": 64, "scale": 1, "nll_sum": nats, "scored_tokens": 10}
            for at, nats in enumerate(sums)
        ]
        write_lines(tmp_path / name / "ppl.jsonl", rows)
        write_json(tmp_path / name / "run.json", manifest("ppl"))
    result = compare(tmp_path / "a", tmp_path / "b")
    assert result["tasks"]["64"]["difference"] == pytest.approx(0.1)
    assert result["tasks"]["64"]["changed"] == 1
    assert "lower is better" in result["unit"]


def test_folders_in_longbenchs_own_layout_are_paired_by_line(tmp_path: Path) -> None:
    for name, preds in (("a", ["3", "4"]), ("b", ["3", "3"])):
        rows = [{"pred": p, "answers": ["Paragraph 3"], "all_classes": None, "length": 9} for p in preds]
        write_lines(tmp_path / name / "passage_retrieval_en.jsonl", rows)
    row = compare(tmp_path / "a", tmp_path / "b")["tasks"]["passage_retrieval_en"]
    assert (row["samples"], row["difference"]) == (2, 50)


def test_the_command_prints_a_table_or_json_and_needs_two_runs(tmp_path: Path) -> None:
    runs = [str(longbench(tmp_path / name, [pred] * 6)) for name, pred in (("a", "3"), ("b", "[4]"))]
    shown = CliRunner().invoke(app, ["compare", *runs], env={"COLUMNS": "200"})
    assert "-100.00 *" in shown.output
    assert "[4]" in shown.output
    stored = json.loads(CliRunner().invoke(app, ["compare", *runs, "--json"]).output)
    assert stored["tasks"]["passage_retrieval_en"]["difference"] == -100
    alone = CliRunner().invoke(app, ["compare", runs[0]])
    assert isinstance(alone.exception, E2BenchError)
    missing = CliRunner().invoke(app, ["compare", runs[0], str(tmp_path / "none")])
    assert "no folder" in str(missing.exception)
