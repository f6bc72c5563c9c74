"""Whole training runs on a small Llama: interrupted, resumed, in two processes; what they leave behind."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import slowed
import torch
from transformers import AutoTokenizer

from e2bench.cli.train import run
from e2bench.errors import E2BenchError, RunFolderError
from e2bench.prompts.chat import VICUNA_TEMPLATE, chat_wrapper
from e2bench.runs.lock import FolderLock
from e2bench.train.callbacks import TrainLog
from e2bench.train.finetune import checked_checkpoint, train
from e2bench.train.recipe import load_recipe

LORA = ["lora.rank=4", "lora.dropout=0.2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order: bit-for-bit comparisons hold between runs with the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe(small_recipe):
    return small_recipe


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert train(load_recipe(str(recipe)), out)
    return out


def test_the_model_is_saved_in_the_precision_of_its_training_with_the_chat_template_of_its_data(recipe, tmp_path):
    turns = [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A colour."}]
    (tmp_path / "talk.json").write_text(json.dumps([{"conversations": turns}] * 20))
    data = f"data=[{{files: [{tmp_path / 'talk.json'}], layout: sharegpt}}]"
    settings = load_recipe(str(recipe), [data, "steps=2", "precision=bfloat16", "save_every=1"])
    assert train(settings, tmp_path / "out")
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights(tmp_path / "out" / "checkpoint-2").values()} == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    last = weights(tmp_path / "out" / "checkpoint-2")
    assert all(torch.equal(tensor, last[name].bfloat16()) for name, tensor in weights(tmp_path / "out").items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == VICUNA_TEMPLATE
    wrapped, named = chat_wrapper("auto", tokenizer), chat_wrapper("vicuna", tokenizer)
    assert wrapped.apply("x") == tokenizer.bos_token + named.apply("x")


def weights(folder, name="model.safetensors"):
    return safetensors.torch.load_file(folder / name)


def log(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def started(recipe, out, overrides):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PAUSE_S": "0.3"}
    command = [sys.executable, slowed.__file__, "train", str(recipe), *overrides, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the run ended before it was interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_leaves_a_model_a_log_and_its_settings(finished):
    lines = log(finished)
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert {"loss", "g", "t", "lr", "tokens", "seconds"} < set(lines[0])
    assert all(0 <= line["t"] <= max(0, line["g"] * 32 - 32) and 1 <= line["g"] <= 20 for line in lines)
    assert lines[-1]["tokens"] == 24 * 4 * 32
    config = json.loads((finished / "e2_config.json").read_text())
    names = ("base", "method", "offset", "scale", "g_max", "native_window", "train_window", "sinks", "per_sample")
    assert {*names, "step", "steps", "tokens", "seed"} < set(config)
    assert (config["base"], config["native_window"], config["step"], config["g_max"]) == ("base", 32, 24, 20)
    assert config["settings"]["learning_rate"] == 1e-2 and set(config["data"]) == {"texts.jsonl"}
    checkpoints = sorted(path.name for path in finished.glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-20", "checkpoint-24"]
    assert json.loads((finished / "checkpoint-20" / "e2_config.json").read_text())["step"] == 20
    assert list(finished.rglob("events.out.tfevents.*"))


def test_weights_after_a_kill_are_those_of_an_uninterrupted_run(recipe, finished, tmp_path):
    process = started(recipe, tmp_path, [])
    wait_for(tmp_path / "checkpoint-5" / "e2_config.json", process)
    process.kill()
    process.wait()
    (tmp_path / "checkpoint-99").mkdir()  # as if killed while it was being written
    assert not (tmp_path / "model.safetensors").exists()
    assert train(load_recipe(str(recipe)), tmp_path)
    expected, got = weights(finished), weights(tmp_path)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    without_time = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in log(d)] for d in (finished, tmp_path)
    ]
    assert without_time[0] == without_time[1]


def test_sigterm_saves_and_ends_and_adapters_with_dropout_go_on_the_same(recipe, tmp_path):
    overrides = [*LORA, "steps=60", "learning_rate=1e-3"]
    process = started(recipe, tmp_path / "stopped", overrides)
    wait_for(tmp_path / "stopped" / "train.jsonl", process)
    wait_for(tmp_path / "stopped" / "checkpoint-5", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=200) == 130
    saved = [int(path.parent.name.rpartition("-")[2]) for path in tmp_path.glob("stopped/checkpoint-*/e2_config.json")]
    assert 5 <= max(saved) < 60
    assert train(load_recipe(str(recipe), overrides), tmp_path / "stopped")
    assert train(load_recipe(str(recipe), overrides), tmp_path / "whole")
    expected, got = (weights(tmp_path / name, "adapter_model.safetensors") for name in ("whole", "stopped"))
    assert len(expected) == 2 * 2 * 7  # A and B of seven linear modules in two layers
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_micro_batches_and_checkpointing_do_not_change_the_losses(recipe, finished, tmp_path):
    overrides = ["steps=6", "micro_batch=2", "gradient_checkpointing=true", "schedule=constant"]
    assert train(load_recipe(str(recipe), overrides), tmp_path / "small")
    assert train(load_recipe(str(recipe), [*overrides, "micro_batch=4"]), tmp_path / "large")
    small, large = ([line["loss"] for line in log(tmp_path / name)] for name in ("small", "large"))
    assert small == pytest.approx(large, rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=none"],
        ["method=pi", "scale=4", "train_window=128", "batch_size=1", "micro_batch=1"],
        ["method=pose", "scale=4"],
        ["offset=false"],
        ["scale=2", "train_window=64"],
        ["g_max=5"],
        ["per_sample=false", "cross_documents=false", "whole_documents=true", "precision=bfloat16"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_rival_and_ablation_trains(overrides, recipe, tmp_path):
    assert train(load_recipe(str(recipe), [*overrides, "steps=3"]), tmp_path)
    lines = log(tmp_path)
    assert len(lines) == 3 and all(math.isfinite(line["loss"]) for line in lines)


def test_other_settings_in_the_same_folder_are_refused_by_name(recipe, tmp_path):
    assert train(load_recipe(str(recipe), ["steps=2"]), tmp_path)
    with pytest.raises(RunFolderError, match=r"g_max = 20, now it is 5; use --fresh"):
        train(load_recipe(str(recipe), ["steps=2", "g_max=5"]), tmp_path)
    assert train(load_recipe(str(recipe), ["steps=2", "g_max=5"]), tmp_path, fresh=True)
    assert json.loads((tmp_path / "e2_config.json").read_text())["g_max"] == 5


def test_a_run_with_every_step_done_takes_no_other(recipe, finished, tmp_path):
    """Killed between the last checkpoint and the final model."""
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    assert train(load_recipe(str(recipe)), tmp_path / "out")
    assert log(tmp_path / "out") == log(finished)
    got, expected = weights(tmp_path / "out"), weights(finished)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert json.loads((tmp_path / "out" / "e2_config.json").read_text())["step"] == 24
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*")) == sorted(
        p.name for p in finished.glob("checkpoint-*")
    )


def test_a_batch_that_cannot_be_divided_is_refused(recipe, tmp_path):
    with pytest.raises(E2BenchError, match="batch_size 4 is not a multiple of micro_batch 3"):
        train(load_recipe(str(recipe), ["micro_batch=3"]), tmp_path)


def test_a_dry_run_prints_the_plan_and_writes_nothing(recipe, tmp_path, capsys):
    run(str(recipe), ["steps=1000"], dry_run=True, out=tmp_path / "none")
    printed = capsys.readouterr().out
    assert "1,000 of 4 rows" in printed and "128 a step, 128,000 in all" in printed
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(recipe, tmp_path):
    """At a rate that lets 24 steps learn, and not at 1e-2: AdamW's first steps take the sign even of rounding."""
    rate = "learning_rate=1e-3"
    assert train(load_recipe(str(recipe), [rate]), tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = ["-m", "e2bench", "train", str(recipe), rate, "micro_batch=2", "--out", str(tmp_path / "two")]
    subprocess.run([*command, *run], env=environment, check=True)
    one, two = ([line["loss"] for line in log(folder)] for folder in (tmp_path / "one", tmp_path / "two"))
    assert one[-1] < 0.98 * one[0]
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
def test_a_profile_compares_training_at_the_long_window_with_e2_at_the_short_one(recipe, tmp_path):
    run(str(recipe), [], profile=True, out=tmp_path)
    measured = json.loads((tmp_path / "profile.json").read_text())
    assert [(case["method"], case["length"], case["window"]) for case in measured] == [
        ("pi", 64, 64),
        ("e2", 32, 64),
        ("pi", 128, 128),
        ("e2", 32, 128),
        ("pi", 256, 256),
        ("e2", 32, 256),
    ]
    assert all(case["seconds_per_step"] > 0 and case["peak_bytes"] > 2**20 for case in measured)


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore:Could not find a config file")  # peft, beside a GGUF file
def test_smollm2_learns_with_adapters(smollm2, recipe, tmp_path):
    data = load_recipe(str(recipe)).data[0].files[0]
    overrides = [f"base={smollm2}", f"data=[{{files: [{data}]}}]", "steps=20", "train_window=128", "batch_size=1"]
    assert train(load_recipe("smollm2", [*overrides, "warmup_steps=2", "log_every=1", "save_every=20"]), tmp_path)
    losses = [line["loss"] for line in log(tmp_path)]
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(smollm2)


# ---- whose folder it is


def test_a_folder_that_no_training_of_ours_made_is_refused_and_kept(recipe, tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "model.safetensors").write_text("weights of somebody")
    for fresh in (False, True):
        with pytest.raises(RunFolderError, match="holds checkpoint-500, which no e2bench train made"):
            train(load_recipe(str(recipe)), tmp_path, fresh=fresh)
    assert (tmp_path / "checkpoint-500" / "model.safetensors").read_text() == "weights of somebody"


def test_a_finished_model_is_not_overwritten_by_another_recipe(recipe, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(RunFolderError, match="seed = 0, now it is 5"):
        train(load_recipe(str(recipe), ["seed=5"]), out)
    assert (out / "model.safetensors").read_bytes() == before


def test_a_copy_of_a_checkpoint_under_a_name_of_ones_own_is_left_alone(recipe, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    shutil.copytree(out / "checkpoint-20", out / "checkpoint-20-best")
    (out / "checkpoint-21").mkdir()  # torn: no e2_config.json
    assert train(load_recipe(str(recipe)), out)
    assert (out / "checkpoint-20-best" / "e2_config.json").exists() and not (out / "checkpoint-21").exists()


def test_two_trainings_in_one_folder_are_refused(recipe, tmp_path):
    with FolderLock(tmp_path), pytest.raises(RunFolderError, match="in use by process"):
        train(load_recipe(str(recipe)), tmp_path)


def checkpoint_of(finished, tmp_path):
    """A copy of a finished training's newest checkpoint."""
    newest = max(finished.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return shutil.copytree(newest, tmp_path / newest.name)


@pytest.mark.parametrize("legacy", [False, True], ids=["with hashes", "of an older version"])
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_checkpoint_with_a_missing_or_damaged_file_is_refused_by_name(finished, tmp_path, harm, legacy):
    checkpoint = checkpoint_of(finished, tmp_path)
    stored = json.loads((checkpoint / "e2_config.json").read_text())
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth"} < set(stored["files"])
    if legacy:
        (checkpoint / "e2_config.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "files"}))
    checked_checkpoint(checkpoint)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"):
        content = (checkpoint / name).read_bytes()
        if harm == "missing":
            (checkpoint / name).unlink()
        else:
            (checkpoint / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(RunFolderError, match=f"is damaged .*{name.partition('.')[0]}.*delete that folder"):
            checked_checkpoint(checkpoint)
        (checkpoint / name).write_bytes(content)


def test_other_weights_in_a_checkpoint_are_noticed(finished, tmp_path):
    checkpoint = checkpoint_of(finished, tmp_path)
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1  # a bit of one weight: the file opens as before
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"model\.safetensors is not what was written"):
        checked_checkpoint(checkpoint)


@pytest.mark.parametrize("line", ['{"step": "x", "seconds": 1}', "{", "[1]", '{"loss": 1}'])
def test_a_damaged_log_is_one_line(tmp_path, line):
    (tmp_path / "train.jsonl").write_text(f'{{"step": 1, "seconds": 1.5}}\n{line}\n{{"step": 2, "seconds": 3}}\n')
    with pytest.raises(RunFolderError, match=r"train\.jsonl.*--fresh"):
        TrainLog(tmp_path, 128, 2)
