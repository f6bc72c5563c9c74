"""Scores for trackers, and in lm-eval's layout: the same numbers as in scores.json, under names that others read."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import e2bench
from e2bench.errors import DataError, E2BenchError
from e2bench.experiments import tracking
from e2bench.experiments.numbers import Number
from e2bench.files import read_json
from e2bench.models.local import Model
from e2bench.reporting.lm_eval import results_json
from e2bench.reporting.runs import scan

RESULTS = Path(__file__).parents[1] / "results" / "smollm2"


@pytest.fixture
def asked(tiny_model: Model, tmp_path: Path) -> Callable[..., e2bench.library.Run]:
    """A small passkey run of two lengths."""

    def run(**settings: Any) -> e2bench.library.Run:
        small = {"lengths": "384,512", "depths": 1, "trials": 1} | settings
        return e2bench.run("passkey", tiny_model, out=tmp_path / "run", **small)

    return run


def test_tensorboard_holds_the_numbers_of_the_scores(asked: Callable[..., e2bench.library.Run], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = asked(log="tensorboard")
    assert asked(log="tensorboard").scores == run.scores  # finished before: its numbers are there once
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    names = events.Tags()["tensors"]
    assert names == ["accuracy/passkey", "strict/passkey"]
    found = {event.step: event.tensor_proto.float_val[0] for event in events.Tensors("accuracy/passkey")}
    assert found == {cell["length"]: cell["accuracy"] for cell in run.scores["lengths"]}
    assert run.settings["settings"]["log"] == "tensorboard"
    assert scan(tmp_path).warnings == []  # the tracker's files are no foreign ones


def test_a_missing_package_is_said_before_anything_is_measured(
    asked: Callable[..., e2bench.library.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    with pytest.raises(E2BenchError, match=r"--log wandb needs the package wandb.*pip install 'e2bench\[wandb\]'"):
        asked(log="wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_gets_the_numbers_offline(
    asked: Callable[..., e2bench.library.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    asked(log="wandb")
    [folder] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert next(folder.glob("*.wandb")).stat().st_size > 0
    assert scan(tmp_path).warnings == []


def test_scales_are_told_apart_where_a_length_has_several() -> None:
    numbers = [Number("perplexity", 9.0, "ppl", 4096, scale) for scale in (2, 4)] + [
        Number("perplexity", 8.0, "ppl", 1)
    ]
    assert [tracking.name_of(number, numbers) for number in numbers] == [
        "perplexity/ppl/g2", "perplexity/ppl/g4", "perplexity/ppl",
    ]  # fmt: skip


@pytest.mark.skipif(not RESULTS.is_dir(), reason="the measured results are not here")
def test_longbench_is_given_under_lm_evals_names() -> None:
    from lm_eval import tasks

    made = results_json(RESULTS / "longbench-4k")
    scores = read_json(RESULTS / "longbench-4k" / "scores.json")
    assert {name.removeprefix("longbench_") for name in made["results"]} == set(scores["tasks"])
    assert made["results"]["longbench_narrativeqa"]["score,none"] == scores["tasks"]["narrativeqa"] / 100
    assert made["n-samples"]["longbench_narrativeqa"]["effective"] == scores["details"]["narrativeqa"]["scored"]
    folder = Path(os.fspath(next(iter(tasks.__path__)))) / "longbench"
    named = {path.stem for path in folder.glob("*.yaml")}
    assert {name.removeprefix("longbench_").replace("-", "_") for name in made["results"]} <= {
        n.replace("-", "_") for n in named
    }


@pytest.mark.skipif(not RESULTS.is_dir(), reason="the measured results are not here")
def test_lm_evals_own_numbers_are_handed_on_and_others_refused(cli: Any) -> None:
    made = json.loads(cli("results", RESULTS / "short-lm-eval", "--lm-eval").out)
    own = read_json(RESULTS / "short-lm-eval" / "lm-eval.json")
    assert made["results"]["piqa"]["acc,none"] == own["piqa"]["acc,none"]
    assert made["results"]["piqa"]["alias"] == "piqa" and "sample_len" not in made["results"]["piqa"]
    refused = cli("results", next(RESULTS.glob("ppl-*")), "--lm-eval")
    assert refused.code == 2
    assert "without a task that lm-eval knows" in refused.err and refused.err.count("\n") == 1


def test_ruler_is_given_by_length_and_without_demo_tasks(tmp_path: Path) -> None:
    cells = {"4096": {"score": 90.0, "scored": 2}, "8192": {"score": None, "scored": 0}}
    details = {
        name: {"by_length": cells, "scored": 2, "expected": 1000} for name in ("niah_single_1", "vt", "qa_1-demo")
    }
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "ruler", "model": {"name": "m"}}))
    (tmp_path / "scores.json").write_text(json.dumps({"lengths": [], "details": details}))
    made = results_json(tmp_path)
    assert made["results"] == {
        "niah_single_1": {"alias": "niah_single_1", "4096,none": 0.9},
        "ruler_vt": {"alias": "ruler_vt", "4096,none": 0.9},
    }
    assert made["n-samples"]["ruler_vt"] == {"original": 1000, "effective": 2}


def test_demo_texts_and_own_tasks_are_none_of_lm_evals(tmp_path: Path) -> None:
    run = {"experiment": "longbench", "model": {"name": "m"}, "data_source": {"kind": "public"}}
    entry = {"scored": 2, "expected": 200}
    scores = {"tasks": {"qasper": 50.0, "mine": 9.0}, "details": {"qasper": entry, "mine": entry}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    made = results_json(tmp_path)
    assert made["results"] == {"longbench_qasper": {"alias": "longbench_qasper", "score,none": 0.5}}
    assert made["n-samples"] == {"longbench_qasper": {"original": 200, "effective": 2}}
    (tmp_path / "run.json").write_text(json.dumps({**run, "data_source": {"kind": "demo"}}))
    with pytest.raises(DataError, match="demo texts"):
        results_json(tmp_path)
