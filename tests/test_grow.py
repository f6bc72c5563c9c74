"""A run can grow: lines that exist are kept, missing ones added, and scores cover what was asked last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2bench.runs.folder import _disagree
from e2bench.tasks.demo import write_longbench

Cli = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_longbench(tmp_path / "data", examples=3)


def lines(folder: Path, name: str) -> list[bytes]:
    """The lines without how long each took."""
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_bytes().splitlines()]
    return [json.dumps({k: v for k, v in row.items() if k != "seconds"}).encode() for row in rows]


def longbench(cli: Cli, model: Path, data: Path, out: Path, tasks: str, limit: int) -> Any:
    shared = ("--model", model, "--scale", 8, "--batch-size", 1, "--data", data, "--out", out)
    return cli("longbench", *shared, "--tasks", tasks, "--limit", limit)


def test_a_pilot_grows_into_the_run_that_would_have_been_made_at_once(
    tiny_folder: Path, data: Path, tmp_path: Path, cli: Cli
) -> None:
    grown, at_once = tmp_path / "grown", tmp_path / "at-once"
    assert longbench(cli, tiny_folder, data, grown, "trec", 1).code == 0
    first = (grown / "trec.jsonl").read_bytes()
    assert longbench(cli, tiny_folder, data, grown, "trec,lsht", 3).code == 0
    assert (grown / "trec.jsonl").read_bytes().startswith(first)
    assert longbench(cli, tiny_folder, data, at_once, "trec,lsht", 3).code == 0
    for name in ("trec", "lsht"):
        assert lines(grown, name) == lines(at_once, name) and len(lines(grown, name)) == 3
    assert (grown / "scores.json").read_bytes() == (at_once / "scores.json").read_bytes()


def test_scores_cover_what_was_asked_last_and_nothing_is_lost(
    tiny_folder: Path, data: Path, tmp_path: Path, cli: Cli
) -> None:
    out, small = tmp_path / "run", tmp_path / "small"
    assert longbench(cli, tiny_folder, data, out, "trec,lsht", 3).code == 0
    before = lines(out, "trec")
    assert longbench(cli, tiny_folder, data, out, "trec", 2).code == 0
    assert longbench(cli, tiny_folder, data, small, "trec", 2).code == 0
    assert (out / "scores.json").read_bytes() == (small / "scores.json").read_bytes()
    assert lines(out, "trec") == before and len(lines(out, "lsht")) == 3
    assert cli("compare", out, small).code == 0  # over the same samples
    assert longbench(cli, tiny_folder, data, out, "trec,lsht", 3).code == 0
    assert json.loads((out / "scores.json").read_text())["tasks"].keys() == {"trec", "lsht"}
    assert lines(out, "trec") == before


def test_another_sample_of_the_same_id_is_refused_by_name_and_the_same_one_in_another_file_is_not(
    tiny_folder: Path, data: Path, tmp_path: Path, cli: Cli
) -> None:
    out, copy = tmp_path / "run", shutil.copytree(data, tmp_path / "copy")
    assert longbench(cli, tiny_folder, data, out, "trec", 2).code == 0
    stored = (out / "trec.jsonl").read_bytes()
    rows = [json.loads(line) for line in (copy / "trec.jsonl").read_text("utf-8").splitlines()]
    rows[2]["context"] += " More."  # not among the lines yet
    (copy / "trec.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert longbench(cli, tiny_folder, copy, out, "trec", 3).code == 0
    rows[0]["context"] += " More."
    (copy / "trec.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    ended = longbench(cli, tiny_folder, copy, out, "trec", 3)
    assert ended.code == 2 and "data = another trec demo-trec-0 than the one given now" in ended.err
    assert (out / "trec.jsonl").read_bytes().startswith(stored)


def test_lines_older_than_their_sample_are_kept_only_with_the_same_file(
    tiny_folder: Path, data: Path, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "run"
    assert longbench(cli, tiny_folder, data, out, "trec", 1).code == 0
    row = json.loads((out / "trec.jsonl").read_text("utf-8"))
    del row["sample"]
    (out / "trec.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    assert longbench(cli, tiny_folder, data, out, "trec", 2).code == 0
    other = write_longbench(tmp_path / "other", examples=2)
    ended = longbench(cli, tiny_folder, other, out, "trec", 2)
    assert ended.code == 2 and "holds a run with data = " in ended.err


def test_perplexity_grows_by_lengths_and_documents_where_the_documents_are_fixed(
    tiny_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    shared = (
        "ppl",
        "--model",
        tiny_folder,
        "--scale",
        "auto",
        "--max-windows",
        2,
        "--stride",
        64,
        "--out",
        tmp_path / "run",
    )
    fixed = ("--doc-tokens", "512", "--min-tokens", "512")
    assert cli(*shared, *fixed, "--docs", 1, "--lengths", "128,256").code == 0
    before = (tmp_path / "run" / "ppl.jsonl").read_bytes()
    assert cli(*shared, *fixed, "--docs", 2, "--lengths", "128,256,512").code == 0
    grown = (tmp_path / "run" / "ppl.jsonl").read_bytes()
    assert set(before.splitlines()) < set(grown.splitlines()) and len(grown.splitlines()) == 6
    ended = cli(*shared, "--docs", 2, "--lengths", "128,256")
    assert ended.code == 2
    assert "doc_tokens = 512, not 256; fix the documents with --doc-tokens and --min-tokens" in ended.err
    assert (tmp_path / "run" / "ppl.jsonl").read_bytes() == grown


def test_a_passkey_grid_grows_by_lengths_depths_and_trials_but_not_by_method(
    tiny_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    shared = ("passkey", "--model", tiny_folder, "--out", tmp_path / "run")
    assert cli(*shared, "--lengths", "256", "--depths", 3, "--trials", 1).code == 0
    before = set((tmp_path / "run" / "passkey.jsonl").read_bytes().splitlines())
    assert cli(*shared, "--lengths", "256,512", "--depths", 5, "--trials", 2).code == 0
    grown = (tmp_path / "run" / "passkey.jsonl").read_bytes().splitlines()
    assert before < set(grown) and len(grown) == 20
    ended = cli(*shared, "--lengths", "256", "--depths", 3, "--trials", 1, "--method", "yarn")
    assert ended.code == 2 and "grid = " in ended.err


@pytest.mark.parametrize(
    ("old", "new", "disagree"),
    [
        ({"trec": "1"}, {"trec": "1", "lsht": "1"}, False),
        ({"trec": "1"}, {"trec": "2"}, True),
        ([[256, "linear", 2]], [[512, "linear", 4]], False),
        ([[256, "linear", 2]], [[256, "yarn", 2], [512, "yarn", 4]], True),
        ([[256, "linear", 2]], [[256, "linear", 3]], True),  # the scale rule is the run's
        ([[256, "linear", 2], [256, "linear", 4]], [[256, "linear", 4], [256, "linear", 2], [512, "linear", 4]], False),
        (["trec"], ["lsht"], False),
        (None, {"trec": "1"}, False),
    ],
)
def test_choices_of_lines_contradict_each_other_only_in_what_they_share(old: Any, new: Any, disagree: bool) -> None:
    assert _disagree(old, new) is disagree
