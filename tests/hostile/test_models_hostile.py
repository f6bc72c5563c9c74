"""Model folders: configs of any kind, safetensors headers that lie, absurd sizes, pickles and code under every name."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hostile_cases import bounded_memory, case, hostile, little_memory, mutated, objects, values
from hypothesis import strategies as st

from e2bench.errors import E2BenchError
from e2bench.models.loading import ModelSpec, _source
from e2bench.models.local import Model

__all__ = ["little_memory"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


config = objects(
    {"model_type": st.just("llama"), "hidden_size": st.just(64), "auto_map": st.just({"AutoModel": "x.Y"})}
)
adapter = objects(
    {"base_model_name_or_path": st.one_of(st.just("."), st.just("/nowhere"), values), "peft_type": st.just("LORA")}
)


@hostile(
    700,
    name=st.sampled_from(["config.json", "adapter_config.json"]),
    content=st.one_of(config.map(dumped), adapter.map(dumped), st.binary(max_size=40), st.just(b"[" * 100_000)),
    weights=st.sampled_from(["model.safetensors", "pytorch_model.bin", "x.pt", "model.ckpt", "none"]),
)
def test_folders_are_taken_or_refused_before_anything_is_loaded(
    folder: Path, name: str, content: bytes, weights: str
) -> None:
    place = folder / "model"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / name).write_bytes(content)
    (place / weights).write_bytes(b"")
    with case(folder):
        options, _ = _source(ModelSpec(model=str(place)))
        assert name == "adapter_config.json" or weights == "model.safetensors"
        assert options["trust_remote_code"] is False


# ---- loaded whole, by transformers


def copy(tiny_folder: Path, folder: Path) -> Path:
    place = folder / "model"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(tiny_folder, place)
    return place


def load(folder: Path, place: Path) -> None:
    with case(folder):
        Model.load(ModelSpec(model=str(place)))


def with_header(content: bytes, header: bytes, length: int | None = None) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    return struct.pack("<Q", len(header) if length is None else length) + header + content[8 + size :]


tensor = objects(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "X9"]),
        "shape": st.just([1 << 40, 2]),
        "data_offsets": st.just([0, 8]),
    }
)
offsets = st.tuples(st.integers(-9, 1 << 62), st.integers(-9, 1 << 62)).map(list)
headers = st.one_of(
    st.dictionaries(st.sampled_from(["model.norm.weight", "x", "__metadata__"]), tensor, max_size=3).map(dumped),
    st.fixed_dictionaries(
        {"lm_head.weight": st.fixed_dictionaries({"dtype": st.just("F32"), "shape": offsets, "data_offsets": offsets})}
    ).map(dumped),
    values.map(dumped),
    st.binary(max_size=60),
)
lengths = st.sampled_from([None, None, 0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])


@hostile(120, header=headers, length=lengths)
def test_safetensors_headers_that_lie_are_refused(
    tiny_folder: Path, folder: Path, header: bytes, length: int | None
) -> None:
    place = copy(tiny_folder, folder)
    weights = place / "model.safetensors"
    weights.write_bytes(with_header(weights.read_bytes(), header, length))
    load(folder, place)


SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "head_dim")


@hostile(
    30, name=st.sampled_from(SIZES), size=st.sampled_from([-1, 0, 1, 1 << 31, 1 << 40, 10**30, 0.5, "big", None, []])
)
def test_absurd_sizes_are_refused_in_little_memory(tiny_folder: Path, folder: Path, name: str, size: Any) -> None:
    place = copy(tiny_folder, folder)
    stored = json.loads((place / "config.json").read_text())
    layers = (
        1 << 12 if name == "num_hidden_layers" and size not in (-1, 0, 1) else size
    )  # each is an object on any machine
    (place / "config.json").write_text(json.dumps({**stored, name: layers if isinstance(size, int) else size}))
    load(folder, place)


@hostile(
    60,
    drawn=st.data(),
    name=st.sampled_from(["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"]),
)
def test_files_beside_the_weights_with_bytes_changed(
    tiny_folder: Path, folder: Path, drawn: st.DataObject, name: str
) -> None:
    place = copy(tiny_folder, folder)
    content = (place / name).read_bytes()
    (place / name).write_bytes(drawn.draw(mutated(content)))
    load(folder, place)


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.safetensors", "model.gguf", "tokenizer.json", "adapter_model.bin"]
)
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_pickles_under_any_name_run_nothing(tiny_folder: Path, folder: Path, name: str, allow_pickle: bool) -> None:
    place = copy(tiny_folder, folder)
    if "token" not in name:
        (place / "model.safetensors").unlink()
    mark = folder / "PWNED"
    (place / name).write_bytes(pickle.dumps({"model.norm.weight": Evil(mark)}))
    target = place / name if name.endswith(".gguf") else place
    with case(folder), pytest.raises(E2BenchError):
        Model.load(ModelSpec(model=str(target), allow_pickle=allow_pickle))
    assert not mark.exists()


@pytest.mark.parametrize("place_of_map", ["config.json", "tokenizer_config.json"])
def test_code_beside_the_weights_is_not_run(tiny_folder: Path, folder: Path, place_of_map: str) -> None:
    place, mark = copy(tiny_folder, folder), folder / "PWNED"
    (place / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    stored = json.loads((place / place_of_map).read_text())
    auto = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "own.Own")
    own = {"auto_map": {**auto, "AutoTokenizer": ["own.Own", None]}, "model_type": "own", "tokenizer_class": "Own"}
    (place / place_of_map).write_text(json.dumps({**stored, **own}))
    with case(folder):
        Model.load(ModelSpec(model=str(place)))
    assert not mark.exists()


@hostile(60, content=mutated(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60) + b"\xff" * 64))
def test_gguf_files_that_claim_anything_are_refused(folder: Path, content: bytes) -> None:
    path = folder / "x.gguf"
    path.write_bytes(content)
    with bounded_memory(), case(folder):
        Model.load(ModelSpec(model=str(path)))
