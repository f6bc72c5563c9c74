"""Training text that every machine has: Python sources and documentation of its permissively licensed packages.

`python -m e2bench.train.collect_text --out data/collected --megabytes 150` writes `text.jsonl` (the Pile's layout) and
`text.json`: counts for every package, its version and licence, what was left out and why, SHA-256. Both follow from the
set of installed packages alone. A package's files are joined in order of their paths, so that documents are long.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2bench.data.corpus import read_documents
from e2bench.data.licences import permissive_licence
from e2bench.data.stdlib import MAX_CHARS, MIN_CHARS, SKIPPED_NAMES, Document, read_document, stdlib_documents
from e2bench.errors import E2BenchError
from e2bench.experiments.training import every_wording
from e2bench.files import make_folder, write_atomic, write_json

KIND = "InstalledPackages"
SUFFIXES = (".py", ".md", ".rst", ".txt")
PYTHON, PYTHON_LICENCE = "python", "PSF-2.0"  # the standard library, as one more package
WITH_EVALUATIONS = ("e2bench", "lm-eval", "wonderwords")  # the last: RULER's words
DOCUMENT_CHARS = 400_000  # files are joined up to here: about 100k tokens
LONG_LINE = 60  # characters of a line, half of them letters, that two texts do not share by chance


@dataclass
class Package:
    """One package and what was taken from it."""

    version: str
    licence: str
    files: int = 0
    documents: int = 0
    bytes: int = 0


@dataclass
class LeftOut:
    """licence: packages without a permissive one.    evaluation: files that hold an evaluation's text."""

    licence: list[str] = field(default_factory=list)
    evaluation: list[str] = field(default_factory=list)
    repeated: int = 0


def collect(
    out: Path, megabytes: float, without: Sequence[Path] = (), folders: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write `text.jsonl` and `text.json` into `out`, and return what the second holds.

    megabytes: 10^6 bytes of text at most.    without: evaluation documents; a file that shares a long line with one
    of them is left out.    folders: where packages are looked for; default: sys.path.
    """
    left_out = LeftOut()
    packages, files = _packages(sys.path if folders is None else folders, left_out)
    kept = _without_evaluations(_once(files, left_out), _long_lines(without), left_out)
    chosen = _up_to(_in_fixed_order(joined(kept)), int(megabytes * 1e6))
    lines = []
    for document, sources in chosen:
        package = packages[package_of(document.source)]
        package.files += sources
        package.documents += 1
        package.bytes += len(document.text.encode())
        lines.append(document.line().encode())
    content = b"".join(lines)
    make_folder(out)
    write_atomic(out / "text.jsonl", content)
    used = {name: vars(package) for name, package in sorted(packages.items()) if package.documents}
    manifest = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "documents": len(lines),
        "files": sum(package.files for package in packages.values()),
        "bytes": sum(package.bytes for package in packages.values()),
        "megabytes": megabytes,
        "licences": dict(sorted(Counter(package["licence"] for package in used.values()).items())),
        "packages": used,
        "left_out": vars(left_out),
        "without": [path.name for path in without],
    }
    write_json(out / "text.json", manifest)
    return manifest


def _packages(folders: Sequence[str], left_out: LeftOut) -> tuple[dict[str, Package], Iterator[Document]]:
    """The packages that may be used, by name, and their files, package by package in order of name and path."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions(path=list(folders)):
        if name := distribution.metadata["Name"]:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)  # the first one is imported
    packages = {PYTHON: Package(platform.python_version(), PYTHON_LICENCE)}
    for name, distribution in sorted(found.items()):
        licence = permissive_licence(distribution.metadata)
        if licence is None:
            left_out.licence.append(name)
        elif name not in WITH_EVALUATIONS:
            packages[name] = Package(distribution.version, licence)
    chosen = {name: found[name] for name in sorted(packages) if name != PYTHON}
    return packages, _files(chosen)


