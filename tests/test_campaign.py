"""Suites that train: the campaign on SmolLM2 in miniature, its cost, one piece at a time, on after a signal."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from e2bench.errors import E2BenchError, RunFolderError
from e2bench.experiments.options import Common
from e2bench.experiments.perplexity import Perplexity
from e2bench.suites.entries import read_suite
from e2bench.suites.plan import Row, _cells_of_all
from e2bench.suites.trainings import Training, cost_of, measured_rate, work_off_training
from e2bench.train.plan import make_plan
from e2bench.train.recipe import load_recipe

CAMPAIGN = "smollm2-campaign"
RECIPE = """base: {base}
data: [{{files: [{data}]}}]
train_window: 32
steps: 4
batch_size: 2
micro_batch: 2
learning_rate: 1.0e-3
precision: float32
lora: {{rank: 2, alpha: 4}}
save_every: 2
log_every: 1
"""


@pytest.fixture
def miniature(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that make the campaign small, in an empty current folder: another base, recipe and documents."""
    monkeypatch.chdir(tmp_path)
    lines = [" ".join(f"{word}{n}" for n in range(60)) for word in ("the grass is ", "a map of ", "Anna keeps ")]
    Path("text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    Path("mini.yaml").write_text(RECIPE.format(base=tiny_folder, data=tmp_path / "text.jsonl"))
    values = {
        "recipe": "mini.yaml",
        "base": tiny_folder,
        "documents": "text.jsonl",
        "docs": 2,
        "lengths": "128,256",
        "stride": 64,
        "max_windows": 1,
    }
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def arms(name: str = CAMPAIGN, **values: object) -> dict[str, Training]:
    return {p.name: p for p in read_suite(name, Common.read({}), values).pieces if isinstance(p, Training)}


def rows_of(plan: str, name: str) -> list[list[str]]:
    """The cells of a plan's rows with this in them."""
    lines = [line.split("│")[1:-1] for line in plan.splitlines() if name in line and "│" in line]
    return [[cell.strip() for cell in line] for line in lines]


def test_arms_that_are_not_trained_yet_are_planned_once_together(miniature, cli, monkeypatch) -> None:
    plans: list[object] = []
    plan = Perplexity.plan
    monkeypatch.setattr(Perplexity, "plan", lambda self, *given: plans.append(self) or plan(self, *given))
    pieces = ["base/ppl-linear", "plain/ppl-linear", "plain/ppl-none", "pi/ppl-linear"]
    planned = cli("suite", CAMPAIGN, *miniature, "--dry-run", *(part for one in pieces for part in ("--only", one)))
    assert planned.code == 0 and len(plans) == 2
    rows = rows_of(planned.out, "ppl-")
    assert [row[0] for row in rows] == pieces  # in the suite's order
    assert rows[0][1:] == rows[1][1:] == rows[3][1:]
    known = rows_of(planned.out, "all")[-1]
    assert float(known[4]) == pytest.approx(4 * float(rows[0][4]), rel=0.1)  # two digits of each
    assert "base/ppl-linear, plain/ppl-linear, pi/ppl-linear:" in " ".join(planned.err.split())


def test_hours_of_all_are_a_lower_bound_where_some_are_unknown() -> None:
    ppl, ruler = Row("ppl", 1, 0, 1, 0.25, 1.0), Row("ruler", 1, 0, 1, None, 1.0)
    assert _cells_of_all([ppl, ruler], False)[4] == "over 0.25"
    assert _cells_of_all([ppl, ppl], False)[4] == "0.5" and _cells_of_all([ruler], False)[4] == "?"


def test_one_arm_is_planned_trained_and_measured_and_nothing_is_done_twice(miniature, cli, tmp_path: Path) -> None:
    chosen = ["suite", CAMPAIGN, *miniature, "--out", "o", "--only", "train/plain", "--only", "plain/ppl-yarn"]
    planned = cli(*chosen, "--dry-run")
    assert planned.code == 0 and not Path("o").exists()
    row = next(line for line in planned.out.splitlines() if "train/plain" in line)
    assert [cell.strip() for cell in row.split("│")[2:5]] == ["4", "0", "256"]  # steps, done, tokens
    assert "hours: at the rates of one NVIDIA H100 80GB HBM3 in smollm2-campaign.yaml" in planned.out

    assert cli(*chosen).code == 0
    trained = json.loads(Path("o/train/plain/e2_config.json").read_text())
    assert (trained["method"], trained["step"], trained["settings"]["lora"]["rank"]) == ("none", 4, 2)
    run = json.loads(Path("o/plain/ppl-yarn/run.json").read_text())
    assert run["model"]["name"] == "plain" and run["settings"]["method"] == "yarn"
    assert not Path("o/report").exists(), "a report is written when all is asked for, or the report itself"

    times = {
        path: path.stat().st_mtime_ns for path in Path("o").rglob("*") if path.name in ("ppl.jsonl", "train.jsonl")
    }
    again = cli(*chosen)
    assert again.code == 0 and "trained: o/train/plain" in again.err
    assert {path: path.stat().st_mtime_ns for path in times} == times and len(times) == 2
    assert "at the rates of one NVIDIA" not in again.out, "what is done takes no hours"

    assert cli("suite", CAMPAIGN, *miniature, "--out", "o", "--only", "report").code == 0
    assert Path("o/report/index.html").exists()


def test_a_training_that_a_signal_ended_goes_on(miniature, cli) -> None:
    Path("mini.yaml").write_text(Path("mini.yaml").read_text().replace("steps: 4", "steps: 40"))
    log = Path("o/train/plain/train.jsonl")

    def stop() -> None:
        while not (log.exists() and log.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    command = ["suite", CAMPAIGN, *miniature, "--out", "o", "--only", "train/plain"]
    threading.Thread(target=stop, daemon=True).start()
    ended = cli(*command)
    assert ended.code == 130 and "stopped and saved in o/train/plain" in ended.err
    assert not Path("o/train/plain/e2_config.json").exists()
    planned = cli(*command, "--dry-run")
    assert "at the rates of the training in o/train/plain" in planned.out
    assert cli(*command).code == 0
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 41))


