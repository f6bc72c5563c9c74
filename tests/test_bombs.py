"""Inputs of a few bytes that would take hours or gigabytes: refused by what their headers say, before torch."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tqdm import tqdm

from e2bench.data import corpus
from e2bench.data.corpus import read_documents
from e2bench.data.parquet import LEAST_PAGE, check_pages
from e2bench.data.ruler.sources import essay_text
from e2bench.errors import DataError, ModelError
from e2bench.models import claims, loading
from e2bench.models.gguf_header import GgufHeader
from e2bench.models.loading import ModelSpec, check_source, embedded_model, load_tokenizer
from e2bench.terminal import failing_quietly, without_bars

# ---- parquet


def varint(value: int) -> bytes:
    """A number as Thrift's compact protocol has it, zigzag."""
    value, found = value << 1, b""
    while value > 127:
        value, found = value >> 7, found + bytes([value & 127 | 128])
    return found + bytes([value])


def one_page(path: Path, size: int, **options: Any) -> Path:
    settings = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, **options}
    pq.write_table(pa.table({"text": ["x" * size], "n": [1]}), path, **settings)
    return path


def with_footer(path: Path, old: bytes, new: bytes) -> Path:
    raw = path.read_bytes()
    begin = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    assert len(old) == len(new) and old in raw[begin:]
    path.write_bytes(raw[:begin] + raw[begin:].replace(old, new))
    return path


def test_a_page_is_refused_by_its_own_header_whatever_the_footer_says(tmp_path: Path) -> None:
    path = one_page(tmp_path / "x.parquet", 100 << 20)
    assert path.stat().st_size < 10_000
    said = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    with_footer(path, varint(said), varint(1 << 21 | said & 127))  # 2 MiB, as many bytes of varint
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size < 3 << 20
    begun = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="unpacks to more than 64 MiB"):
        read_documents(path)  # before the first document is asked for
    with pytest.raises(DataError, match="unpacks to more than 64 MiB"):
        essay_text(path)
    assert pa.total_allocated_bytes() - begun < 1 << 20


class Counted:
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def take(self, size: int) -> None:
        self.sizes.append(size)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.text(max_size=300), min_size=1, max_size=60),
    compression=st.sampled_from(["none", "snappy", "zstd", "gzip"]),
    version=st.sampled_from(["1.0", "2.0"]),
    dictionary=st.booleans(),
    statistics=st.booleans(),
    nullable=st.booleans(),
)
def test_pages_are_found_in_every_layout(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    compression: str,
    version: str,
    dictionary: bool,
    statistics: bool,
    nullable: bool,
) -> None:
    path = tmp_path_factory.mktemp("pages") / "x.parquet"
    pq.write_table(
        pa.table({"n": list(range(len(texts))), "text": pa.array([*texts[:-1], None if nullable else texts[-1]])}),
        path,
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        write_statistics=statistics,
        row_group_size=20,
        data_page_size=200,
    )
    counted = Counted()
    check_pages(path, "text", counted)
    data = pq.ParquetFile(path).metadata
    said = sum(data.row_group(group).column(1).total_uncompressed_size for group in range(data.num_row_groups))
    assert len(counted.sizes) >= data.num_row_groups * (2 if dictionary else 1)
    # The footer counts pages and their headers, of 15 to 700 bytes here; pages of less than 1 KiB count as that.
    assert sum(size for size in counted.sizes if size > LEAST_PAGE) <= said <= sum(counted.sizes)


def test_a_column_that_is_not_there_and_pages_that_lead_nowhere_are_one_line(tmp_path: Path) -> None:
    path = one_page(tmp_path / "x.parquet", 100)
    with pytest.raises(DataError, match="cannot be read as parquet with a `other` column"):
        check_pages(path, "other", Counted())
    raw = path.read_bytes()
    path.write_bytes(raw[:4] + b"\xff" * 40 + raw[44:])
    with pytest.raises(DataError, match="cannot be read as parquet") as caught:
        read_documents(path)
    assert len(str(caught.value)) < 400


def test_pages_without_content_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "FREE_BYTES", 100_000)
    monkeypatch.setattr(corpus, "MOST_RATIO", 1)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"] * 500}), path, row_group_size=1, compression="none")
    with pytest.raises(DataError, match="more than text can"):
        read_documents(path)


# ---- models


