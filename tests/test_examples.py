"""The examples run as they stand, on the embedded model and demo data."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2bench.models.loading import embedded_model
from e2bench.tasks.demo import corpus_file, write_longbench

EXAMPLES = Path(__file__).parents[1] / "examples"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "agg")


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script as `python examples/NAME` runs it, in this process."""
    script = EXAMPLES / name
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")


def test_table_1_at_two_windows(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--data", write_longbench(Path("data"), examples=1), "--tasks", "qasper,hotpotqa", "--scales", "2,4")
    run("table1_windows.py", embedded_model(), *options, "--out", "mine", monkeypatch=monkeypatch)
    table = capfd.readouterr().out
    assert "tiny (" in table and "E²-LLM-Llama2-7B-16k" in table
    assert {path.name for path in Path("mine").iterdir()} == {"longbench-g2", "longbench-g4", "report"}


def test_perplexity_by_length_is_what_the_command_measures(
    monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    shared = ("--lengths", "512,1k", "--docs", 1)
    run("perplexity_by_length.py", embedded_model(), corpus_file(), *shared, "--out", "ppl", monkeypatch=monkeypatch)
    rows = list(csv.DictReader(Path("ppl.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["method"] for row in rows[::2]] == ["none", "linear", "ntk", "yarn"]
    at_native = {row["perplexity"] for row in rows if row["length"] == "512"}
    assert len(at_native) == 1 and len({row["perplexity"] for row in rows}) == 5  # at g = 1 all methods are one
    assert Path("ppl.png").stat().st_size > 1000
    model = ("--model", embedded_model(), "--data", corpus_file())
    assert cli("ppl", *model, *shared, "--scale", "auto", "--out", "run").code == 0
    cells = json.loads(Path("run/scores.json").read_text(encoding="utf-8"))["cells"]
    linear = [float(row["perplexity"]) for row in rows if row["method"] == "linear"]
    assert [cell["perplexity"] for cell in cells] == pytest.approx(linear, rel=1e-5)


def test_fine_tuning(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--train-window", 128, "--steps", 2, "--lengths", "512,1k", "--out", "tuned")
    run("finetune.py", embedded_model(), corpus_file(), *options, monkeypatch=monkeypatch)
    base, tuned = (line for line in capfd.readouterr().out.splitlines() if "{512:" in line)
    assert base.startswith("base {512:") and tuned.startswith("e2 {512:")
    assert (Path("tuned/weights/e2_config.json")).exists()


@pytest.mark.parametrize("name", sorted(path.name for path in (EXAMPLES / "notebooks").glob("*.py")))
def test_notebooks_run_from_top_to_bottom(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(f"notebooks/{name}", monkeypatch=monkeypatch)
    shown = capfd.readouterr().out
    expected = {
        "windows.py": "linear",
        "own_model.py": "ppl needs losses and attentions, which answer does not give",
        "compare.py": "they have no task in common",
    }
    assert expected[name] in shown


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("[a-z]*.py")))
def test_benchmarks_can_be_started(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    runpy.run_path(str(BENCHMARKS / name), run_name="imported")