def test_arms_are_equally_trained() -> None:
    """Each differs from E² in what its name says, and in nothing else that decides what it learns."""
    found = {name: dataclasses.asdict(arm.recipe) for name, arm in arms().items()}
    assert len(found) == 11
    e2 = found["e2"]
    assert (e2["train_window"], e2["seed"], e2["g_max"], e2["offset"]) == (4096, 1, 16, True)
    changed = {name: {key for key, value in arm.items() if value != e2[key]} - {"name"} for name, arm in found.items()}
    rows = {"train_window", "batch_size", "micro_batch"}
    assert changed == {
        "e2": set(),
        "plain": {"method"},
        "pi": {"method", "scale", *rows},
        "no-g": {"scale"},
        "no-t": {"offset"},
        "pose": {"method", "scale"},
        "plain-seed2": {"method", "seed"},
        "e2-seed2": {"seed"},
        "e2-8k": rows,
        "plain-full": {"method", "lora", "learning_rate"},
        "e2-full": {"lora", "learning_rate"},
    }
    assert {arm["train_window"] * arm["batch_size"] for arm in found.values()} == {131_072}
    assert found["pi"]["train_window"] == 4 * 8192, "PI trains at the window that it is measured at"
    assert found["plain-full"]["learning_rate"] == found["e2-full"]["learning_rate"]


def test_adapters_of_the_campaign_are_small_enough_to_commit() -> None:
    plan = make_plan(load_recipe(CAMPAIGN))
    assert (plan.trained, plan.native_window) == (4_884_480, 8192)
    result = plan.disk_bytes - 2 * 3 * 4 * plan.trained  # two checkpoints: weights and two moments, float32
    assert result == 2 * plan.trained < 12e6


def test_the_plan_of_all_trainings_tells_their_cost(miniature, cli) -> None:
    pieces = ("--only", "train", "--only", "base/ppl-none")
    planned = cli("suite", CAMPAIGN, *miniature, "--out", "o", *pieces, "--dry-run")
    assert planned.code == 0
    assert all(f"train/{name} " in planned.out for name in arms())
    row = next(line for line in planned.out.splitlines() if "│ all " in line)
    assert "│ over " in row, "hours of a model so small: nothing near its trainings was measured"