def _files(distributions: dict[str, importlib.metadata.Distribution]) -> Iterator[Document]:
    for document in stdlib_documents():
        if not document.held_out:  # evaluations read those
            yield Document(f"{PYTHON}/{document.source}", KIND, document.text)
    for name, distribution in distributions.items():
        description = (distribution.read_text("METADATA") or "").partition("\n\n")[2]
        if MIN_CHARS <= len(description) <= MAX_CHARS:
            yield Document(f"{name}/description", KIND, description)
        for file in sorted(distribution.files or [], key=lambda file: file.as_posix()):
            skipped = any(word in file.name.lower() for word in SKIPPED_NAMES)
            inside = not any(part == ".." or part.endswith((".dist-info", ".egg-info")) for part in file.parts)
            if file.suffix in SUFFIXES and inside and not skipped:
                yield from read_document(Path(str(file.locate())), f"{name}/{file.as_posix()}", KIND)


def package_of(source: str) -> str:
    """The package of a document or file, from its source."""
    return source.partition("/")[0]


def _once(files: Iterable[Document], left_out: LeftOut) -> Iterator[Document]:
    """Each text once, the first time that it occurs."""
    seen: set[bytes] = set()
    for file in files:
        digest = hashlib.sha256(file.text.encode()).digest()
        if digest in seen:
            left_out.repeated += 1
        else:
            seen.add(digest)
            yield file


def _without_evaluations(files: Iterable[Document], lines: set[str], left_out: LeftOut) -> Iterator[Document]:
    """Files without the words of an evaluation's prompts, and without a long line of a document that is evaluated."""
    wordings = every_wording()
    for file in files:
        worded = any(wording.is_in(file.text) for wording in wordings)
        if worded or (lines and not lines.isdisjoint(map(str.strip, file.text.splitlines()))):
            left_out.evaluation.append(file.source)
        else:
            yield file


def _long_lines(paths: Sequence[Path]) -> set[str]:
    lines = (line.strip() for path in paths for document in read_documents(path) for line in document.text.splitlines())
    return {line for line in lines if len(line) >= LONG_LINE and 2 * sum(map(str.isalpha, line)) >= len(line)}


def joined(files: Iterable[Document]) -> Iterator[tuple[Document, int]]:
    """Documents of at most DOCUMENT_CHARS or one file, each of one package, with the number of files in it.

    A file begins with its name in a line of its own, as it would in a listing.
    """
    parts: list[str] = []
    package, number = "", 0

    def document() -> tuple[Document, int]:
        return Document(f"{package}/{number}", KIND, "\n\n".join(parts)), len(parts)

    for file in files:
        text = f"# {file.source}\n{file.text.strip()}"
        other = package_of(file.source) != package
        if parts and (other or sum(map(len, parts)) + len(text) > DOCUMENT_CHARS):
            yield document()
            parts, number = [], number + 1
        if other:
            package, number = package_of(file.source), 0
        parts.append(text)
    if parts:
        yield document()


def _in_fixed_order(documents: Iterable[tuple[Document, int]]) -> list[tuple[Document, int]]:
    """By the hash of their names: what a cap leaves is then a sample of all packages, not the alphabet's beginning."""
    return sorted(documents, key=lambda one: hashlib.sha256(one[0].source.encode()).hexdigest())


def _up_to(documents: Iterable[tuple[Document, int]], most_bytes: int) -> Iterator[tuple[Document, int]]:
    for document, files in documents:
        most_bytes -= len(document.text.encode())
        if most_bytes < 0:
            return
        yield document, files


def main(arguments: list[str] | None = None) -> None:
    """Collect as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m e2bench.train.collect_text", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/collected"), help="folder; default: %(default)s")
    parser.add_argument("--megabytes", type=float, default=150, help="of text at most; default: %(default)s")
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="files of documents that will be evaluated")
    options = parser.parse_args(arguments)
    try:
        found = collect(options.out, options.megabytes, options.without)
    except E2BenchError as error:
        print(f"collect_text: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    left_out = found["left_out"]
    print(
        f"{options.out / 'text.jsonl'}: {found['bytes'] / 1e6:.1f} MB in {found['documents']} documents, "
        f"{found['files']:,} files of {len(found['packages'])} packages\n"
        f"left out: {len(left_out['licence'])} packages by licence, {len(left_out['evaluation'])} files with an "
        f"evaluation's text, {left_out['repeated']:,} files that repeat others"
    )


if __name__ == "__main__":
    main()
