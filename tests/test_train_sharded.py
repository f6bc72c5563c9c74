"""Sharded trainings of two processes: saved, resumed; what would not shard is refused."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import torch

from e2bench.errors import E2BenchError
from e2bench.train.finetune import check_sharding, train
from e2bench.train.recipe import load_recipe

SHARDED = Path(__file__).with_name("sharded.py")
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install deepspeed")


def in_two_processes(recipe, out, *program, sharding, port):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    overrides = ["micro_batch=2", "learning_rate=1e-3", "steps=8", "save_every=4", f"sharding={sharding}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, *program, "train", str(recipe), *overrides, "--out", str(out)], env=environment, check=True
    )


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "train.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "program", "kept"),
    [
        ("fsdp", (str(SHARDED),), "pytorch_model_fsdp.bin"),
        pytest.param("zero2", ("-m", "e2bench"), "global_step4", marks=needs_deepspeed),
    ],
)
def test_two_processes_save_resume_and_give_the_losses_of_one(small_recipe, tmp_path, sharding, program, kept):
    whole, resumed, one = (tmp_path / name for name in ("whole", "resumed", "one"))
    how = {"sharding": sharding, "port": 29633 + len(sharding)}
    in_two_processes(small_recipe, whole, *program, **how)
    assert (whole / "checkpoint-4" / kept).exists()  # of this kind of sharding alone
    assert train(load_recipe(str(small_recipe), ["learning_rate=1e-3", "steps=8"]), one)
    assert losses(whole) == pytest.approx(losses(one), rel=1e-6) and losses(one)[-1] < 0.99 * losses(one)[0]

    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-8")
    for name in ("model.safetensors", "e2_config.json"):
        (resumed / name).unlink()
    in_two_processes(small_recipe, resumed, *program, **how)
    assert losses(resumed) == losses(whole)
    expected, got = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is done")
def test_fsdp_without_a_gpu_is_refused_rather_than_trained_as_copies(small_recipe, tmp_path):
    with pytest.raises(E2BenchError, match="sharding: fsdp is not done without a GPU"):
        train(load_recipe(str(small_recipe), ["sharding=fsdp"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sharding", ["fsdp", "zero2"])
def test_one_process_has_nothing_to_share(small_recipe, monkeypatch, sharding):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(E2BenchError, match=f"sharding: {sharding} has nothing to share in one process; start several"):
        check_sharding(load_recipe(str(small_recipe), [f"sharding={sharding}"]))


def test_zero2_without_deepspeed_is_refused(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(E2BenchError, match=r"sharding: zero2 needs the package deepspeed.*e2bench\[deepspeed\]"):
        train(load_recipe(str(small_recipe), ["sharding=zero2"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
