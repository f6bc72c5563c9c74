"""The command line: what a user gets wrong is one line and exit 2; a run leaves the promised files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2bench.tasks.demo import write_longbench

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two examples of every task."""
    return write_longbench(tmp_path_factory.mktemp("demo"))


def refused(ended: Any, *said: str) -> None:
    """Exit 2 and one line on stderr that says all of `said`."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert ended.code == 2, ended
    assert len(lines) == 1 and lines[0].startswith("e2bench: "), ended.err
    for part in said:
        assert part in lines[0]


# ---- a user's mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "hotpotqaa"], ["unknown task 'hotpotqaa'", "did you mean 'hotpotqa'?"]),
        (["--tasks", ","], ["--tasks is empty"]),
        (["--data", "absent"], ["no folder absent"]),
        (["--data", "EMPTY"], ["holds no NAME.jsonl file"]),
        (["--scale", "0.5"], ["scale 0.5 is not possible", "at least 1"]),
        (["--scale", "2,4"], ["'2,4' is a list, which longbench does not take"]),
        (["--scale", ""], ["--scale is empty"]),
        (["--scale", "eight"], ["'eight' is not a number"]),
        (["--scale", "nan"], ["nan"]),
        (["--scale", "1e999"], ["finite"]),
        (["--method", "linaer"], ["linaer", "linear"]),
        (["--window", "100", "--tasks", "gov_report"], ["gov_report: window 100 is too small", "512"]),
        (["--window", "4kk"], ["4kk"]),
        (["--window", "0"], ["0"]),
        (["--native-window", "abc"], ["abc"]),
        (["--batch-size", "0"], ["batch size '0'"]),
        (["--batch-size", "two"], ["batch size 'two'"]),
        (["--truncation", "oficial"], ["oficial"]),
        (["--chat-template", "lama2"], ["unknown chat template 'lama2'", "did you mean 'llama2'"]),
        (["--chat-template", "absent.jinja"], ["absent.jinja cannot be read"]),
        (["--prompts", "absent.json"], ["absent.json cannot be read"]),
        (["--limit", "0"], ["--limit"]),
        (["--dtype", "float12"], ["float12", "bfloat16"]),
        (["--device", "gpu"], ["gpu", "cuda"]),
        (["--attn", "flash"], ["flash", "sdpa"]),
        (["--model", "/nowhere/model"], ["no folder or file /nowhere/model"]),
        (["--model", "absent.gguf"], ["no file absent.gguf"]),
        (["--model", "absent"], ["no folder or file absent; give a folder"]),
        (["--model", "NO-WEIGHTS"], ["holds no weights"]),
        (["--model", "NO-TOKENIZER"], ["tokenizer"]),
        (["--model", "NO-CONFIG"], ["no config.json"]),
        (["--model", "PICKLED"], ["is a pickle", "--allow-pickle"]),
        (["--model", "CODE"], ["--trust-remote-code"]),
        (["--model", "TRUNCATED"], ["cannot be loaded"]),
        (["--model", "GPT2"], ["'gpt2' has no rotary positions"]),
        (["--resume"], ["no run to resume"]),
        (["--no-such-flag"], ["--no-such-flag"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_a_mistake_is_refused_in_one_line(
    arguments: list[str], said: list[str], broken_models: Path, tiny_folder: Path, demo: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "empty").mkdir()
    folders = {"EMPTY": tmp_path / "empty"} | {path.name: path for path in broken_models.iterdir()}
    given = {
        "--model": tiny_folder,
        "--data": demo,
        "--tasks": "trec,gov_report",
        "--out": tmp_path / "run",
        "--window": 600,
    }
    given = {name: value for name, value in given.items() if name not in arguments}
    own = [folders.get(part, part) for part in arguments]
    refused(cli("longbench", *[p for pair in given.items() for p in pair], *own), *said)
    assert not list(tmp_path.glob("run/*.jsonl"))


@pytest.fixture(scope="module")
def broken_models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders, each with one thing wrong."""
    from transformers import GPT2Config, GPT2LMHeadModel

    root = tmp_path_factory.mktemp("broken")
    for name in ("NO-WEIGHTS", "NO-TOKENIZER", "NO-CONFIG", "PICKLED", "CODE", "TRUNCATED", "GPT2"):
        shutil.copytree(tiny_folder, root / name)
    for name in ("NO-WEIGHTS", "PICKLED", "GPT2"):
        (root / name / "model.safetensors").unlink()
    for file in (root / "NO-TOKENIZER").glob("tokenizer*"):
        file.unlink()
    (root / "NO-CONFIG" / "config.json").unlink()
    (root / "PICKLED" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    code = root / "CODE" / "config.json"
    auto_map = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
    own = {"auto_map": auto_map, "model_type": "own"}  # a class that transformers does not have
    code.write_text(json.dumps({**json.loads(code.read_text()), **own}), encoding="utf-8")
    weights = root / "TRUNCATED" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=512)).save_pretrained(root / "GPT2")
    return root


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"input": "x"', ["trec.jsonl:2", "not a JSON object"]),
        ('{"input": "x", "context": "y"}', ["trec.jsonl:2", "field 'answers' is missing"]),
    ],
)
def test_a_malformed_example_is_named_by_file_and_line(
    line: str, said: list[str], tiny_folder: Path, demo: Path, tmp_path: Path, cli: Cli
) -> None:
    good = (demo / "trec.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "trec.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    out = tmp_path / "run"
    refused(cli("longbench", "--model", tiny_folder, "--data", tmp_path, "--tasks", "trec", "--out", out), *said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "absent"], ["no folder absent"]),
        (["score", "BROKEN"], ["trec.jsonl:1"]),
        (["report", "absent"], ["absent"]),
        (["data", "longbnech"], ["did you mean 'longbench'"]),
        (["longbnech"], ["longbnech"]),
        (["score"], ["Missing argument"]),
    ],
)
def test_other_commands_refuse_in_one_line_too(
    arguments: list[str], said: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "trec.jsonl").write_text('{"pred": "x"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    refused(cli(*arguments), *said)


def test_a_folder_of_runs_names_them_to_score(cli: Any, tmp_path: Path) -> None:
    for name in ("g4", "g2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}", encoding="utf-8")
    refused(cli("score", tmp_path), "holds runs and is none: score one of g2, g4, or `e2bench report` all")


def test_demo_stands_for_longbench_without_a_network(cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    own = ("longbench", "--tasks", "trec", "--limit", "1", "--window", "512", "--out", "run")
    refused(cli(*own), "cannot be fetched from the hub", "--data demo")
    ended = cli(*own, "--data", "demo")
    assert ended.code == 0 and "made-up samples" in ended.err
    assert (tmp_path / "run" / "trec.jsonl").read_text().count("\n") == 1


# ---- a run


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 21 tasks of the demo data on the tiny model."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "-m", "e2bench", "longbench", *options(tiny_folder, demo, out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out


def options(model: Path, data: Path, out: Path, scale: int = 8) -> list[str]:
    """A run at g = 8: window 1,024."""
    return ["--model", str(model), "--data", str(data), "--limit", "1", "--scale", str(scale), "--out", str(out)]


def test_a_run_leaves_lines_that_keep_the_window_and_longbenchs_fields(finished: Path) -> None:
    rows = [json.loads(line) for path in finished.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()]
    assert len(rows) == 21
    fields = "pred answers all_classes length _id dataset prompt_tokens kept_tokens new_tokens finish scale seconds"
    for row in rows:
        assert set(fields.split()) <= row.keys()
        assert row["kept_tokens"] + row["new_tokens"] <= 1024 and row["scale"] == 8
        assert row["finish"] in ("eos", "length", "scored")


def test_run_json_says_how_the_numbers_were_made(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    assert (run["experiment"], run["dtype"], run["attention"]) == ("longbench", "float32", "sdpa")
    assert run["resolved"]["window"] == 1024 and run["resolved"]["scale"] == 8 and run["model"]["native_window"] == 128
    # theta 10,000, head dimension 16: the first inverse frequency is 1, here divided by g
    assert run["rope"]["inv_freq"][0] == 1 / 8 and len(run["rope"]["inv_freq"]) == 8
    assert len(run["data"]) == 21 and all(len(digest) == 64 for digest in run["data"].values())
    assert run["ended"] and {"torch", "transformers", "lm-eval", "jieba"} <= run["versions"].keys()


def test_score_prints_json_of_the_stored_scores_and_writes_nothing(finished: Path, cli: Cli) -> None:
    stored = json.loads((finished / "scores.json").read_text(encoding="utf-8"))
    (finished / "scores.json").unlink()
    ended = cli("score", finished, "--json")
    assert (ended.code, ended.err) == (0, "") and not (finished / "scores.json").exists()
    assert json.loads(ended.out) == {"tasks": stored["tasks"], "averages": stored["averages"]}
    assert len(stored["tasks"]) == 21 and all(v is not None for s in stored["averages"].values() for v in s.values())
    assert cli("score", finished).code == 0
    assert json.loads((finished / "scores.json").read_text(encoding="utf-8")) == stored


def test_a_folder_from_other_settings_is_refused_naming_the_setting(
    finished: Path, tiny_folder: Path, demo: Path, cli: Cli
) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    refused(cli("longbench", *options(tiny_folder, demo, finished, scale=16)), "window = 1024, not 2048", "--fresh")
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_other_data_is_other_settings(finished: Path, tiny_folder: Path, tmp_path: Path, cli: Cli) -> None:
    other = write_longbench(tmp_path / "data", examples=1, seed=1)
    refused(cli("longbench", *options(tiny_folder, other, finished)), "holds a run with data = ")


def test_another_tokenizer_is_other_settings(
    finished: Path, tiny_folder: Path, demo: Path, tmp_path: Path, cli: Cli
) -> None:
    arguments = [*options(tiny_folder, demo, tmp_path / "run"), "--tasks", "trec"]
    assert cli("longbench", *arguments).code == 0
    assert cli("longbench", *arguments, "--tokenizer", tiny_folder).code == 0  # the checkpoint's own
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(content))
    refused(cli("longbench", *arguments, "--tokenizer", other), "holds a run with tokenizer = ")


def test_a_finished_run_given_again_does_nothing_but_score(
    finished: Path, tiny_folder: Path, demo: Path, cli: Cli
) -> None:
    before = {path.name: path.read_bytes() for path in finished.glob("*.jsonl")}
    ended = cli("longbench", *options(tiny_folder, demo, finished))
    assert ended.code == 0 and "21 of 21 were done before" in ended.err
    assert {path.name: path.read_bytes() for path in finished.glob("*.jsonl")} == before


def test_without_context_the_document_is_not_in_the_prompt(
    finished: Path, tiny_folder: Path, demo: Path, tmp_path: Path, cli: Cli
) -> None:
    arguments = options(tiny_folder, demo, tmp_path / "run")
    assert cli("longbench", *arguments, "--no-context", "--tasks", "hotpotqa").code == 0
    bare = json.loads((tmp_path / "run" / "hotpotqa.jsonl").read_text(encoding="utf-8"))
    full = json.loads((finished / "hotpotqa.jsonl").read_text(encoding="utf-8"))
    assert bare["prompt_tokens"] < full["prompt_tokens"] / 2


def test_per_input_scale_follows_each_prompt(tiny_folder: Path, demo: Path, tmp_path: Path, cli: Cli) -> None:
    shared = ["--model", tiny_folder, "--data", demo, "--limit", "1", "--scale", "per-input", "--no-context"]
    assert cli("longbench", *shared, "--tasks", "trec,hotpotqa,lcc", "--out", tmp_path).code == 0
    budgets = {"trec": 64, "hotpotqa": 32, "lcc": 64}
    for name, budget in budgets.items():
        row = json.loads((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8"))
        assert row["scale"] == max(1, -(-(row["kept_tokens"] + budget) // 128))
        assert row["kept_tokens"] == row["prompt_tokens"]


def test_an_input_limit_holds_for_per_input_scales_too(tiny_folder: Path, demo: Path, tmp_path: Path, cli: Cli) -> None:
    shared = ["--model", tiny_folder, "--data", demo, "--limit", "1", "--scale", "per-input", "--tasks", "hotpotqa"]
    assert cli("longbench", *shared, "--input-limit", "101", "--truncation", "ids", "--out", tmp_path).code == 0
    row = json.loads((tmp_path / "hotpotqa.jsonl").read_text(encoding="utf-8"))
    assert row["prompt_tokens"] > row["kept_tokens"] == 101 and row["scale"] == 2  # with 32 to generate, 133 of 128


def test_early_stopping_changes_no_score(tiny_folder: Path, demo: Path, tmp_path: Path, cli: Cli) -> None:
    shared = ["--model", tiny_folder, "--data", demo, "--window", "384", "--tasks", "trec,samsum,lcc,triviaqa"]
    for flag, out in (("--early-stop", "soon"), ("--no-early-stop", "late")):
        assert cli("longbench", *shared, flag, "--out", tmp_path / out).code == 0
    soon, late = (json.loads((tmp_path / out / "scores.json").read_text()) for out in ("soon", "late"))
    assert soon["tasks"] == late["tasks"]


def test_interrupted_by_the_keyboard_is_exit_130(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("e2bench.cli.score.score_folder", interrupt)
    ended = cli("score", tmp_path)
    assert ended.code == 130 and "give the same command again" in ended.err


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['e2bench', '--help']; from e2bench.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pandas', 'yaml', 'jieba') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert "longbench" in ended.stdout and "quickstart" in ended.stdout


def test_a_failure_of_ours_is_one_line_and_a_log(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("never seen\nbefore")

    monkeypatch.setattr("e2bench.cli.score.score_folder", fail)
    ended = cli("score", tmp_path)
    assert ended.code == 1 and ended.err.count("\n") == 1 and "ZeroDivisionError: never seen before" in ended.err
    log = Path(ended.err.split()[-1])
    assert "Traceback" in log.read_text("utf-8") and "e2bench score" in log.read_text("utf-8")
    log.unlink()
