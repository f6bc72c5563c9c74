"""Text that every machine has: the installed Python's standard library and the documents of installed packages.

Written as JSON lines in the Pile's layout: `{"text", "meta": {"pile_set_name", "source"}}`. A standard-library
file whose name hashes into the held-out share is never trained on, whatever the Python version, and is left for
evaluation.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2bench.errors import DataError

SKIPPED_FOLDERS = {
    "site-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "ensurepip",
    "encodings",
}  # the last: tables
SKIPPED_NAMES = ("license", "copying", "notice", "authors", "contributors")  # the same legal text in every package
DOC_SUFFIXES = {".md", ".rst"}
DOCSTRINGS_OF = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "scikit-learn", "torch")  # well documented
MIN_CHARS, MAX_CHARS = 200, 800_000
HELD_OUT_SHARE = 12  # one standard-library file in so many


@dataclass(frozen=True)
class Document:
    """source: name that does not depend on the machine.    held_out: kept from training."""

    source: str
    kind: str
    text: str
    held_out: bool = False

    @property
    def sha256(self) -> str:
        """Of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def line(self) -> str:
        """The document as a line of the Pile's JSON layout."""
        meta = {"pile_set_name": self.kind, "source": self.source}
        return json.dumps({"text": self.text, "meta": meta}, ensure_ascii=False) + "\n"


def is_held_out(source: str) -> bool:
    """Whether a standard-library file, `stdlib/` and its relative path, is kept for evaluation."""
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def stdlib_documents() -> Iterator[Document]:
    """Python sources of the running interpreter's standard library, in order of name, its own tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            source = f"stdlib/{relative.as_posix()}"
            yield from read_document(path, source, "PythonStandardLibrary", is_held_out(source))


def package_documents() -> Iterator[Document]:
    """Long descriptions and Markdown or reStructuredText files of installed distributions, in order of name."""
    distributions = {d.metadata["Name"]: d for d in importlib.metadata.distributions() if d.metadata["Name"]}
    for name, distribution in sorted(distributions.items()):
        description = (distribution.read_text("METADATA") or "").partition("\n\n")[2]
        yield from _checked(Document(f"{name}/description", "PackageDocumentation", description))
        for file in sorted(distribution.files or []):
            if file.suffix in DOC_SUFFIXES and not any(word in file.name.lower() for word in SKIPPED_NAMES):
                yield from read_document(Path(str(file.locate())), f"{name}/{file.as_posix()}", "PackageDocumentation")
            elif name in DOCSTRINGS_OF and file.suffix == ".py" and "tests" not in file.parts:
                text = "\n\n".join(docstrings(Path(str(file.locate()))))
                yield from _checked(Document(f"{name}/{file.as_posix()}", "PackageDocstrings", text))


def docstrings(source: Path | str) -> list[str]:
    """The docstrings of a Python file's module, classes and functions, in order, indentation removed.

    source: the file, or its text.
    """
    try:
        tree = ast.parse(source if isinstance(source, str) else source.read_bytes())
    except (OSError, SyntaxError, ValueError):  # templates that are not yet Python
        return []
    described = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    return [text for node in described if (text := ast.get_docstring(node))]


def read_document(path: Path, source: str, kind: str, held_out: bool = False) -> Iterator[Document]:
    """The document of one file; none where it is gone, not UTF-8, or of another length than is used."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a few sources are in other encodings on purpose, a few files are gone
        return
    yield from _checked(Document(source, kind, text, held_out))


def _checked(document: Document) -> Iterator[Document]:
    if MIN_CHARS <= len(document.text) <= MAX_CHARS:
        yield document


def write_corpus(out: Path, seed: int) -> dict[str, object]:
    """Write `corpus.jsonl` (training, shuffled by seed), `held_out.jsonl` and `corpus.json` (every file's SHA-256).

    A text that occurs twice is kept once. Returns what `corpus.json` holds.
    """
    documents: dict[str, Document] = {}
    for document in (*stdlib_documents(), *package_documents()):
        documents.setdefault(document.sha256, document)
    held_out = [d for d in documents.values() if d.held_out]
    training = [d for d in documents.values() if not d.held_out]
    if not held_out:
        raise DataError("found no standard-library sources to hold out; run a Python that has its .py files installed")
    random.Random(seed).shuffle(training)
    _write_lines(out / "corpus.jsonl", training)
    _write_lines(out / "held_out.jsonl", sorted(held_out, key=lambda d: d.source))
    manifest: dict[str, object] = {
        "training": {d.source: d.sha256 for d in sorted(training, key=lambda d: d.source)},
        "held_out": {d.source: d.sha256 for d in sorted(held_out, key=lambda d: d.source)},
        "training_chars": sum(len(d.text) for d in training),
        "held_out_chars": sum(len(d.text) for d in held_out),
    }
    (out / "corpus.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _write_lines(path: Path, documents: list[Document]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(d.line() for d in documents), encoding="utf-8")