def test_hours_of_an_arm_come_from_a_measured_rate() -> None:
    cost = cost_of(arms()["e2"])
    assert cost.rate is not None and cost.rate.source.endswith("compiled on one H200")
    assert cost.flops / cost.rate.per_second == pytest.approx(
        270 * 131_072 / 141_000, rel=0.05
    )  # the adapters' own weights


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{recipe: mini.yaml}", "s.yaml:1: a model with `recipe:` needs a `name:`"),
        ("{name: a, model: tiny, recipe: mini.yaml}", "s.yaml:1: a model with `recipe:` needs a `name:`, and no"),
        ("{name: a, model: tiny, set: {seed: 1}}", "s.yaml:1: `set:` changes a recipe; add `recipe: NAME`"),
        ("{name: a, recipe: mini.yaml, set: 3}", "s.yaml:1: `set:` is 3; it must hold"),
        ("{name: a, recipe: mini.yaml, set: {sed: 1}}", "s.yaml:1: unknown recipe key 'sed'; did you mean 'seed'?"),
        ("{name: a, recipe: minni.yaml}", "s.yaml:1: recipe minni.yaml does not exist; give the path"),
        ("{name: train, model: tiny}", "s.yaml:1: name 'train' is not possible"),
    ],
)
def test_a_wrong_training_is_refused_with_its_line(miniature, model: str, message: str) -> None:
    Path("s.yaml").write_text(f"models: [{model}]\nexperiments: [{{experiment: ppl}}]\n")
    with pytest.raises(E2BenchError) as caught:
        read_suite("s.yaml", Common.read({}), {})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ("3", "`rates:` has `machine: NAME`"),
        ("{ppl: 3}", "`rates:` has `machine: NAME`"),
        ("{machine: a card, pppl: 3}", "unknown rate 'pppl'; did you mean 'ppl'?"),
        ("{machine: a card, ppl: 0}", "s.yaml:3: rate ppl is 0; it must be a number above 0"),
    ],
)
def test_a_wrong_rate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(f"models: [{{model: tiny}}]\nexperiments: [{{experiment: ppl}}]\nrates: {rates}\n")
    with pytest.raises(E2BenchError) as caught:
        read_suite("s.yaml", Common.read({}), {})
    assert message in str(caught.value)


def test_pieces_are_chosen_by_title_or_model() -> None:
    def titles(*only: str) -> list[str]:
        return [piece.title for piece in read_suite(CAMPAIGN, Common.read({}), {}, only).wanted]

    assert titles("plain/ppl-yarn") == ["plain/ppl-yarn"]
    assert titles("pi") == ["train/pi", "pi/ppl-linear", "pi/passkey-linear", "pi/ruler-linear"]
    assert titles("train") == [f"train/{name}" for name in arms()]
    assert titles("report") == []
    with pytest.raises(E2BenchError, match="unknown piece of the suite 'plane'; did you mean 'plain'"):
        titles("plane")


def test_a_run_of_a_model_that_is_not_trained_is_refused_before_anything_runs(miniature, cli) -> None:
    ended = cli("suite", CAMPAIGN, *miniature, "--out", "o", "--only", "plain/ppl-yarn")
    assert ended.code == 2
    assert "plain/ppl-yarn needs o/train/plain, which is not there: add --only train/plain" in ended.err


def test_data_that_is_missing_is_said_before_anything_runs(miniature, cli) -> None:
    Path("text.jsonl").unlink()
    ended = cli("suite", CAMPAIGN, *miniature, "--out", "o", "--only", "train/plain")
    assert ended.code == 2 and "does not exist; check `files`" in ended.err and not Path("o").exists()


def test_a_result_of_other_settings_is_refused(miniature, tmp_path: Path) -> None:
    made = Training("a", load_recipe("mini.yaml"), tmp_path / "a", 1)
    work_off_training(made)
    assert made.is_done and cost_of(made).done == 4 and measured_rate(made, cost_of(made))
    other = dataclasses.replace(made, recipe=load_recipe("mini.yaml", ["seed=5"]))
    with pytest.raises(RunFolderError, match="was trained with seed = 0, and the suite says 5"):
        _ = other.is_done


def test_several_processes_are_sent_to_train_first(miniature, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    ended = cli("suite", CAMPAIGN, *miniature, "--out", "o", "--only", "train/plain")
    assert ended.code == 2 and "train it first (torchrun" in ended.err
