"""What `--data` names for perplexity and attention: the demo documents, a public set, a hub id, or one's own files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from e2bench.data.corpus import Document, read_documents, stream
from e2bench.data.source import DEMO, HUB, OWN, PUBLIC, DataSource

SUFFIXES = (".gz", ".jsonl", ".txt", ".parquet")


def corpus_source(data: str | None) -> DataSource:
    """What `open_corpus` reads, by name; a data set that `e2bench data` knows is fetched for it."""
    from e2bench.tasks.corpora import DATASETS

    if data is None or data == DEMO:
        return DataSource(DEMO)
    if Path(data).exists() or data.startswith((".", "/", "~")) or data.endswith(SUFFIXES):
        return DataSource(OWN, Path(data).expanduser().resolve().name)
    if data in DATASETS:
        from e2bench.data.fetch import fetch, is_verified

        return DataSource(PUBLIC, data, is_verified(DATASETS[data], fetch(DATASETS[data])))
    return DataSource(HUB, data)


def open_corpus(data: str | None, source: DataSource | None = None) -> Iterator[Document]:
    """Documents of a local path, a data set that `e2bench data` knows, a hub id's `test` split, or the demo ones.

    data: None and `demo` are the demo documents.    source: `corpus_source(data)` where it is known already, since
        verifying a data set reads all of it.
    """
    source = source or corpus_source(data)
    if source.kind == DEMO:
        from e2bench.tasks.demo import corpus_file

        return read_documents(corpus_file())
    if source.kind == PUBLIC:
        from e2bench.data.fetch import fetch
        from e2bench.tasks.corpora import find

        return read_documents(fetch(find(source.name)))
    return read_documents(Path(str(data)).expanduser()) if source.kind == OWN else stream(source.name)
