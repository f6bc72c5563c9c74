"""Training text from installed packages: by licence, without evaluations, the same for the same packages."""

from __future__ import annotations

import hashlib
import json
from email.message import Message
from pathlib import Path

import pytest

from e2bench.data.corpus import read_documents
from e2bench.data.licences import permissive_licence
from e2bench.train import collect_text
from e2bench.train.collect_text import collect, joined, main

STDLIB = 20  # files of the standard library in these tests


@pytest.fixture(autouse=True)
def few_files_of_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = collect_text.stdlib_documents

    def few():
        for number, document in enumerate(documents()):
            if number == STDLIB:
                return
            yield document

    monkeypatch.setattr(collect_text, "stdlib_documents", few)


def package(folder: Path, name: str, files: dict[str, str], *lines: str) -> None:
    """An installed package as pip leaves it: its files, METADATA, RECORD."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    metadata = ("Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines)
    (info / "METADATA").write_text("".join(f"{line}\n" for line in metadata))
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{info.name}/METADATA"]))


def source(word: str, lines: int = 20) -> str:
    return "".join(f"def {word}_{n}(value):\n    return value + {n}\n" for n in range(lines))


def texts(out: Path) -> dict[str, str]:
    rows = map(json.loads, (out / "text.jsonl").read_text().splitlines())
    return {row["meta"]["source"]: row["text"] for row in rows}


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT")], "MIT"),
        ([("License-Expression", "Apache-2.0 WITH LLVM-exception OR MIT")], "Apache-2.0 WITH LLVM-exception OR MIT"),
        ([("License-Expression", "MIT AND GPL-3.0-only")], None),
        ([("License-Expression", "MPL-2.0"), ("Classifier", "License :: OSI Approved :: MIT License")], None),
        ([("Classifier", "License :: OSI Approved :: BSD License"), ("License", "Copyright 2001")], "BSD"),
        (
            [("Classifier", f"License :: OSI Approved :: {n}") for n in ("BSD License", "Apache Software License")],
            "Apache-2.0 AND BSD",
        ),
        ([("Classifier", "License :: OSI Approved :: GNU General Public License v2 (GPLv2)")], None),
        (
            [("Classifier", f"License :: OSI Approved :: {n}") for n in ("MIT License", "Mozilla Public License 2.0")],
            None,
        ),
        ([("Classifier", "License :: OSI Approved"), ("License", "Apache License, Version 2.0")], "Apache-2.0"),
        ([("License", "3-Clause BSD License")], "BSD"),
        ([("License", "MIT License\n\nCopyright (c) 2022, not GPL")], "MIT"),
        ([("License", "MPL-2.0 AND MIT")], None),
        ([("License", "LGPL-2.1-or-later")], None),
        ([("License", "NVIDIA Proprietary Software")], None),
        ([("License", "see LICENCE.txt")], None),
        ([], None),
    ],
)
def test_only_a_named_permissive_licence_counts(fields: list[tuple[str, str]], licence: str | None) -> None:
    metadata = Message()
    for name, value in fields:
        metadata[name] = value
    assert permissive_licence(metadata) == licence


def test_text_is_taken_by_licence_once_and_without_evaluations(tmp_path: Path) -> None:
    site = tmp_path / "site"
    key = "What is the pass key? The pass key is"  # Landmark's question
    chapter = "Let X be a scheme and let F be a quasi-coherent sheaf of modules on X, of finite type."
    package(
        site,
        "good",
        {
            "good/a.py": source("alpha"),
            "good/b.py": source("alpha"),  # a copy
            "good/c.py": source("gamma") + f"PROMPT = '{key}'\n",
            "good/d.txt": f"{source('delta')}{chapter}\n",
            "good/e.py": source("epsilon"),
            "good/short.py": "x = 1\n",
            "good/data.csv": source("csv"),
            "good/LICENSE.txt": source("licence"),
        },
        "License-Expression: MIT",
    )
    package(site, "copyleft", {"copyleft/a.py": source("copyleft")}, "License: GPLv3")
    package(site, "lm_eval", {"lm_eval/a.py": source("prompts")}, "License: MIT")
    evaluated = tmp_path / "chapters.jsonl"
    evaluated.write_text(json.dumps({"text": f"{chapter}\n" * 3}) + "\n")

    manifest = collect(tmp_path / "out", 5, [evaluated], [str(site)])

    found = texts(tmp_path / "out")
    assert "alpha_0" in found["good/0"] and "epsilon_0" in found["good/0"]
    assert found["good/0"].index("# good/good/a.py") < found["good/0"].index("# good/good/e.py")
    everything = "".join(found.values())
    left_out = ("gamma", "delta", "copyleft", "prompts", "licence", "csv")
    assert [word for word in left_out if f"{word}_0(value)" in everything] == [] and key not in everything
    assert manifest["left_out"] == {
        "licence": ["copyleft"],
        "evaluation": ["good/good/c.py", "good/good/d.txt"],
        "repeated": 1,
    }
    assert manifest["packages"]["good"] | {"bytes": 0} == {
        "version": "1.0", "licence": "MIT", "files": 2, "documents": 1, "bytes": 0,
    }  # fmt: skip
    assert manifest["packages"]["python"]["licence"] == "PSF-2.0"
    written = (tmp_path / "out" / "text.jsonl").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(written).hexdigest()
    assert manifest["bytes"] == sum(len(text.encode()) for text in found.values())
    as_ppl_reads_them = list(read_documents(tmp_path / "out" / "text.jsonl"))
    assert len(as_ppl_reads_them) == manifest["documents"]


def test_the_same_packages_give_the_same_bytes_and_a_cap_takes_the_first_of_them(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("one", "two", "three", "four"):
        package(site, name, {f"{name}/{n}.py": source(f"{name}{n}", 100) for n in range(5)}, "License: BSD")
    whole = collect(tmp_path / "a", 5, (), [str(site)])
    again = collect(tmp_path / "b", 5, (), [str(site)])
    assert whole["sha256"] == again["sha256"]
    capped = collect(tmp_path / "c", 0.05, (), [str(site)])
    lines = [(tmp_path / name / "text.jsonl").read_text().splitlines() for name in ("a", "c")]
    assert 0 < len(lines[1]) < len(lines[0]) and lines[0][: len(lines[1])] == lines[1]
    assert capped["bytes"] <= 50_000


def test_a_documents_files_are_of_one_package_and_it_ends_before_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_text, "DOCUMENT_CHARS", 1000)
    files = [collect_text.Document(name, "", "x" * 400) for name in ("a/0.py", "a/1.py", "a/2.py", "b/0.py")]
    made = [(document.source, count, len(document.text)) for document, count in joined(files)]
    assert [(name, count) for name, count, _ in made] == [("a/0", 2), ("a/1", 1), ("b/0", 1)]
    assert all(size <= 1000 for *_, size in made)


def test_a_missing_evaluation_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path), "--without", str(tmp_path / "none.jsonl")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("collect_text: no file ")
