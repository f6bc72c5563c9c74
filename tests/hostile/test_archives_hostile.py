"""Zip archives that climb out of their folder, lie about their size, or are no archives."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import pytest
from hostile_cases import MARKUP, bounded_memory, case, hostile, little_memory, mutated, texts
from hypothesis import strategies as st

from e2bench.data import fetch as data
from e2bench.data.fetch import unpack
from e2bench.errors import DataError

__all__ = ["little_memory"]
NAMES = ("data/a.jsonl", "../up.jsonl", "data/../../up.jsonl", "/tmp/abs.jsonl", "data\\..\\up.jsonl", "data/./a.jsonl")
names = st.one_of(st.sampled_from(NAMES), texts.map(lambda text: f"data/{text}.jsonl"), texts)
kinds = st.sampled_from([0, 0o120777, 0o100644, 0o040755, 0o060644, 0o010644])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def archive(members: list[tuple[str, bytes, int]]) -> bytes:
    """A zip of (name, content, Unix mode)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return out.getvalue()


def unpacked(folder: Path, content: bytes) -> None:
    """One case: nothing but plain files, and nothing beside them."""
    path, target = folder / "x.zip", folder / "out"
    path.write_bytes(content)
    shutil.rmtree(target, ignore_errors=True)
    with case(target):
        unpack(path, target, "*.jsonl")
    assert sorted(p.name for p in folder.iterdir()) == ["out", "x.zip"]
    assert all(p.is_file() and not p.is_symlink() for p in target.iterdir())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@hostile(500, members=st.lists(st.tuples(names, st.binary(max_size=50), kinds), max_size=5))
def test_members_stay_in_their_folder_whatever_they_are_called(
    folder: Path, members: list[tuple[str, bytes, int]]
) -> None:
    unpacked(folder, archive(members))


GOOD = archive([("data/a.jsonl", b'{"a": 1}\n' * 30, 0o100644), ("data/b.jsonl", b"{}\n", 0o100644)])


@hostile(700, content=mutated(GOOD))
def test_archives_with_bytes_changed_are_refused_or_read(folder: Path, content: bytes) -> None:
    unpacked(folder, content)


@hostile(200, place=st.integers(0, 7), size=st.integers(0, 2**32 - 1), local=st.booleans())
def test_sizes_that_lie_are_refused(folder: Path, place: int, size: int, local: bool) -> None:
    """The central directory and the local header each tell sizes and a checksum: any of the numbers may be wrong."""
    content = bytearray(GOOD)
    start = 14 if local else GOOD.index(b"PK\x01\x02") + 16
    at = start + 4 * (place % 3)
    content[at : at + 4] = size.to_bytes(4, "little")
    unpacked(folder, bytes(content))


def test_an_archive_that_unpacks_to_terabytes_is_stopped_by_its_headers_and_by_its_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MAX_UNPACKED_BYTES", 1 << 20)
    honest = archive([("data/a.jsonl", b"0" * (2 << 20), 0o100644)])
    lying = honest.replace((2 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lying != honest and len(honest) < 10_000
    for content in (honest, lying):
        (folder / "x.zip").write_bytes(content)
        shutil.rmtree(folder / "out", ignore_errors=True)
        with bounded_memory(64 << 20), pytest.raises(DataError):
            unpack(folder / "x.zip", folder / "out", "*.jsonl")
        written = sum(path.stat().st_size for path in (folder / "out").iterdir())
        assert written <= 1 << 20


def test_a_member_without_a_name_is_refused(folder: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("x", "{}")
        file.filelist[0].filename = ""  # written to the directory when the archive is closed
    (folder / "x.zip").write_bytes(content.getvalue())
    with pytest.raises(DataError, match=r"x\.zip (cannot be unpacked|holds nothing that matches)"):
        unpack(folder / "x.zip", folder / "out", "*")


def test_the_names_tried_are_hostile() -> None:
    assert any(".." in name for name in MARKUP) and any(name.startswith("/") for name in NAMES)
