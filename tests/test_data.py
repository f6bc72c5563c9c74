"""Fetched archives stay in their folder; corpora are read or named by file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from e2bench.data import fetch as data
from e2bench.data.corpus import choose_documents, read_documents
from e2bench.data.fetch import SUMS, cache_folder, fetch, is_verified, unpack, verify
from e2bench.data.source import DataSource
from e2bench.errors import DataError, UnknownName
from e2bench.experiments.documents import corpus_source, open_corpus
from e2bench.files import file_hashes, write_json
from e2bench.models.loading import embedded_model
from e2bench.tasks.corpora import DATASETS, find


def archive(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    """A zip file with these members; `link` is one that claims to be a symbolic link."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if name == link else stat.S_IFREG) << 16 | 0o644 << 16
            file.writestr(info, content)
    return path


# ---- archives


def test_members_that_match_are_taken_out_and_no_others(tmp_path: Path) -> None:
    made = archive(
        tmp_path / "a.zip", {"data/trec.jsonl": b"1\n", "data/lcc.jsonl": b"2\n", "LICENSE": b"x", "data/": b""}
    )
    unpack(made, tmp_path / "out", "data/*.jsonl")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"trec.jsonl": b"1\n", "lcc.jsonl": b"2\n"}


@pytest.mark.parametrize(
    "name", ["data/../../escaped.jsonl", "/data/abs.jsonl", "data\\..\\..\\escaped.jsonl", "data/../x.jsonl"]
)
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    made = archive(tmp_path / "a.zip", {name: b"evil"})
    with pytest.raises(DataError, match=r"leaves its folder|nothing that matches"):
        unpack(made, tmp_path / "out", "*data*.jsonl")
    assert not list(tmp_path.rglob("*.jsonl"))


def test_links_and_doubled_names_are_refused(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.zip", {"data/x.jsonl": b"/etc/passwd"}, link="data/x.jsonl")
    with pytest.raises(DataError, match="leaves its folder"):
        unpack(made, tmp_path / "one", "data/*.jsonl")
    made = archive(tmp_path / "b.zip", {"data/a/x.jsonl": b"1", "data/b/x.jsonl": b"2"})
    with pytest.raises(DataError, match=r"two members are called 'x\.jsonl'"):
        unpack(made, tmp_path / "two", "data/*.jsonl")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = archive(tmp_path / "a.zip", {"data/x.jsonl": b"0" * 100_000})
    monkeypatch.setattr(data, "MAX_UNPACKED_BYTES", 99_999)
    with pytest.raises(DataError, match="not what it says"):
        unpack(made, tmp_path / "out", "data/*.jsonl")


@given(content=st.binary(max_size=200), cut=st.integers(0, 150))
def test_broken_archives_are_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("zip")
    made = archive(folder / "a.zip", {"data/x.jsonl": b"line\n" * 50})
    made.write_bytes(made.read_bytes()[:cut] + content)
    with pytest.raises(DataError, match=r"a\.zip") as caught:
        unpack(made, folder / "out", "data/*.jsonl")
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.zip", {"data/x.jsonl": b"abcdefgh" * 50})
    raw = bytearray(made.read_bytes())
    raw[60] ^= 1
    made.write_bytes(raw)
    with pytest.raises(DataError):
        unpack(made, tmp_path / "out", "data/*.jsonl")


def test_an_archive_without_what_is_needed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing that matches data/\*\.jsonl"):
        unpack(archive(tmp_path / "a.zip", {"README": b"x"}), tmp_path / "out", "data/*.jsonl")


def test_a_checksum_that_differs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    verify(tmp_path / "f", hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(DataError, match=r"expected 0000.*delete it and fetch again"):
        verify(tmp_path / "f", "0" * 64)


def test_data_sets_are_pinned_and_checksummed() -> None:
    longbench = DATASETS["longbench"]
    assert len(longbench.revision) == 40 and longbench.sha256 is not None and len(longbench.sha256) == 64


def test_offline_is_said_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(DataError, match=r"cannot be fetched from the hub.*--data") as caught:
        fetch(find("longbench"))
    assert "\n" not in str(caught.value)
    assert cache_folder() == tmp_path
    with pytest.raises(UnknownName, match="did you mean 'longbench'"):
        fetch(find("longbnech"))


def test_what_is_in_the_cache_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path))
    folder = tmp_path / f"longbench-{DATASETS['longbench'].revision[:12]}"
    folder.mkdir()
    assert fetch(find("longbench")) == folder


