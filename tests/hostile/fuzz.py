"""Coverage-guided fuzzing of the parsers with atheris: `python tests/hostile/fuzz.py TARGET -runs=100000`.

Options after the target are libFuzzer's. A finding is an exception that is no E2BenchError, or a broken rule of
hostile_cases.case; the input that led to it is written to the current folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["e2bench"]):
    import yaml
    from hostile_cases import case

    from e2bench.data.corpus import read_documents
    from e2bench.data.fetch import unpack
    from e2bench.experiments.stored import score_folder
    from e2bench.files import read_rows
    from e2bench.models.served import Answer
    from e2bench.prompts.task import read_examples
    from e2bench.tasks.longbench import BY_NAME
    from e2bench.train.recipe import load_recipe

FOLDER = Path(tempfile.mkdtemp(prefix="e2bench-fuzz-"))


def documents(content: bytes) -> None:
    """The first byte chooses the format."""
    suffix = ("jsonl", "jsonl.gz", "txt", "parquet")[content[0] % 4] if content else "jsonl"
    path = FOLDER / f"x.{suffix}"
    path.write_bytes(content[1:])
    list(read_documents(path))


def rows(content: bytes) -> None:
    """A file of our own lines."""
    (FOLDER / "x.jsonl").write_bytes(content)
    read_rows(FOLDER / "x.jsonl")


def examples(content: bytes) -> None:
    """A data file of a task."""
    (FOLDER / "trec.jsonl").write_bytes(content)
    read_examples(FOLDER, BY_NAME["trec"])


def archive(content: bytes) -> None:
    """A zip."""
    (FOLDER / "x.zip").write_bytes(content)
    shutil.rmtree(FOLDER / "out", ignore_errors=True)
    unpack(FOLDER / "x.zip", FOLDER / "out", "*")


def recipe(content: bytes) -> None:
    """A recipe, but for the ones that test_recipes_hostile.py knows."""
    try:
        content.decode("utf-8")
        yaml.safe_load(content)
    except yaml.YAMLError:
        pass
    except (ValueError, RecursionError):
        return
    (FOLDER / "x.yaml").write_bytes(content)
    load_recipe(str(FOLDER / "x.yaml"))


def scores(content: bytes) -> None:
    """A run: its experiment, then its lines."""
    run = FOLDER / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    kind = ("longbench", "ppl", "passkey", "attention", "short")[content[0] % 5] if content else "ppl"
    (run / "run.json").write_text(json.dumps({"experiment": kind}))
    (run / f"{'trec' if kind == 'longbench' else kind}.jsonl").write_bytes(content[1:])
    score_folder(run)


def answer(content: bytes) -> None:
    """What a server says, as far as it is a JSON object; TypeError and AttributeError become one line in `_take`."""
    try:
        event = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(event, dict):
        try:
            Answer().take(event)
        except (AttributeError, TypeError):
            return


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (documents, rows, examples, archive, recipe, scores, answer)
}


def main() -> None:
    """Fuzz the target that the command line names."""
    target = TARGETS[sys.argv.pop(1)]
    os.environ["PYTEST_CURRENT_TEST"] = f"fuzz.py::{target.__name__} (call)"

    def one_input(content: bytes) -> None:
        with case(FOLDER):
            target(content)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
