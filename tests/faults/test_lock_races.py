"""A thousand simultaneous opens of run folders: never two inside."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from e2bench.errors import RunFolderError
from e2bench.runs.folder import RunFolder
from e2bench.runs.manifest import manifest

PROCESSES, ROUNDS = 8, 125


def open_together(root: Path, gate: Barrier, results: multiprocessing.SimpleQueue) -> None:
    """Every process at once: open the round's folder, put up a sign that must not stand yet, take it down."""
    entered = refused = double = 0
    for number in range(ROUNDS):
        contents = manifest("ppl", settings={}, resolved={})
        gate.wait()
        try:
            with RunFolder(root / str(number % 5), contents):
                sign = root / f"inside-{number % 5}"
                try:
                    os.close(os.open(sign, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    double += 1
                else:
                    os.unlink(sign)
                entered += 1
        except RunFolderError as error:
            assert "is in use by" in str(error), error
            refused += 1
    results.put((entered, refused, double))


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_of_a_thousand_simultaneous_opens_none_is_double(tmp_path: Path, rounds: int) -> None:
    fork = multiprocessing.get_context("fork")
    for round_number in range(rounds):
        root = tmp_path / str(round_number)
        root.mkdir()
        gate, results = fork.Barrier(PROCESSES), fork.SimpleQueue()
        workers = [fork.Process(target=open_together, args=(root, gate, results)) for _ in range(PROCESSES)]
        for worker in workers:
            worker.start()
        found = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
        entered, refused, double = (sum(column) for column in zip(*found, strict=True))
        assert entered + refused == PROCESSES * ROUNDS == 1000
        assert double == 0 and entered >= ROUNDS  # in every round somebody gets in
        assert not list(root.glob("*/.lock"))
