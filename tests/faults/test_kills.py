"""SIGKILL at random moments of LongBench, perplexity and training runs; resumed, they leave an undisturbed run's files.

Ten kills each in the fast tier, a hundred each in `make test-all`; E2BENCH_KILLS=N for any other number.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fault_runs import Tally, counts, kill_at_random, measured_s, snapshot, whole_lines

from e2bench.models.loading import embedded_model
from e2bench.tasks.demo import write_longbench

KILLS = [counts() or 10, pytest.param(100, marks=pytest.mark.slow)]
LONGBENCH = ("longbench", "--tasks", "trec,passage_count,lsht", "--window", "400", "--batch-size", "1")
PPL = ("ppl", "--lengths", "64,128,512", "--stride", "32", "--docs", "3", "--scale", "auto")
RECIPE = """
model: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 2,
        num_key_value_heads: 2, max_position_embeddings: 32}
train_window: 32
steps: 30
batch_size: 2
micro_batch: 2
learning_rate: 1e-2
precision: float32
save_every: 3
log_every: 1
per_sample: true
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_longbench(tmp_path_factory.mktemp("demo"), examples=2)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five texts of about a thousand tokens."""
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    texts = (" ".join(f"Sentence {n} of text {text}: {n * text} lamps." for n in range(150)) for text in range(1, 6))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def recipe(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(f"tokenizer: {embedded_model()}\ndata: [{{files: [{documents}]}}]\n{RECIPE}")
    return path


def check(tally: Tally, kills: int) -> None:
    print(tally)
    assert tally.kills == kills
    assert tally.with_lines_kept >= kills // 5, "the kills came too early to prove anything"


@pytest.mark.parametrize("kills", KILLS)
def test_longbench_killed_at_random_ends_in_the_files_of_an_undisturbed_run(
    demo: Path, tmp_path: Path, kills: int
) -> None:
    def command(out: Path) -> list[object]:
        return [*LONGBENCH, "--data", demo, "--out", out]

    lasts = measured_s(command(tmp_path / "whole"))
    assert {len(lines) for lines in whole_lines(tmp_path / "whole").values()} == {2}
    check(kill_at_random(command, tmp_path / "whole", tmp_path, kills=kills, seed=7, lasts_s=lasts), kills)


@pytest.mark.parametrize("kills", KILLS)
def test_perplexity_killed_at_random_ends_in_the_files_of_an_undisturbed_run(
    documents: Path, tmp_path: Path, kills: int
) -> None:
    def command(out: Path) -> list[object]:
        return [*PPL, "--data", documents, "--out", out]

    lasts = measured_s(command(tmp_path / "whole"))
    check(kill_at_random(command, tmp_path / "whole", tmp_path, kills=kills, seed=8, lasts_s=lasts), kills)


def trained(folder: Path) -> dict[str, bytes]:
    """Weights, log and settings of a training and its checkpoints; not what says when and by whom it was made."""
    names = ("model.safetensors", "train.jsonl", "e2_config.json", "config.json", "optimizer.pt", "scheduler.pt")
    return {name: content for name, content in snapshot(folder).items() if Path(name).name in names}


def steps_kept(folder: Path) -> int:
    """The step of the newest checkpoint that is whole."""
    return max((int(p.parent.name.split("-")[1]) for p in folder.glob("checkpoint-*/e2_config.json")), default=0)


@pytest.mark.parametrize("kills", KILLS)
def test_training_killed_at_random_ends_in_the_weights_of_an_undisturbed_run(
    recipe: Path, tmp_path: Path, kills: int
) -> None:
    def command(out: Path) -> list[object]:
        return ["train", recipe, "--out", out]

    lasts = measured_s(command(tmp_path / "whole"))
    files = trained(tmp_path / "whole")
    assert {"model.safetensors", "train.jsonl", "checkpoint-30/model.safetensors"} <= files.keys()
    tally = kill_at_random(
        command,
        tmp_path / "whole",
        tmp_path,
        kills=kills,
        seed=9,
        lasts_s=lasts,
        after_each=lambda out: None,
        kept=steps_kept,
        compared=trained,
    )
    check(tally, kills)
