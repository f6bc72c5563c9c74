"""Public data: which file is meant is fixed, and what arrives is checked against that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from e2bench.data import fetch as fetching
from e2bench.errors import DataError
from e2bench.tasks.corpora import every_set, find, find_all

RELEASE = re.compile(r"[0-9a-f]{40}|2\.0")  # a commit; SQuAD's version


@pytest.mark.parametrize("archive", every_set(), ids=lambda archive: archive.name)
def test_no_file_is_named_by_a_branch(archive: fetching.Archive) -> None:
    assert RELEASE.fullmatch(archive.revision)
    assert archive.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
    assert archive.sha256 or not archive.url  # only the hub tells a file's hash itself


@pytest.mark.parametrize("name", ["longbench2", "ruler-essays", "ruler-hotpotqa"])
def test_a_file_that_is_another_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [archive] = [one for one in every_set() if one.name == name]
    (tmp_path / "arrived").write_text("[]", encoding="utf-8")
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_download", lambda archive: tmp_path / "arrived")  # the network's end
    with pytest.raises(DataError, match=f"expected {str(archive.sha256)[:16]}"):
        fetching.fetch(archive)


def test_the_command_says_what_a_file_was_checked_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    blob = tmp_path / ("0" * 64)  # the hub's cache names a large file by its hash
    blob.write_text("[]", encoding="utf-8")
    monkeypatch.setattr(fetching, "_download", lambda archive: blob)
    refused = cli("data", "proof-pile")
    assert refused.code == 2 and "expected 0000000000000000" in refused.err
    plain = tmp_path / "proof-pile.jsonl.gz"
    plain.write_bytes(b"")
    monkeypatch.setattr(fetching, "_download", lambda archive: plain)
    shown = cli("data", "proof-pile")
    assert shown.code == 0 and str(plain) in shown.out
    words = " ".join(shown.err.split())
    assert "NOT verified: test/proofpile_test.jsonl.gz of hoskinson-center/proof-pile at 490b98024944" in words


def test_all_of_longbench_v2_has_a_hash() -> None:
    files = find_all("longbench2")
    assert find("longbench2") in files and len(files) > 4 and all(one.sha256 for one in files)
    assert find("longbench2").pin.endswith("at 2b48e494f2c7, SHA-256 15d61c22d92c9690…")
