"""The library: what a notebook does, against what the command line does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import e2bench
from e2bench.rope.methods import RopeScaling
from e2bench.runs.folder import RunFolder
from e2bench.tasks.demo import write_longbench

FIXED = {"docs": 1, "max_windows": 2, "doc_tokens": "512", "min_tokens": 512, "stride": 64}


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    return e2bench.load(tiny_folder)


def test_importing_the_library_imports_nothing_heavy_and_hands_out_what_it_names() -> None:
    code = "import sys, e2bench; assert not {'torch', 'transformers', 'typer', 'numpy'} & sys.modules.keys(); "
    code += "print([getattr(e2bench, name).__name__ for name in e2bench.__all__])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(e2bench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        e2bench.lode  # noqa: B018


def test_a_scale_is_in_force_inside_and_gone_outside(model: Any) -> None:
    ids = torch.tensor([model.encode("There and back again. " * 20)])
    near = model.token_nll(ids)
    with model.scaled("linear", 4):
        far = model.token_nll(ids)
    with model.under(RopeScaling("linear", 4), 0):
        assert torch.equal(model.token_nll(ids), far)
    assert not torch.equal(far, near) and torch.equal(model.token_nll(ids), near)
    with pytest.raises(e2bench.E2BenchError, match="give length="), model.scaled("dynamic", 4):
        pass


def test_a_run_that_is_refused_leaves_the_model_as_it_was(model: Any, tmp_path: Path) -> None:
    ids = torch.tensor([model.encode("There and back again. " * 20)])
    before = model.token_nll(ids)
    longbench = {"data": "demo", "tasks": "trec", "limit": 1, "out": tmp_path / "run"}
    e2bench.run("longbench", model, scale=2, **longbench)
    with pytest.raises(e2bench.E2BenchError, match="scale"):
        e2bench.run("longbench", model, scale=4, **longbench)
    assert model.rope.scaling is None and torch.equal(model.token_nll(ids), before)


def test_a_run_that_breaks_off_leaves_the_model_as_it_was(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of a batch, with the user's own scale in force, and the traceback kept, as notebooks keep it."""
    monkeypatch.setattr(RunFolder, "append", Mock(side_effect=OSError("the disk is full")))
    with model.scaled("linear", 2):
        own = model.rope.in_force()
        with pytest.raises(OSError, match="the disk is full") as kept:
            e2bench.run("longbench", model, scale=4, data="demo", tasks="trec", limit=2, out=tmp_path / "run")
        assert kept.tb is not None and model.rope.in_force() == own
    assert model.rope.scaling is None and model.rope.in_force() != own


