"""write_report: what it finds, what it names and skips, and what it never overwrites."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_folders import (
    attention_run,
    e2_config,
    longbench_run,
    manifest,
    passkey_run,
    ppl_run,
    prediction,
    profile,
    short_run,
    write_json,
    write_lines,
)

from e2bench.errors import DataError
from e2bench.files import write_atomic
from e2bench.reporting import write_report
from e2bench.reporting.runs import scan


def names(paths: list[Path]) -> set[str]:
    """Of a report's files."""
    return {f"samples/{path.name}" if path.suffix == ".js" else path.name for path in paths}


def _all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_everything_there_are_runs_for_is_written_and_nothing_else(tmp_path: Path) -> None:
    results = tmp_path / "results"
    tuned = {"model_part": {"e2": e2_config()}}
    longbench_run(results / "deep" / "er" / "long")
    ppl_run(results / "ppl" / "auto", [(512, 1, 2.9), (1024, 2, 2.7)], scale="auto", **tuned)
    ppl_run(results / "ppl" / "fixed", [(512, 20, 2.9), (512, 40, 2.9)], scale=[20, 40], **tuned)
    ppl_run(results / "ppl" / "plain", [(512, 1, 2.9), (1024, 1, 9.7)], extrapolate=True)
    passkey_run(results / "passkey", 512, (512, 1024))
    attention_run(results / "attention", (1024, 2048))
    short_run(results / "short")
    profile(results / "profile")
    written = names(write_report(results, tmp_path / "out"))
    named = ["claims", *(f"table{n}" for n in range(1, 8))]
    tables = {f"{name}.{suffix}" for name in named for suffix in ("csv", "md", "tex")}
    drawn = [*(f"figure{n}" for n in (1, 2, 3, 5, 6, 7)), "passkey", "extrapolation", "heads"]
    figures = {f"{name}{suffix}" for name in drawn for suffix in (".png", "-dark.png", ".csv")}
    behind = {"longbench.csv", "averages.csv", "perplexity.csv", "attention.csv", "short.csv"}
    samples = {"samples/0.js", "samples/index.js"}
    assert written == tables | figures | behind | samples | {"index.html", "report.json"}
    assert names(_all_files(tmp_path / "out")) == written  # nothing half-written is left
    assert (tmp_path / "out" / "figure7.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_of_longbenchs_own_layout_is_a_run_named_after_it(tmp_path: Path) -> None:
    lines = [prediction("qasper", at, "the barn") for at in range(3)]
    plain = [{key: line[key] for key in ("pred", "answers", "all_classes", "length")} for line in lines]
    write_lines(tmp_path / "pred" / "llama2-7b-chat-4k" / "qasper.jsonl", plain)
    [run] = scan(tmp_path).runs
    assert (run.name, run.model, run.experiment) == ("pred/llama2-7b-chat-4k", "llama2-7b-chat-4k", "longbench")
    assert run.scores["tasks"]["qasper"] == 100.0


def test_one_run_may_itself_be_the_results(tmp_path: Path) -> None:
    longbench_run(tmp_path / "only", tasks=["lcc"])
    assert [run.name for run in scan(tmp_path / "only").runs] == ["only"]


def test_a_run_without_scores_is_scored_from_its_lines(tmp_path: Path) -> None:
    longbench_run(tmp_path / "run", tasks=["qasper"])
    (tmp_path / "run" / "scores.json").unlink()
    [run] = scan(tmp_path).runs
    assert run.scores["tasks"]["qasper"] == pytest.approx(200 / 3)


# ------------------------------------------------------------------------------------------------ broken and foreign


BROKEN = {
    "no_json": ("run.json", "{"),
    "no_object": ("run.json", "[]"),
    "unknown_experiment": ("run.json", json.dumps({"experiment": "alchemy"})),
    "scores_garbled": ("scores.json", '{"cells": [{"window": 512, "scale": 1, "perplexity": "low"}]}'),
    "scores_null": ("scores.json", "null"),
    "interval_of_text": (
        "scores.json",
        '{"cells": [{"window": 512, "scale": 1, "perplexity": 3.0, "interval": ["low", 4]}]}',
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_named_and_skipped(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    ppl_run(results / "good", [(512, 1, 3.0)])
    ppl_run(results / name, [(512, 1, 3.0)])
    file, content = BROKEN[name]
    (results / name / file).write_text(content)
    write_report(results, tmp_path / "out")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"warning: {name}: ")]
    assert len(said) == 1
    assert file in said[0] or "of another kind" in said[0]
    assert str(tmp_path) not in said[0]
    assert said[0].removeprefix("warning: ").split(":")[0] in (tmp_path / "out" / "index.html").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["runs"] == ["good"]


def test_foreign_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    ppl_run(results / "good", [(512, 1, 3.0)])
    (results / "good" / "stray.bin").write_bytes(b"\0")
    (results / "notes.txt").write_text("mine")
    (results / "README.md").write_text("known")
    write_json(results / "other" / "config.json", {})
    write_report(results, tmp_path / "out")
    said = capsys.readouterr().err
    for foreign in ("notes.txt", "other/config.json", "good/stray.bin"):
        assert f"warning: {foreign}: not files of a run" in said
    assert "README" not in said


def test_a_malformed_line_costs_its_task_alone_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    longbench_run(results / "run", tasks=["qasper", "lcc"])
    with (results / "run" / "qasper.jsonl").open("a") as file:
        file.write("not json\n")
    write_report(results, tmp_path / "out")
    said = capsys.readouterr().err
    assert "run/qasper.jsonl" in said
    assert "qasper.jsonl:4" in said
    assert str(tmp_path) not in said
    index = (tmp_path / "out" / "samples" / "index.js").read_text()
    assert "lcc" in index and "qasper" not in index


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    longbench_run(tmp_path / "results" / "run", tasks=["qasper"])
    with (tmp_path / "results" / "run" / "qasper.jsonl").open("a") as file:
        file.write('{"pred": "to')
    [run] = scan(tmp_path / "results").runs
    assert len(run.lines("qasper")) == 3


def test_an_incomplete_run_is_reported_and_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppl_run(tmp_path / "results" / "half", [(512, 1, 3.0)])
    write_json(tmp_path / "results" / "half" / "run.json", manifest("ppl") | {"ended": None})
    write_report(tmp_path / "results", tmp_path / "out")
    assert "half: not complete" in capsys.readouterr().err
    assert "incomplete" in (tmp_path / "out" / "index.html").read_text()


def test_training_folders_are_no_strangers(tmp_path: Path) -> None:
    ppl_run(tmp_path / "ppl", [(512, 1, 3.0)])
    write_lines(tmp_path / "training" / "train.jsonl", [{"step": 1, "loss": 2.0}])
    write_json(tmp_path / "training" / "checkpoint-10" / "e2_config.json", e2_config())
    write_json(tmp_path / "training" / "checkpoint-10" / "config.json", {})
    found = scan(tmp_path)
    assert found.warnings == []
    assert [name for name, _ in found.trainings] == ["training/checkpoint-10"]


# -------------------------------------------------------------------------------------------------------- the folders


def test_absent_and_empty_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results folder"):
        write_report(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no run in"):
        write_report(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    ppl_run(tmp_path / "results", [(512, 1, 3.0)])
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.md").write_text("years of work")
    with pytest.raises(DataError, match="no report of ours"):
        write_report(tmp_path / "results", out)
    assert names(_all_files(out)) == {"chapter.md"}
    write_json(out / "report.json", {"somebody": "else's"})
    with pytest.raises(DataError, match="not a report's"):
        write_report(tmp_path / "results", out)
    with pytest.raises(DataError, match="is a file"):
        write_report(tmp_path / "results", out / "chapter.md")


def test_a_second_report_replaces_the_first_and_takes_stale_files_away(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    ppl_run(results / "ppl", [(512, 1, 3.0)])
    short_run(results / "short")
    assert "table7.csv" in names(write_report(results, out))
    (out / "mine.txt").write_text("kept")
    for path in (results / "short").iterdir():
        path.unlink()
    (results / "short").rmdir()
    written = names(write_report(results, out))
    assert "table7.csv" not in written
    assert names(_all_files(out)) == written | {"mine.txt"}


def test_a_report_may_stand_beside_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppl_run(tmp_path / "ppl", [(512, 1, 3.0)])
    for _ in range(2):
        assert "index.html" in names(write_report(tmp_path, tmp_path))
    assert capsys.readouterr().err == ""  # its own files are no strangers
    (tmp_path / "report.json").unlink()
    with pytest.raises(DataError, match="is not ours"):
        write_report(tmp_path, tmp_path)


def test_an_earlier_report_below_the_results_is_no_stranger(tmp_path: Path) -> None:
    ppl_run(tmp_path / "ppl", [(512, 1, 3.0)])
    write_report(tmp_path, tmp_path / "report")
    assert scan(tmp_path).warnings == []


def test_the_report_never_imports_torch(tmp_path: Path) -> None:
    longbench_run(tmp_path / "results" / "run", tasks=["qasper"], lines=1)
    script = (
        "import sys; from pathlib import Path; from e2bench.reporting import write_report;"
        f"write_report(Path({str(tmp_path / 'results')!r}), Path({str(tmp_path / 'out')!r}));"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_an_interrupted_report_is_done_again_by_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    passkey_run(results / "passkey", 512, (512, 1024))
    whole = names(write_report(results, tmp_path / "whole"))
    for written_before in range(3):  # of passkey.csv, passkey.png, index.html
        calls: list[object] = []

        def stop(*arguments: object, calls: list[object] = calls, most: int = written_before) -> None:
            calls.append(arguments)
            if len(calls) > most:
                raise KeyboardInterrupt
            write_atomic(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("e2bench.reporting.output.write_atomic", stop)
            write_report(results, out)
        (out / ".index.html.0123456789abcdef.tmp").write_text("half")
        assert names(write_report(results, out)) == whole == names(_all_files(out))


def test_runs_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("g16", "g4", "g4-seed10", "g4-seed9"):
        ppl_run(tmp_path / name, [(512, 1, 3.0)])
    assert [run.name for run in scan(tmp_path).runs] == ["g4", "g4-seed9", "g4-seed10", "g16"]