# ---- corpora

TEXTS = ["first document", "второй\u2028 документ", "第三篇"]


def written(folder: Path, kind: str) -> Path:
    """The same three documents in one of the formats."""
    lines = "".join(json.dumps({"text": text, "meta": {}}, ensure_ascii=False) + "\n" for text in TEXTS)
    path = folder / f"docs.{kind}"
    if kind == "jsonl":
        path.write_text(lines, encoding="utf-8")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "meta": [1, 2, 3]}), path)
    else:
        path.mkdir()
        for number, text in enumerate(TEXTS):
            (path / f"{number}.txt").write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "folder"])
def test_every_format_gives_the_same_documents(tmp_path: Path, kind: str) -> None:
    documents = list(open_corpus(str(written(tmp_path, kind))))
    assert [d.text for d in documents] == TEXTS
    assert documents[0].id == hashlib.sha256(b"first document").hexdigest()[:16]


def test_a_gzip_that_breaks_off_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "jsonl.gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="breaks off after line"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ""}', "no text"),
        (b"[]", "a JSON list"),
        (b"{", "not a JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"1", "a JSON int"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"d\.jsonl:2: .*{reason}"):
        list(read_documents(tmp_path / "d.jsonl"))


def test_folders_and_files_that_hold_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of these: \.jsonl"):
        list(read_documents(tmp_path))
    with pytest.raises(DataError, match="no file"):
        list(open_corpus(str(tmp_path / "absent.jsonl")))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as parquet") as caught:
        list(read_documents(tmp_path / "bad.parquet"))
    assert "\n" not in str(caught.value)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), least=st.integers(1, 30), seed=st.integers(0, 5))
def test_chosen_documents_are_long_enough_different_and_in_order(lengths: list[int], least: int, seed: int) -> None:
    from e2bench.data.corpus import Document

    documents = [Document("x" * n, str(at)) for at, n in enumerate(lengths)]
    enough = sorted({n for n in lengths if n >= least})

    def choose(docs: int | None) -> list[str]:
        chosen = choose_documents(
            iter(documents), lambda text: list(range(len(text))), min_tokens=least, docs=docs, seed=seed
        )
        return [c.document.text for c in chosen]

    if not enough:
        with pytest.raises(DataError, match=f"0 of {len(lengths)} documents"):
            choose(None)
        return
    assert sorted(len(text) for text in choose(None)) == enough
    picked = choose(1)
    assert len(picked) == 1 and picked == choose(1)
    with pytest.raises(DataError, match=rf"{len(enough)} of {len(lengths)} documents .* {len(enough) + 1} needed"):
        choose(len(enough) + 1)


def test_what_was_unpacked_counts_as_verified_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path))
    folder = tmp_path / f"longbench-{DATASETS['longbench'].revision[:12]}"
    folder.mkdir()
    (folder / "trec.jsonl").write_text("{}\n")
    assert not is_verified(find("longbench"), fetch(find("longbench")))  # nothing says what its files should be
    write_json(folder / SUMS, file_hashes([folder / "trec.jsonl"]))
    assert is_verified(find("longbench"), fetch(find("longbench")))
    (folder / "trec.jsonl").write_text("{} \n")
    with pytest.raises(DataError, match=r"trec.jsonl is not what was fetched.*e2bench data longbench"):
        is_verified(find("longbench"), fetch(find("longbench")))


def test_the_demo_documents_are_two_of_65536_tokens_and_more() -> None:
    documents = list(open_corpus(None))
    assert [document.id for document in documents] == [document.id for document in open_corpus("demo")]
    assert corpus_source(None) == corpus_source("demo") == DataSource("demo")
    assert len(documents) == 2
    assert all(len(document.text) > 65_536 * 4 for document in documents)  # at 4 characters a token
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    assert all(len(tokenizer(document.text, verbose=False)["input_ids"]) >= 65_536 for document in documents)