def gguf_of(path: Path, keys: list[tuple[bytes, bytes]], tensors: int = 0) -> Path:
    """keys: name, and its type and value as bytes."""
    entries = b"".join(struct.pack("<Q", len(name)) + name + value for name, value in keys)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, len(keys)) + entries + b"\0" * 64)
    return path


def test_a_gguf_list_that_no_tokenizer_has_is_refused(tmp_path: Path) -> None:
    tokens = struct.pack("<IIQ", 9, 8, 700_000) + struct.pack("<Q", 0) * 700_000
    with pytest.raises(ModelError, match=r"a list of 700,000 entries"):
        GgufHeader(gguf_of(tmp_path / "x.gguf", [(b"tokenizer.ggml.tokens", tokens)]))
    few = struct.pack("<IIQ", 9, 8, 300) + struct.pack("<Q", 0) * 300
    assert GgufHeader(gguf_of(tmp_path / "y.gguf", [(b"tokenizer.ggml.tokens", few)])).keys == {}
    with pytest.raises(ModelError, match="70000 tensors"):
        GgufHeader(gguf_of(tmp_path / "z.gguf", [], tensors=70_000))


def adapter(folder: Path, **values: Any) -> Path:
    folder.mkdir()
    save_file({"base_model.model.x.lora_A.weight": np.zeros((2, 4), np.float32)}, folder / claims.ADAPTER)
    known = {
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(embedded_model()),
    }
    (folder / "adapter_config.json").write_text(json.dumps({**known, **values}))
    return folder


def test_an_adapters_claims_are_checked_before_its_base_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_source(ModelSpec(model=str(adapter(tmp_path / "good"))))
    with pytest.raises(ModelError, match="r = 1,000,000"):
        check_source(ModelSpec(model=str(adapter(tmp_path / "rank", r=10**6))))
    monkeypatch.setattr(claims._matching, "seconds", 1.0)
    with pytest.raises(ModelError, match=r"its patterns .* more than 1 s"):
        check_source(ModelSpec(model=str(adapter(tmp_path / "regex", target_modules=r"(([a-z_0-9.]+)+)+X"))))


def test_what_a_header_tells_is_refused_without_torch(tmp_path: Path) -> None:
    layers = (b"llama.block_count", struct.pack("<II", 4, 40_000))
    gguf = gguf_of(tmp_path / "x.gguf", [layers])
    parquet = one_page(tmp_path / "x.parquet", 100 << 20)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for arguments, said in (
        (["--model", str(gguf), "--data", "demo"], "block_count = 40,000 and holds 0 tensors"),
        (["--data", str(parquet)], "unpacks to more than 64 MiB"),
        (["--data", str(tmp_path / "absent.jsonl")], "no file"),
    ):
        command = [sys.executable, "-m", "e2bench", "ppl", "--lengths", "64", "--stride", "16", *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert ended.returncode == 2 and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


PANICS: dict[str, dict[str, Any]] = {
    "while it is read": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "while it encodes": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "while it decodes": {"decoder": {"type": "Strip", "content": "x", "start": 0, "stop": 9}},
}


@pytest.mark.parametrize("when", PANICS)
def test_a_tokenizer_that_panics_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], when: str) -> None:
    tokenizer = json.loads((embedded_model() / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer, **PANICS[when]}))
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text((embedded_model() / name).read_text())
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(str(tmp_path))
    assert capfd.readouterr().err == ""
    with pytest.raises(ModelError):  # what would be printed
        loading._tokenizer.__wrapped__(ModelSpec(tokenizer=str(tmp_path)), {}, None)  # type: ignore[attr-defined]
    assert "panicked at" in capfd.readouterr().err


def test_what_is_held_back_comes_after_a_call_that_succeeds(capfd: pytest.CaptureFixture[str]) -> None:
    with failing_quietly():
        os.write(2, b"a warning\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "a warning\n"
    with pytest.raises(ValueError, match="it failed"), failing_quietly():
        os.write(2, b"a paragraph\n")
        raise ValueError("it failed")
    os.write(2, b"as before\n")
    assert capfd.readouterr().err == "as before\n"


def test_bars_stay_out_of_a_log_and_warnings_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    with without_bars():
        for _ in tqdm(range(2), desc="requests"):
            pass
        print("a warning", file=sys.stderr)
    print("as before", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\nas before\n"
