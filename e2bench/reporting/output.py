"""The report's folder: whose it is, and files written beside and renamed into place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from e2bench import __version__
from e2bench.errors import DataError
from e2bench.files import make_folder, write_atomic, write_json
from e2bench.reporting.runs import MARKER, report_files
from e2bench.reporting.samples import FOLDER
from e2bench.runs.manifest import now

OF_SAMPLES = re.compile(r"(\d+|index)\.js|\.(\d+|index)\.js\.[0-9a-f]{16}\.tmp")


class Output:
    """Writes a report's files into `folder` and remembers them; `close` leaves the marker that says it is ours."""

    def __init__(self, folder: Path, *results: Path) -> None:
        self.folder = folder
        self.written: list[Path] = []
        self._earlier = set(report_files(folder))
        # A report may stand beside the runs it reports (`quickstart` does so), never among files of someone else.
        self._beside_runs = folder.exists() and folder.resolve() in [path.resolve() for path in results]
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; give a folder for the report with --out")
        foreign = folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists()
        if foreign and not self._beside_runs:
            raise DataError(f"{folder} holds files and is no report of ours; give a new or empty folder with --out")
        if (folder / MARKER).exists() and not self._earlier:
            raise DataError(f"{folder / MARKER} is not a report's; give a new or empty folder with --out")
        self._inner = folder / FOLDER
        ours = any(name.startswith(f"{FOLDER}/") for name in self._earlier)
        if self._inner.is_symlink() or (self._inner.exists() and not ours):
            raise DataError(f"{self._inner} exists and is not ours; give another folder with --out")

    def begin(self, names: Sequence[str]) -> None:
        """Say in the marker that these files are ours before the first is written: a killed report can be done again.

        Raises:
            DataError: a file of one of the names is there and no earlier report wrote it.
        """
        for name in names:
            if (self.folder / name).exists() and name not in self._earlier:
                raise DataError(f"{self.folder / name} exists and is not ours; give another folder with --out")
        make_folder(self.folder)
        for path in self.folder.glob(".*.tmp"):  # what a killed `write_atomic` left
            if path.name.removeprefix(".").rpartition(".tmp")[0].rpartition(".")[0] in {*names, MARKER}:
                path.unlink()
        self._earlier |= {*names, f"{FOLDER}/"}  # which files there will be in it is not known yet
        self._mark([*self._earlier], runs=[], warnings=["it was interrupted: give the same command again"])

    def write(self, name: str, content: str | bytes) -> Path:
        """One file, whole or not at all.

        Raises:
            DataError: a file of that name is there and no earlier report wrote it.
            RunFailed, RunFolderError: the disk is full, or the folder cannot be written.
        """
        path = self.folder / name
        if path.exists() and name not in self._earlier and name != MARKER and path.parent != self._inner:
            raise DataError(f"{path} exists and is not ours; give another folder with --out")
        make_folder(path.parent)
        write_atomic(path, content)
        self.written.append(path)
        return path

    def close(self, runs: list[str], warnings: list[str]) -> None:
        """Write the marker, and take away what an earlier report wrote and this one did not."""
        names = [path.relative_to(self.folder).as_posix() for path in self.written]
        self._mark(names, runs=runs, warnings=warnings)
        self.written.append(self.folder / MARKER)
        for stale in self._earlier - set(names) - {MARKER}:
            path = self.folder / stale
            if path.parent == self.folder and path.is_file():  # a doctored marker must not reach other folders
                path.unlink()
        self._close_inner(set(names))

    def _close_inner(self, names: set[str]) -> None:
        """Take away files of samples that this report did not write, also those of one that was killed."""
        if not self._inner.is_dir():
            return
        for path in self._inner.iterdir():
            if OF_SAMPLES.fullmatch(path.name) and f"{FOLDER}/{path.name}" not in names:
                path.unlink()
        if not any(self._inner.iterdir()):
            self._inner.rmdir()

    def _mark(self, names: Sequence[str], *, runs: list[str], warnings: list[str]) -> None:
        marker = {
            "made_by": "e2bench report",
            "e2bench": __version__,
            "written": now(),
            "runs": runs,
            "warnings": warnings,
            "files": [*names, MARKER],
        }
        write_json(self.folder / MARKER, marker)
