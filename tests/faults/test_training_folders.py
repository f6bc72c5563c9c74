"""Training folders on full disks, in places nobody may write, and with checkpoints that were cut or altered."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
from fault_runs import Ended, failed_clearly, finish, start
from test_kills import RECIPE, trained

from e2bench.models.loading import embedded_model


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    texts = (f"Sentence {n}: {n * n} lamps. " * 20 for n in range(50))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    path = folder / "small.yaml"
    path.write_text(f"tokenizer: {embedded_model()}\ndata: [{{files: [{folder / 'texts.jsonl'}]}}]\n{RECIPE}")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    finish(["train", recipe, "--out", out])
    return out


def on_a_full_disk(recipe: Path, out: Path) -> Ended:
    """Room for the log, none for the weights."""
    return start(["train", recipe, "--out", out], limits={resource.RLIMIT_FSIZE: 20_000}).end()


def test_a_training_whose_disk_was_full_goes_on_to_the_same_weights(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    assert on_a_full_disk(recipe, tmp_path / "run").code == 1
    finish(["train", recipe, "--out", tmp_path / "run"])
    assert trained(tmp_path / "run") == trained(finished)


def test_a_full_disk_is_one_line(recipe: Path, tmp_path: Path) -> None:
    failed_clearly(on_a_full_disk(recipe, tmp_path / "run"), 1)


def test_a_folder_that_cannot_be_written_is_one_line(recipe: Path) -> None:
    failed_clearly(start(["train", recipe, "--out", "/dev/null/run"]).end(), 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e2_config.json", b""),
        ("e2_config.json", b"{}"),
        ("trainer_state.json", b""),
        ("model.safetensors", b""),
        ("optimizer.pt", b""),
    ],
)
def test_an_altered_checkpoint_is_named(
    recipe: Path, finished: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "checkpoint-30" / name).write_bytes(content)
    assert "checkpoint-30" in failed_clearly(start(["train", recipe, "--out", out]).end(), 2)
