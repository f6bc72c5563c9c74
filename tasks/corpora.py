"""Public data sets that load without a script: where they are, at which revision, with which checksum."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """One file of a data-set repository on the Hugging Face hub.

    sha256: of the file; None where it is not known beforehand: then the hub's own checksum for `revision` is used.
    members: which files of a zip archive are taken out, as a glob over their paths; None for a file used as it is.
    """

    name: str
    repo: str
    filename: str
    revision: str
    sha256: str | None
    members: str | None
    about: str


DATASETS = {
    archive.name: archive
    for archive in (
        Archive(
            "longbench",
            "zai-org/LongBench",
            "data.zip",
            "5e628be450b7e67fb7ae6e201bd6d8f7056f7672",
            "cb45b11a4133c6bc1d6a44b0f8e701335ff1e543195db1103472e575857f7f64",
            "data/*.jsonl",
            "LongBench v1, all tasks and LongBench-E (formerly THUDM/LongBench)",
        ),
        Archive(
            "proof-pile",
            "hoskinson-center/proof-pile",
            "test/proofpile_test.jsonl.gz",
            "main",
            None,
            None,
            "proof-pile's test split, read as a file (its loading script is not run)",
        ),
    )
}
