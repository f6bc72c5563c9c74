"""The command line's words: names as people write them, help, lists, JSON, and what to do next."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_folders import TASKS, longbench_run, prediction

import e2bench
from e2bench.cli.registry import COMMANDS, Commands
from e2bench.errors import E2BenchError
from e2bench.experiments.options import Common
from e2bench.rope.windows import parse_length, parse_lengths
from e2bench.suites.entries import read_suite
from e2bench.tasks.longbench import select
from e2bench.tasks.short import select as select_short

Cli = Callable[..., Any]
MEASURED = Path(__file__).parents[1] / "results" / "tiny"


@pytest.mark.parametrize(
    ("written", "method"), [("PI", "linear"), ("pi", "linear"), ("YaRN", "yarn"), ("NTK", "ntk"), ("None", "none")]
)
def test_methods_are_known_by_their_papers_names_in_any_case(written: str, method: str) -> None:
    assert Common.read({"method": written}).method == method


def test_another_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(E2BenchError, match="unknown method 'yarm'; did you mean 'yarn'"):
        Common.read({"method": "yarm"})
    with pytest.raises(E2BenchError, match="unknown method"):
        Common.read({"method": "llama3"})  # a checkpoint's own, not one to ask for


def test_tasks_are_known_in_any_case() -> None:
    assert [task.name for task in select("TREC, RepoBench-P")] == [task.name for task in select("trec,repobench-p")]
    assert [task.name for task in select_short("PIQA,Race_High")] == ["piqa", "race_high"]


def test_lengths_in_millions() -> None:
    assert parse_length("1M") == 1024 * 1024
    assert parse_lengths("512k..2m") == (2**19, 2**20, 2**21)
    with pytest.raises(E2BenchError, match="is not a number of tokens"):
        parse_length("M")


def test_version_is_an_option_of_every_command(cli: Cli) -> None:
    said = {cli(*arguments, "--version").out for arguments in ([], ["longbench"], ["score"], ["tasks"])}
    assert len(said) == 1 and said.pop().strip().count(".") == 2


def test_help_cuts_no_sentence_and_ends_with_examples(cli: Cli) -> None:
    whole = cli("--help").out
    assert "..." not in whole.replace("[ARGS]...", "") and "…" not in whole
    assert "pairs." in whole  # the end of attention's sentence
    said = cli("ppl", "--help").out
    assert said.index("\nOptions:") < said.index("\nModel, scale and machine:") < said.index("\nThe run:")
    assert said.rstrip().endswith(COMMANDS["ppl"].examples[-1])


def test_help_leaves_out_what_an_experiment_has_no_use_for(cli: Cli) -> None:
    assert "--engine" in cli("longbench", "--help").out
    assert "--compile" in cli("short", "--help").out
    for name in ("ppl", "short", "attention"):
        assert not re.search("--(engine|served|concurrency|insecure)", cli(name, "--help").out)
    for name in ("longbench", "ruler", "passkey", "needle", "attention"):
        assert "--compile" not in cli(name, "--help").out
    refused = cli("ppl", "--engine", "vllm")
    assert refused.code == 2 and "needs a model's losses" in refused.err


@pytest.mark.parametrize("option", ["--lengths", "--scale", "--data", "--model", "--protocol", "--window"])
def test_an_empty_value_is_said_to_be_empty(option: str, cli: Cli) -> None:
    for value in ("", " ", ","):
        ended = cli("ppl", option, value)
        assert (ended.code, ended.err) == (2, f"e2bench: {option} is empty; give a value, or leave it out\n")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["longbench", "--data", ""], "--data"),
        (["passkey", "--out", ""], "--out"),
        (["passkey", "--out="], "--out"),
        (["score", ""], "an argument"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(words: list[str], named: str, cli: Cli) -> None:
    ended = cli(*words)
    assert (ended.code, ended.err) == (2, f"e2bench: {named} is empty; give a value, or leave it out\n")


@pytest.mark.parametrize(
    "values", [{"lengths": ""}, {"lengths": []}, {"lengths": [""]}, {"data": " "}, {"out": ""}, {"scale": []}]
)
def test_an_empty_value_from_python_or_yaml_is_said_to_be_empty(values: dict[str, Any], tmp_path: Path) -> None:
    [named] = values
    said = f"--{named} is empty; give a value, or leave it out"
    with pytest.raises(E2BenchError, match=said):
        e2bench.run("ppl", **values)
    if named != "out":  # which is the suite's own
        entry = {"experiment": "ppl", **values}
        file = tmp_path / "suite.yaml"
        file.write_text(json.dumps({"models": [{"model": "tiny"}], "experiments": [entry]}))
        with pytest.raises(E2BenchError, match=said):
            read_suite(str(file), Common.read({"out": tmp_path / "out"}), {}, [])


def test_the_list_of_commands_makes_none_of_them(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(commands: Commands, name: str) -> None:
        raise AssertionError(f"{name} was made")

    monkeypatch.setattr(Commands, "__getitem__", made)
    assert "ppl  " in cli("--help").out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_are_commands_that_exist(name: str) -> None:
    command = COMMANDS[name]
    assert command.examples
    for example in command.examples:
        program, first, *arguments = shlex.split(example)
        assert (program, first) == ("e2bench", name)
        command.make_context(name, arguments)


def test_tasks_lists_every_task_of_every_experiment(cli: Cli) -> None:
    rows = json.loads(cli("tasks", "--json").out)
    assert {row["task"] for row in rows if row["experiment"] == "longbench"} >= set(TASKS)
    [trec] = [row for row in rows if row["task"] == "trec"]
    assert trec == {"experiment": "longbench", "task": "trec", "metric": "classification", "language": "en"} | {
        "samples": 200,
        "budget": 64,
    }
    assert "naturalquestions" in cli("tasks").out


def test_data_without_a_name_lists_the_public_sets(cli: Cli) -> None:
    ended = cli("data")
    assert ended.code == 0
    names = [line.split()[0] for line in ended.out.splitlines()]
    assert names[:4] == ["longbench", "longbench2", "proof-pile", "ruler"]
    assert names[4:] == ["pile", "sharegpt", "arxiv-summaries", "pubmed-summaries"]  # of trainings
    assert "114 MB" in ended.out and "465 MB" in ended.out and "over 78 MB" in ended.out
    assert "next: e2bench data NAME" in ended.err


def test_scores_as_json_for_every_kind_of_run(cli: Cli, tmp_path: Path) -> None:
    longbench_run(tmp_path / "long", tasks=["qasper"])
    found = json.loads(cli("score", tmp_path / "long", "--json").out)
    assert set(found) == {"tasks", "averages"}  # a contract
    found = json.loads(cli("score", MEASURED / "passkey-e2", "--json").out)
    assert [cell["length"] for cell in found["lengths"]] == [512, 1024, 2048, 4096, 8192]
    assert json.loads(cli("score", MEASURED / "attention-e2", "--json").out)["lengths"][0]["gold_share"] > 0


def test_scores_can_be_written_elsewhere_and_shares_are_percent(cli: Cli, tmp_path: Path) -> None:
    before = (MEASURED / "passkey-e2" / "scores.json").stat().st_mtime_ns
    ended = cli("score", MEASURED / "passkey-e2", "--out", tmp_path / "new" / "scores")
    assert (MEASURED / "passkey-e2" / "scores.json").stat().st_mtime_ns == before
    share = json.loads((tmp_path / "new" / "scores" / "scores.json").read_text())["lengths"][0]["accuracy"]
    assert f"{100 * share:.1f} %" in ended.out
    assert "next: e2bench report" in ended.err


def test_a_measuring_command_prints_its_scores_as_json(cli: Cli, tmp_path: Path) -> None:
    ended = cli(*["ppl", "--lengths", "512", "--docs", "1", "--max-windows", "1", "--json", "--out"], tmp_path / "run")
    assert [cell["window"] for cell in json.loads(ended.out)["cells"]] == [512]


def test_several_folders_become_one_report(cli: Cli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        longbench_run(tmp_path / name, tasks=["qasper"], lines=1)
    ended = cli("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["runs"] == ["a", "b"]
    assert f"next: open {tmp_path / 'out' / 'index.html'}" in ended.err


def test_compare_says_what_its_star_means(cli: Cli, tmp_path: Path) -> None:
    for name, text in (("a", "nothing of it"), ("b", "a red barn")):
        lines = [prediction("qasper", at, text) for at in range(8)]
        longbench_run(tmp_path / name, tasks=["qasper"], predictions={"qasper": lines})
    said = cli("compare", tmp_path / "a", tmp_path / "b").out
    assert "+100.00 *" in said and "does not contain 0" in " ".join(said.split())


def test_the_next_step_is_for_a_shell_and_a_bad_folder_is_said_before_a_model_is_loaded(
    cli: Cli, tmp_path: Path
) -> None:
    longbench_run(
        tmp_path / "my run", tasks=["qasper"], predictions={"qasper": [prediction("qasper", 0, "a red barn")]}
    )
    assert f"next: e2bench report '{tmp_path}/my run' for its page" in cli("score", tmp_path / "my run").err
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        ended = cli("passkey", "--model", tmp_path / "absent", "--out", out)
        assert ended.code == 2 and ended.err.endswith(f"{tmp_path}/file is a file; give a folder with --out\n")


def test_two_samples_get_no_star(cli: Cli, tmp_path: Path) -> None:
    for name, text in (("a", "nothing of it"), ("b", "a red barn")):
        lines = [prediction("qasper", at, text) for at in range(2)]
        longbench_run(tmp_path / name, tasks=["qasper"], predictions={"qasper": lines})
    said = cli("compare", tmp_path / "a", tmp_path / "b").out
    assert "+100.00" in said and "+100.00 *" not in said


@pytest.mark.parametrize(
    "command",
    [
        ("tasks",),
        ("models",),
        ("data",),
        ("results", MEASURED / "passkey-e2"),
        ("compare", MEASURED / "passkey-e2", MEASURED / "passkey-e2"),
        ("passkey", "--lengths", "512", "--dry-run"),
        pytest.param(("quickstart", "--dry-run"), marks=pytest.mark.slow),
        ("export", "--scale", "2", "--out", "exported"),
        pytest.param(("doctor",), marks=pytest.mark.slow),
    ],
    ids=lambda command: str(command[0]),
)
def test_a_command_ends_with_the_next_step(
    command: tuple[Any, ...], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(*command)
    assert ended.code == 0
    assert ended.err.splitlines()[-1].startswith("next: ") and "next: " not in ended.out


def test_results_show_shares_in_percent_and_keep_fractions_in_the_file(cli: Cli) -> None:
    shown = cli("results", MEASURED / "passkey-e2")
    scores = json.loads((MEASURED / "passkey-e2" / "scores.json").read_text("utf-8"))
    share = scores["lengths"][-1]["accuracy"]
    assert 0 < share < 1
    assert f"{100 * share:.1f} %" in shown.out
    assert f",{share}," in cli("results", MEASURED / "passkey-e2", "--csv").out


def test_results_say_once_what_a_run_has_in_common_and_break_no_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = cli("results", MEASURED.parent / "smollm2").out
    lines = [line.rstrip() for line in said.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines.count("short-paper-s2  SmolLM2-135M-Instruct.Q4_1, linear, scale 2") == 1
    assert "own: test.jsonl.gz: chapters of the Stacks Project, 2 documents" in lines
    assert any(re.fullmatch(r"naturalquestions +exact match after normalising +0 +0 – 0 +50", line) for line in lines)
    assert any(re.fullmatch(r"ppl +32k +4 +perplexity +3\.621 +3\.471 – 3\.778 +2", line) for line in lines)


def test_an_options_name_is_never_broken(cli: Cli) -> None:
    assert "'--gpu-memory-utilization" in cli("longbench", "--help").out


def test_a_wrong_option_points_to_the_help_of_its_command(cli: Cli) -> None:
    ended = cli("ppl", "--lenghts", "4k")
    assert ended.code == 2 and "(see e2bench ppl --help)" in ended.err


def test_a_missing_recipe_file_is_no_unknown_name(cli: Cli) -> None:
    ended = cli("train", "nofile.yaml")
    assert ended.code == 2 and "recipe nofile.yaml does not exist" in ended.err
