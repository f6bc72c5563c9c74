"""The header of a GGUF file: its keys, and small float32 tensors.

The package `gguf` turns every token of the vocabulary into an array of its own, which takes 5 s for 49,000 of them;
here arrays are stepped over. Format: ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from e2bench.errors import ModelError
from e2bench.models.claims import check_layers_of_gguf

# Value types by number: struct formats; 7 is a bool, 8 a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FLOAT32 = 0  # ggml's tensor type
MOST_ENTRIES = 1 << 16  # tensors, keys: those of MOST_LAYERS layers
MOST_ARRAY = 600_000  # Gemma 3 has 514,906 merges; transformers takes 30 microseconds and 2 kB for each


class GgufHeader:
    """keys: name to value; arrays are left out.    tensors: name to (shape, type, offset in the data)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: dict[str, Any] = {}
        self.tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._data, self._at = data, 0
                self._read()
                self._floats = {n: self._float32(n) for n in self.tensors if n == "rope_freqs.weight"}
        except (struct.error, OSError, ValueError, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise ModelError(f"{path} cannot be read as GGUF: {' '.join(str(error).split())[:160]}") from None

        check_layers_of_gguf(self.keys, len(self.tensors), str(path))

    def floats(self, name: str) -> tuple[float, ...]:
        """The values of the small tensor `rope_freqs.weight`; () where there is none."""
        return self._floats.get(name, ())

    def _read(self) -> None:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensors, keys = self._take("I"), self._take("Q"), self._take("Q")
        if version not in (2, 3) or max(tensors, keys) > MOST_ENTRIES:
            raise ValueError(f"version {version} with {tensors} tensors and {keys} keys")
        for _ in range(keys):
            name, kind = self._string(), self._take("I")
            if kind == _ARRAY:
                self._skip_array()
            else:
                self.keys[name] = self._string() if kind == _STRING else self._take(_format(kind))
        for _ in range(tensors):
            name = self._string()
            shape = tuple(self._take("Q") for _ in range(min(self._take("I"), 8)))
            self.tensors[name] = (shape, self._take("I"), self._take("Q"))
        alignment = int(self.keys.get("general.alignment") or 32)
        self._start = -(-self._at // alignment) * alignment

    def _take(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return value

    def _string(self) -> str:
        length = self._take("Q")
        if length > len(self._data) - self._at:
            raise ValueError(f"a text of {length} bytes does not fit the file")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8")

    def _skip_array(self) -> None:
        kind, count = self._take("I"), self._take("Q")
        if count > MOST_ARRAY:
            raise ValueError(f"a list of {count:,} entries, and no tokenizer has more than {MOST_ARRAY:,}")
        if count > len(self._data) - self._at:
            raise ValueError(f"an array of {count} entries does not fit the file")
        if kind == _STRING:
            for _ in range(count):
                length = self._take("Q")
                self._at += length
        else:
            self._at += count * struct.calcsize(f"<{_format(kind)}")

    def _float32(self, name: str) -> tuple[float, ...]:
        shape, kind, offset = self.tensors[name]
        if kind != _FLOAT32 or len(shape) != 1:
            raise ValueError(f"{name} is not one row of float32")
        return struct.unpack_from(f"<{shape[0]}f", self._data, self._start + offset)


def _format(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"value type {kind}")
    return _SCALARS[kind]
