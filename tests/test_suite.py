"""Suites and forecasts: what is planned is what is done, mistakes name their place, nothing is done twice."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from e2bench.errors import E2BenchError
from e2bench.experiments.base import EXPERIMENTS
from e2bench.experiments.forecast import SAMPLE, _tokens, forecast
from e2bench.experiments.forecast_table import duration
from e2bench.experiments.longbench import LongBench
from e2bench.experiments.options import Common
from e2bench.experiments.passkey import PassKey
from e2bench.experiments.run import run_experiment
from e2bench.experiments.stored import score_folder
from e2bench.models.loading import ModelSpec
from e2bench.models.outline import Outline
from e2bench.rope.windows import Scale
from e2bench.runs.items import Item
from e2bench.suites.entries import read_suite
from e2bench.suites.execute import work_off
from e2bench.suites.file import shipped

SMALL = """models: [{model: tiny}]
experiments:
  - {experiment: ppl, lengths: "512,1k", docs: 1, max_windows: 2, scale: auto}
  - {experiment: passkey, lengths: 512, depths: 2, trials: 1}
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a suite's file into an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "s.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def entries(name: str, given: dict | None = None, **values: object):
    return read_suite(name, Common.read(given or {}), values).entries


def test_a_suite_is_planned_run_and_resumed(written, cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from e2bench.models.local import Model

    loaded = []
    load = Model.load.__func__
    monkeypatch.setattr(Model, "load", classmethod(lambda cls, spec: loaded.append(spec) or load(cls, spec)))
    name = written(SMALL)

    planned = cli("suite", name, "--out", "o", "--dry-run")
    assert planned.code == 0 and not loaded and not (tmp_path / "o").exists()
    assert all(count in planned.out for count in ("2,048", "1,024", "3,072"))  # ppl, passkey, both
    assert "? hours: no finished run" in planned.out

    assert cli("suite", name, "--out", "o").code == 0
    assert len(loaded) == 1, "one model is loaded once for all its runs"
    lines = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*.jsonl")}
    assert {path.parent.relative_to(tmp_path).as_posix() for path in lines} == {"o/tiny/ppl", "o/tiny/passkey"}
    assert (tmp_path / "o/report/index.html").stat().st_size > 10_000

    again = cli("suite", name, "--out", "o", "--dry-run")
    assert "2 │    2 │" in again.out and "?" not in again.out, "what is done takes no hours"
    shown: list[Path | None] = []
    work_off(read_suite(name, Common.read({"out": "o"}), {}), shown.append)
    assert shown == [Path("o/tiny/ppl"), Path("o/tiny/passkey")]
    assert {path: path.stat().st_mtime_ns for path in lines} == lines, "no line was made or written again"

    more = cli("passkey", "--lengths", "512", "--depths", "4", "--out", "o/tiny/more", "--dry-run")
    assert " s, at the rate of the finished run in o/tiny/passkey" in more.out
    assert [duration(hours) for hours in (0.0001, 0.02, 0.05, 1.5, 3.47)] == [
        "1 s",
        "72 s",
        "3 min",
        "90 min",
        "3.5 hours",
    ]


MISTAKES = {
    "experiment: ppl, lenths: 4k": (3, "unknown setting of ppl 'lenths'; did you mean 'lengths'?"),
    "experiment: pplx": (3, "unknown experiment 'pplx'; did you mean 'ppl'?"),
    "experiment: ppl, lengths: 4k..x": (3, "--lengths: length 'x' is not a number of tokens"),
    "experiment: ppl, stride: 4k": (3, "stride is '4k'; it must be int"),
    "experiment: ppl, protocol: pres": (3, "unknown protocol 'pres'; did you mean 'press'?"),
    "experiment: ppl, scale: 0.5": (3, "scale 0.5 is not possible"),
    "experiment: longbench, scale: [2, 4]": (3, "scale '2,4' is a list, which longbench does not take"),
    "experiment: ppl, out: here": (3, "unknown setting of ppl 'out'"),
    "experiment: ppl, models: [tinny]": (3, "unknown model 'tinny'; did you mean 'tiny'?"),
    "experiment: ppl, models: {tiny: {lenths: 4k}}": (3, "unknown setting of ppl 'lenths'"),
    "experiment: ppl, models: {tiny: 8}": (3, "8 is no setting"),
    "experiment: ppl, name: report": (3, "name 'report' is not possible"),
    "experiment: ppl, name: ../up": (3, "name '../up' is not possible"),
    "experiment: ppl, data: $corpus": (3, "unknown variable 'corpus'"),
    "lengths: 4k": (3, "needs `experiment: NAME`"),
    "experiment: ppl, docs: 1, docs: 2": (3, "not valid YAML: key 'docs' stands twice"),
}


@pytest.mark.parametrize("entry", MISTAKES)
def test_a_mistake_is_one_line_with_file_and_place(written, entry: str) -> None:
    line, message = MISTAKES[entry]
    name = written(f"models: [{{model: tiny}}]\nexperiments:\n  - {{{entry}}}\n")
    with pytest.raises(E2BenchError) as caught:
        entries(name)
    assert str(caught.value).startswith(f"s.yaml:{line}: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "s.yaml:1: not valid YAML"),
        ("[1, 2]", "s.yaml:1: a suite has `models:` and `experiments:`"),
        ("models: [{model: tiny}]", "s.yaml:1: a suite needs `experiments:`"),
        ("model: [{model: tiny}]", "s.yaml:1: unknown key of a suite 'model'; did you mean 'models'?"),
        (SMALL.replace("tiny}", "tiny, dtipe: float32}"), "s.yaml:1: unknown setting of a model 'dtipe'; did you mean"),
        (SMALL.replace("[{model: tiny}]", "[{model: tiny}, {model: tiny}]"), "s.yaml:1: two models are called 'tiny'"),
        (SMALL.replace("passkey, lengths: 512", "ppl, lengths: 512").replace(", depths: 2, trials: 1", ""),
         "s.yaml:4: another run has the folder results/s/tiny/ppl too"),
        (f"needs: [base]\nvariables: {{base: }}\n{SMALL}", "s.yaml:1: give --set base=VALUE"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_line(written, text: str, message: str) -> None:
    with pytest.raises(E2BenchError) as caught:
        entries(written(text))
    assert str(caught.value).startswith(message)


def test_what_a_plan_finds_wrong_names_the_entry_too(written, cli) -> None:
    name = written("models: [{model: none/there}]\nexperiments:\n\n  - {experiment: ppl}\n")
    ended = cli("suite", name)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "s.yaml:4: there/ppl: none/there is not in the hub's cache" in ended.err


def test_the_later_setting_wins(written) -> None:
    name = written(
        "variables: {n: 2}\n"
        "models: [{}, {name: big, scale: 8, model: tiny}]\n"
        "experiments:\n"
        "  - {experiment: ppl, docs: $n, name: a}\n"
        "  - {experiment: ppl, scale: 1, docs: 3, name: b, models: {big: {docs: 4, stride: 128}}}\n"
    )
    first, second, third = entries(name, {"model": "some/model", "scale": "2", "out": "o"}, n=5)
    assert [(e.model, e.name) for e in (first, second, third)] == [("", "a"), ("big", "a"), ("big", "b")]
    assert (first.common.model, first.common.scale, first.common.out) == (
        "some/model",
        Scale("fixed", (2.0,)),
        Path("o/a"),
    )
    assert (second.common.model, second.common.scale, second.common.out) == (
        None,
        Scale("fixed", (8.0,)),
        Path("o/big/a"),
    )
    assert second.experiment.docs == 5 and third.common.scale == Scale("fixed", (1.0,))
    assert (third.experiment.docs, third.experiment.stride) == (4, 128)


def test_an_option_that_no_run_takes_is_refused(written) -> None:
    name = written(SMALL)
    with pytest.raises(E2BenchError, match=r"--model has no effect: every run of s.yaml says its own model"):
        entries(name, {"model": "other"})
    with pytest.raises(E2BenchError, match=r"unknown variable of s.yaml 'x'; s.yaml has no variables"):
        entries(name, x=1)


def test_the_suite_on_the_how_to_page_is_one(written) -> None:
    page = (Path(__file__).parents[1] / "docs/howto/suites.md").read_text(encoding="utf-8")
    found = entries(written(page.partition("```yaml\n")[2].partition("```")[0]))
    assert [(e.model, e.name) for e in found] == [("tiny", "ppl"), ("tiny", "passkey"), ("ntk", "ppl")]


@pytest.mark.parametrize("name", shipped())
def test_shipped_suites_fit_the_registry(name: str) -> None:
    values = {"base": "tiny", "e2": "tiny"} if name == "paper" else {}
    if name == "modern" and not {"ruler", "longbench2"} <= set(EXPERIMENTS):
        with pytest.raises(
            E2BenchError, match=r"modern.yaml:\d+: unknown experiment '(ruler|longbench2)'; known: longbench"
        ):
            entries(name, **values)
        return
    found = entries(name, **values)
    assert len(found) == {"quickstart": 5, "modern": 6, "paper": 18, "smollm2-campaign": 58}[name]
    assert {entry.experiment.name for entry in found} <= set(EXPERIMENTS)


def test_quickstart_keeps_its_folders_and_options() -> None:
    found = entries("quickstart", {"window": "1k", "scale": "4"})
    by_name = {entry.name: entry for entry in found}
    assert list(by_name) == ["longbench", "ppl", "extrapolate", "passkey", "attention"]
    assert by_name["ppl"].common.out == Path("results/quickstart/ppl")
    assert by_name["longbench"].common.window == 1024 and by_name["ppl"].common.window is None
    assert by_name["ppl"].common.scale == Scale("fixed", (4.0,)) and by_name["extrapolate"].common.scale is None


# forecasts


def test_an_outline_is_the_model_without_its_weights(tiny_folder: Path, tiny_model) -> None:
    outline = Outline(ModelSpec(model=str(tiny_folder)))
    for name in ("native_window", "own_scaling", "vocab_size", "layers", "heads", "dtype", "weight_bytes", "path"):
        assert getattr(outline, name) == getattr(tiny_model, name), name
    assert outline.needed_bytes(1000, 3) == tiny_model.needed_bytes(1000, 3)
    assert outline.encode("a b") == tiny_model.encode("a b")


def test_forecast_tokens_are_those_that_the_run_then_reads(tiny_model, tmp_path: Path) -> None:
    common = Common.read({"scale": "2", "out": tmp_path / "lb"})
    experiment = LongBench.read({"data": "demo", "tasks": "trec,lcc"})
    planned = forecast(experiment, common, tiny_model)
    run_experiment(experiment, common, tiny_model)
    for part in planned.parts:
        lines = [json.loads(line) for line in (tmp_path / f"lb/{part.name}.jsonl").read_text().splitlines()]
        assert part.inputs == len(lines) and part.tokens == sum(line["kept_tokens"] + 64 for line in lines)
    grown = forecast(experiment.replaced(tasks="trec,lcc,lsht"), common, tiny_model)
    assert (grown.inputs, grown.done) == (6, 4) and grown.hours is not None and grown.hours > 0
    assert grown.rate is not None and grown.rate.source == f"the finished run in {tmp_path / 'lb'}"


def test_rates_come_from_runs_of_the_same_kind_only(tiny_model, tmp_path: Path) -> None:
    common = Common.read({"out": tmp_path / "a" / "keys"})
    run_experiment(PassKey.read({"lengths": "512", "depths": 1, "trials": 1}), common, tiny_model)
    other = PassKey.read({"lengths": "512", "depths": 2, "trials": 1})
    assert forecast(other, Common.read({"out": tmp_path / "b"}), tiny_model, tmp_path).hours is not None
    run = json.loads((tmp_path / "a/keys/run.json").read_text())
    for key, value in (("device", "other"), ("dtype", "other"), ("ended", None), ("work", 7), ("experiment", "ppl")):
        (tmp_path / "a/keys/run.json").write_text(json.dumps({**run, key: value}))
        found = forecast(other, Common.read({"out": tmp_path / "b"}), tiny_model, tmp_path)
        assert found.hours is None and "hours" in found.unknown[0], key


def test_many_inputs_are_sampled_over_their_sizes() -> None:
    items = [Item("t", str(i), i, None, None) for i in range(1000)]
    asked = []
    plan = SimpleNamespace(tokens=lambda item: asked.append(item) or 2 * item.cost)
    assert _tokens(plan, items) == pytest.approx(999_000, rel=0.01) and len(asked) == SAMPLE
    assert _tokens(SimpleNamespace(tokens=lambda item: None), items) is None
    assert _tokens(SimpleNamespace(tokens=None), items) == 499_500


def test_a_command_that_makes_no_run_has_no_dry_one(cli, tmp_path: Path) -> None:
    ended = cli("export", "--out", tmp_path / "x", "--dry-run")
    assert ended.code == 2 and "--dry-run" in ended.err and not (tmp_path / "x").exists()


# flat results


def test_results_are_every_number_with_where_it_is_from(cli) -> None:
    folder = Path(__file__).parents[1] / "results" / "smollm2"
    ended = cli("results", folder, "--csv")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert ended.code == 0 and {row["experiment"] for row in rows} == {"longbench", "ppl", "attention", "short"}
    cells = json.loads((folder / "ppl-yarn" / "scores.json").read_text())["cells"]
    mine = [row for row in rows if row["folder"] == "ppl-yarn"]
    assert [float(row["value"]) for row in mine] == [cell["perplexity"] for cell in cells]
    assert [[float(row["low"]), float(row["high"])] for row in mine] == [cell["interval"] for cell in cells]
    assert [int(row["length"]) for row in mine] == [cell["window"] for cell in cells]
    assert {row["method"] for row in mine} == {"yarn"}
    scores = json.loads((folder / "longbench-16k" / "scores.json").read_text())
    tasks = {row["task"]: row for row in rows if row["folder"] == "longbench-16k"}
    assert {name: float(tasks[name]["value"]) for name in scores["tasks"]} == scores["tasks"]
    assert (tasks["hotpotqa"]["metric"], tasks["hotpotqa"]["length"]) == ("qa_f1", "16384")
    assert all(row["n"] and row["commit"] and row["data"] for row in rows if row["task"] != "average")


def test_results_leave_a_damaged_run_out_and_say_so(cli, tmp_path: Path) -> None:
    for name, interval in (("good", [1.0, 2.0]), ("bad", "wide")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"experiment": "ppl", "ended": "x"}))
        cell = {"window": 512, "scale": 1, "perplexity": 1.5, "interval": interval, "documents": 2, "method": "none"}
        (tmp_path / name / "scores.json").write_text(json.dumps({"cells": [cell]}))
    ended = cli("results", tmp_path, "--csv")
    assert ended.code == 0 and "bad: " in ended.err and "skipped" in ended.err
    assert [row["folder"] for row in csv.DictReader(io.StringIO(ended.out))] == ["good"]


# tasks of one's own


EXAMPLE = {"input": "What is the total?", "context": "Total 42.", "answers": ["42"], "length": 2, "all_classes": None}
ROW = """- task: receipts
  data: receipts.jsonl
  prompt: "{context} {input} The total is"
  metric: qa_f1
  max_new_tokens: 4
"""


@pytest.fixture
def own(written, tmp_path: Path) -> str:
    """A YAML file with one task of three examples."""
    lines = [json.dumps({**EXAMPLE, "_id": str(number)}) for number in range(3)]
    (tmp_path / "receipts.jsonl").write_text("\n".join(lines) + "\n")
    return written(ROW, "tasks.yaml")


def test_an_own_task_runs_and_is_scored_without_its_file(own: str, tiny_model, tmp_path: Path) -> None:
    common = Common.read({"out": tmp_path / "o", "window": "100"})
    run_experiment(LongBench.read({"include": own, "limit": 2}), common, tiny_model)
    (tmp_path / own).unlink()
    assert score_folder(tmp_path / "o")["details"]["receipts"]["scored"] == 2
    lines = [json.loads(line) for line in (tmp_path / "o/receipts.jsonl").read_text().splitlines()]
    assert lines[0]["tail"] == "Total 42. What is the total? The total is"
    lines[0]["pred"], lines[1]["pred"] = "the total: 42", "41"
    (tmp_path / "o/receipts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = score_folder(tmp_path / "o")
    # F1 of "total 42" (articles are dropped) against "42": precision 1/2, recall 1, so 2/3; of "41" it is 0
    assert scores["tasks"]["receipts"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert scores["averages"] == {} and scores["details"]["receipts"]["left_out"] == 1

    changed = ROW.replace("The total is", "Total:")
    (tmp_path / own).write_text(changed)
    with pytest.raises(E2BenchError, match="holds a run with versions"):
        run_experiment(LongBench.read({"include": own}), common, tiny_model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("metric: qa_f1", "metric: qa_f2"), "tasks.yaml:1: unknown metric 'qa_f2'; did you mean 'qa_f1'?"),
        (("max_new_tokens", "max_new_token"), "tasks.yaml:5: unknown setting of a task 'max_new_token'"),
        (("{input}", "{question}"), "tasks.yaml:1: prompt cannot be filled in ('question')"),
        (("task: receipts", "task: trec"), "tasks.yaml:1: there is a task 'trec' already"),
        (("task: receipts", "task: ../x"), "tasks.yaml:1: task '../x' is not possible"),
        (("  metric: qa_f1\n", ""), "tasks.yaml:1: a task needs task, data, prompt, metric; metric is missing"),
        (("receipts.jsonl", "none.jsonl"), "tasks.yaml:1: receipts: no file none.jsonl"),
        (("max_new_tokens: 4", "max_new_tokens: 0"), "--max-new-tokens 0 is not possible"),
    ],
)
def test_a_wrong_row_is_refused_with_its_place(own: str, change: tuple[str, str], message: str) -> None:
    Path(own).write_text(ROW.replace(*change))
    with pytest.raises(E2BenchError) as caught:
        LongBench.read({"include": own}).inputs(Common())
    assert message in str(caught.value)


def test_own_tasks_are_picked_by_name_and_stand_alone(own: str) -> None:
    with pytest.raises(E2BenchError, match=r"unknown task 'receipt'; did you mean 'receipts'?"):
        LongBench.read({"include": own, "tasks": "receipt"}).inputs(Common())
    with pytest.raises(E2BenchError, match=r"--data is for LongBench's tasks"):
        LongBench.read({"include": own, "data": "demo"}).inputs(Common())
