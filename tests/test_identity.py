"""What made a line: everything that decides it is hashed whole, and another one is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import e2bench
from e2bench.data import fetch as fetching
from e2bench.data.fetch import SUMS, fetch, is_verified
from e2bench.errors import DataError, RunFolderError
from e2bench.experiments.harness import task_manager
from e2bench.files import read_json, read_rows, write_json
from e2bench.models.identity import tokenizer_hash, weights_hash
from e2bench.prompts.chat import chat_wrapper
from e2bench.runs.folder import RunFolder
from e2bench.runs.lines import RUN
from e2bench.runs.manifest import manifest
from e2bench.tasks.corpora import DATASETS, find
from e2bench.tasks.short import select
from e2bench.train.data import Source, data_hashes

PASSKEY = {"lengths": "512", "depths": 2, "trials": 1}


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


# ---- hashes


def test_one_value_of_any_weight_or_stored_buffer_changes_the_hash() -> None:
    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(300, 70), torch.nn.BatchNorm1d(70))
        return layers.to(torch.bfloat16)

    hashes = {weights_hash(model()), weights_hash(model())}
    assert len(hashes) == 1
    for name in model().state_dict():
        changed = model()
        changed.state_dict()[name].view(-1)[-1] += 1
        hashes.add(weights_hash(changed))
    hashes.add(weights_hash(model().float()))
    assert len(hashes) == 1 + len(model().state_dict()) + 1


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["model"]["merges"].pop(),
        lambda t: t.update(normalizer={"type": "Lowercase"}),
        lambda t: t["post_processor"]["single"].pop(0),
        lambda t: t["pre_tokenizer"]["pretokenizers"].pop(0),
    ],
    ids=["merges", "normaliser", "no BOS", "digits"],
)
def test_rules_of_a_tokenizer_change_its_hash_behind_the_vocabulary(
    tiny_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "other")
    edit_json(tmp_path / "other" / "tokenizer.json", change)
    mine, other = (tokenizer_hash(AutoTokenizer.from_pretrained(path)) for path in (tiny_folder, tmp_path / "other"))
    assert mine[:16] == other[:16] and mine != other


def test_a_tokenizers_template_and_what_a_call_leaves_behind(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    before = tokenizer_hash(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(3)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert tokenizer_hash(tokenizer)[:16] == before[:16] and tokenizer_hash(tokenizer) != before


# ---- resuming


def zero_a_row(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][300] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights", zero_a_row),
        ("tokenizer", lambda m: edit_json(m / "tokenizer.json", lambda t: t["model"]["merges"].pop())),
        ("eos", lambda m: edit_json(m / "generation_config.json", lambda c: c.update(eos_token_id=[1, 9]))),
    ],
)
def test_a_run_is_not_continued_with_another(
    tiny_folder: Path, tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    run = {**PASSKEY, "out": str(tmp_path / "run")}
    e2bench.run("passkey", e2bench.load(str(tmp_path / "model")), **run)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    change(tmp_path / "model")
    with pytest.raises(RunFolderError, match=rf"\b{name} = "):
        e2bench.run("passkey", e2bench.load(str(tmp_path / "model")), **run)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_folder_of_before_whole_hashes_goes_on_and_says_so_once(
    tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {**PASSKEY, "out": str(tmp_path)}
    e2bench.run("passkey", tiny_model, **run)

    def as_before(stored: dict[str, Any]) -> None:
        for name in ("weights", "eos", "device"):
            del stored["resolved"][name]
        stored["resolved"]["tokenizer"] = stored["resolved"]["tokenizer"][:16]  # as with --tokenizer then

    edit_json(tmp_path / RUN, as_before)
    capsys.readouterr()
    e2bench.run("passkey", tiny_model, **{**run, "trials": 2})
    assert "did not record device, eos, weights" in capsys.readouterr().err.replace("\n", " ")
    e2bench.run("passkey", tiny_model, **{**run, "trials": 3})
    assert "did not record" not in capsys.readouterr().err
    assert len(read_rows(tmp_path / "passkey.jsonl")) == 6


# ---- run.json is history


def contents(**changed: Any) -> dict[str, Any]:
    made = manifest("longbench", settings={}, resolved={"scale": 8, "limit": 1}, device="cpu (1 threads)")
    return {**made, **changed}


def ask(folder: Path, ids: list[str], **changed: Any) -> None:
    """A run that makes what lacks of `ids`."""
    with RunFolder(folder, contents(**changed), chooses={"limit": False}) as run:
        missing = [one for one in ids if one not in run.done("trec")]
        if missing:
            run.begin()
        for one in missing:
            run.append("trec", {"_id": one})
        run.finish({"trec": ids})


def test_a_finished_run_that_is_asked_again_stays_as_it_is(tmp_path: Path) -> None:
    ask(tmp_path, ["1", "2"])
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    time.sleep(0.01)
    ask(tmp_path, ["1", "2"], device="another GPU", commit="f" * 40, batch_size="7")
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_a_continued_run_keeps_what_made_its_first_lines(tmp_path: Path) -> None:
    ask(tmp_path, ["1"], batch_size="1")
    edit_json(tmp_path / RUN, lambda run: run.update(a_later_field={"x": 1}))
    first = read_json(tmp_path / RUN)
    ask(tmp_path, ["1", "2"], batch_size="7", device="another GPU", resolved={"scale": 8, "limit": 2})
    run = read_json(tmp_path / RUN)
    kept = ("device", "batch_size", "versions", "commit", "started", "a_later_field")
    assert {name: run[name] for name in kept} == {name: first[name] for name in kept}
    assert run["resolved"]["limit"] == 2 and run["asked"] == {"trec": 2}
    assert [(call["device"], call["batch_size"]) for call in run["continued"]] == [("another GPU", "7")]
    assert run["ended"] >= run["continued"][0]["started"] >= first["ended"]


def test_a_run_json_of_a_later_release_is_refused_and_not_touched(tmp_path: Path) -> None:
    ask(tmp_path, ["1"])
    edit_json(tmp_path / RUN, lambda run: run.update(format=2, sampling={"temperature": 0.7}))
    before = (tmp_path / RUN).read_bytes()
    for call in (lambda: ask(tmp_path, ["1", "2"]), lambda: e2bench.score(tmp_path)):
        with pytest.raises(DataError, match="format 2, this e2bench reads 1: it was written by a later release"):
            call()
    assert (tmp_path / RUN).read_bytes() == before


# ---- data


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for number in range(20):
            file.writestr(f"data/t{number}.jsonl", '{"a": 1}\n' * 2000)


def test_processes_that_unpack_at_once_share_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    archive(tmp_path / "data.zip")
    monkeypatch.setattr(fetching, "_download", lambda archive: tmp_path / "data.zip")
    monkeypatch.setattr(fetching, "verify", lambda path, sha256: None)
    abandoned = tmp_path / "cache" / f".longbench-{DATASETS['longbench'].revision[:12]}.4711"
    abandoned.mkdir(parents=True)
    (abandoned / "half.jsonl").write_text("{}")
    os.utime(abandoned, (0, 0))
    found: list[Path] = []
    failed: list[BaseException] = []
    gate = threading.Barrier(8)

    def unpack() -> None:
        try:
            gate.wait()
            found.append(fetch(find("longbench")))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=unpack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(set(found)) == 1
    assert is_verified(find("longbench"), found[0]) and len(read_json(found[0] / SUMS)) == 20
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found[0].name]


def test_a_training_file_with_a_star_in_its_name_is_that_file_alone(tmp_path: Path) -> None:
    for name in ("a*b.jsonl", "aXb.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    assert [path.name for path in Source([str(tmp_path / "a*b.jsonl")]).paths()] == ["a*b.jsonl"]
    assert [path.name for path in Source([str(tmp_path / "a?b.jsonl")]).paths()] == ["a*b.jsonl", "aXb.jsonl"]


def test_training_files_of_one_name_are_all_hashed(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "texts.jsonl").write_text(json.dumps({"text": folder}) + "\n")
    (tmp_path / "own.jsonl").write_text("{}\n")
    files = [str(tmp_path / name) for name in ("one/texts.jsonl", "two/texts.jsonl", "own.jsonl")]
    hashes = data_hashes([Source(files)])
    assert len(set(hashes.values())) == 3 and "own.jsonl" in hashes
    assert {Path(name).parent.name for name in hashes if name != "own.jsonl"} == {"one", "two"}


def test_lm_eval_reads_a_copy_of_what_is_given(tmp_path: Path) -> None:
    """So that neither a `*` in a path nor what `datasets` has cached of another file can give other rows."""
    data = tmp_path / "a*b"
    data.mkdir()
    row = {"sentence": "It is _ .", "option1": "a", "option2": "b", "answer": "1"}
    (data / "winogrande.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "work").mkdir()
    task_manager(select("winogrande"), data, tmp_path / "work")
    settings = json.loads((tmp_path / "work" / "winogrande.yaml").read_text())
    (path,) = settings["dataset_kwargs"]["data_files"].values()
    assert "*" not in Path(path).parent.name and read_rows(Path(path)) == [row]


# ---- nothing is drawn


def test_dropout_of_a_tokenizer_is_turned_off(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    edit_json(tmp_path / "model" / "tokenizer.json", lambda t: t["model"].update(dropout=0.5))
    model = e2bench.load(str(tmp_path / "model"))
    text = "Anna keeps the violin in the old house. Where does Anna keep the violin?"
    assert {tuple(model.encode(text)) for _ in range(20)} == {tuple(e2bench.load(str(tiny_folder)).encode(text))}
    assert any("dropout" in found.found for found in model.findings)


def test_a_template_that_draws_gives_one_prompt(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = "{{ ['Hello', 'Hi', 'Hey', 'Ho'] | random }} {{ messages[0]['content'] }}"
    wrapper = chat_wrapper("auto", tokenizer)
    assert wrapper is not None and len({wrapper.apply("who?") for _ in range(20)}) == 1