def test_run_leaves_the_files_of_the_command(
    model: Any, tiny_folder: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    run = e2bench.run("ppl", model, lengths=[128, 256], **FIXED, out=tmp_path / "python")
    options = [part for name, value in FIXED.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert cli("ppl", "--model", tiny_folder, "--lengths", "128,256", *options, "--out", tmp_path / "command").code == 0
    for name in ("ppl.jsonl", "scores.json"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    python, command = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("python", "command"))
    assert python["resolved"] == command["resolved"]
    rows = run.rows()
    assert list(rows["window"]) == [128, 256] and run.scores == json.loads(
        (tmp_path / "python/scores.json").read_text()
    )
    assert run.settings["experiment"] == "ppl"


def test_a_run_prints_no_table_and_other_settings_are_refused(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    e2bench.run("ppl", model, lengths="128", **FIXED, out=tmp_path / "run")
    assert capsys.readouterr().out == ""
    with pytest.raises(e2bench.E2BenchError, match="protocol = press, not truncate"):
        e2bench.run("ppl", model, lengths="128", protocol="truncate", **FIXED, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: e2bench.run("ppll", model), "did you mean 'ppl'"),
        (lambda model: e2bench.run("ppl", model, lenghts="4k"), "did you mean 'lengths'"),
        (lambda model: e2bench.load("x", dtyp="float32"), "did you mean 'dtype'"),
        (lambda model: e2bench.run("ppl", model, docs="2"), "docs is '2'; it must be int or nothing"),
        (lambda model: e2bench.run("ppl", model, extrapolate=1), "extrapolate is 1; it must be bool"),
    ],
)
def test_unknown_names_and_values_of_another_kind_are_met_with_what_is_wanted(model: Any, call: Any, said: str) -> None:
    with pytest.raises(e2bench.E2BenchError, match=said):
        call(model)


def test_a_function_answers_longbench_and_is_scored_as_anyone(model: Any, tmp_path: Path) -> None:
    data = write_longbench(tmp_path / "data", examples=2)
    rows = [json.loads(line) for line in (data / "hotpotqa.jsonl").read_text().splitlines()]
    seen: list[str] = []

    def answer(prompts: list[str]) -> list[str]:
        seen.extend(prompts)
        return [next(row["answers"][0] for row in rows if row["input"] in prompt) for prompt in prompts]

    shared = {"data": data, "tasks": "hotpotqa", "window": "1k", "tokenizer": model.tokenizer}
    run = e2bench.run("longbench", answer, **shared, out=tmp_path / "run")
    lines = run.rows()
    assert len(seen) == 2 and all(lines["kept_tokens"] + 32 <= 1024)
    assert run.scores["tasks"]["hotpotqa"] == 100
    again = e2bench.run("longbench", answer, **shared, out=tmp_path / "run")
    assert len(seen) == 2 and again.scores == run.scores


def test_an_object_with_generate_finds_pass_keys_and_a_long_answer_is_cut(model: Any, tmp_path: Path) -> None:
    class Reader:
        def generate(self, prompts: list[str]) -> list[str]:
            return [prompt.split("The pass key is ")[1].split(".")[0] + " and so on" * 50 for prompt in prompts]

    options = {"lengths": "256", "depths": 2, "trials": 2, "window": 256, "tokenizer": model.tokenizer}
    run = e2bench.run("passkey", Reader(), **options, out=tmp_path / "keys")
    assert run.scores["lengths"][0]["accuracy"] == 1 and run.settings["model"]["name"] == "Reader"
    assert all(run.rows()["pred"].str.len() < 100)


@pytest.mark.parametrize(
    ("experiment", "answer", "options", "said"),
    [
        ("longbench", lambda prompts: prompts, {}, "a function needs tokenizer="),
        ("longbench", 5, {}, "int is no model"),
        ("ppl", lambda prompts: prompts, {"window": 256}, "needs losses and attentions"),
        ("passkey", lambda prompts: [], {"window": 256, "lengths": "256"}, "must give one str for each of"),
        ("passkey", lambda prompts: [1], {"window": 256, "lengths": "256"}, "it gave 1 of int: "),
        ("passkey", lambda prompts: prompts, {"window": 256, "lengths": "256", "scale": 2}, "cannot be set from here"),
    ],
)
def test_what_cannot_serve_as_a_model_is_one_line(
    model: Any, tmp_path: Path, experiment: str, answer: Any, options: dict[str, Any], said: str
) -> None:
    tokenizer = {"tokenizer": model.tokenizer} if options else {}
    with pytest.raises(e2bench.E2BenchError, match=said) as caught:
        e2bench.run(experiment, answer, **tokenizer, **options, out=tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_report_and_compare_take_runs_of_several_folders(model: Any, tmp_path: Path) -> None:
    for name, scale in (("a", 1), ("b", 2)):
        e2bench.run("passkey", model, lengths="256", depths=2, trials=1, scale=scale, out=tmp_path / name)
    written = e2bench.report([tmp_path / "a", tmp_path / "b"], out=tmp_path / "report")
    assert {path.name for path in written} >= {"passkey.png", "passkey.csv", "index.html"}
    assert json.loads((tmp_path / "report" / "report.json").read_text())["runs"] == ["a", "b"]
    assert "256" in e2bench.compare(tmp_path / "a", tmp_path / "b")["tasks"]
    stored = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert e2bench.score(tmp_path / "a") == {name: value for name, value in stored.items() if name != "of"}
