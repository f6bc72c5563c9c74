"""Which licence an installed package's metadata names, and whether it is a permissive one."""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata

# SPDX names. An expression is permissive when every licence in it is.
PERMISSIVE = frozenset(
    {"MIT", "MIT-0", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0", "ISC", "PSF-2.0"}
    | {"Python-2.0", "CNRI-Python", "BSL-1.0", "HPND", "Zlib", "Unlicense", "CC0-1.0"}
)
EXCEPTIONS = frozenset(("LLVM-exception",))  # behind WITH: they take a duty away
CLASSIFIERS = {
    "MIT License": "MIT",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
}
# Of the old free field, whose first line is read: what people write there.
WRITTEN = (
    (r"MIT\b", "MIT"),
    (r"Apache\b", "Apache-2.0"),
    (r"BSD\b", "BSD"),
    (r"ISC\b", "ISC"),
    (r"PSFL?\b|Python Software Foundation", "PSF-2.0"),
)
OTHER = re.compile(r"GPL|GNU|MPL|Mozilla|EPL|Eclipse|CC-BY|Creative Commons|Propriet|NVIDIA|Commercial", re.IGNORECASE)


def permissive_licence(metadata: PackageMetadata) -> str | None:
    """The licence, if it is permissive; None for every other one, and where none is named.

    Read in this order, the first that is there: the SPDX expression (PEP 639), the licence classifiers, the first
    line of the free field.
    """
    if expression := _first(metadata, "License-Expression"):
        names = [name for name in re.split(r"[\s()]+", expression) if name not in ("", "AND", "OR", "WITH")]
        return expression if set(names) <= PERMISSIVE | EXCEPTIONS else None
    classified = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    classified = [name for name in classified if name != "OSI Approved"]
    if classified:
        known = [CLASSIFIERS.get(name, "") for name in classified]
        return " AND ".join(sorted(set(known))) if all(known) else None
    return _written(_first(metadata, "License").strip().partition("\n")[0])


def _first(metadata: PackageMetadata, name: str) -> str:
    return str(next(iter(metadata.get_all(name) or []), ""))


def _written(line: str) -> str | None:
    """The licence that a line of free text names."""
    if OTHER.search(line):
        return None
    return next((name for pattern, name in WRITTEN if re.search(pattern, line)), None)
