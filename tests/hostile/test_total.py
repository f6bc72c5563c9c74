"""The stated number of cases really ran. Last of this folder's modules by name, as pytest orders them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_cases import DECLARED, MODULES, RAN

STATED = 18_000  # in SECURITY.md


def test_the_stated_number_of_cases_ran() -> None:
    every = {path.stem for path in Path(__file__).parent.glob("test_*_hostile.py")}
    if missing := every - MODULES:
        pytest.skip(f"only a part of the folder was run: {', '.join(sorted(missing))} not")
    short = {name: (RAN[name], declared) for name, declared in DECLARED.items() if RAN[name] < declared}
    assert not short, "(ran, declared) of tests that ran fewer cases than they say"
    print(f"{sum(RAN.values()):,} hostile cases")
    assert sum(DECLARED.values()) >= STATED
    assert sum(RAN.values()) >= STATED


def test_security_md_states_what_the_tests_count() -> None:
    pytest.importorskip("atheris", reason="its targets are counted")
    from test_atheris import GOOD

    tests = Path(__file__).parents[1]
    said = " ".join((tests.parent / "SECURITY.md").read_text(encoding="utf-8").split())
    kills, races = ((tests / "faults" / name).read_text() for name in ("test_kills.py", "test_lock_races.py"))
    for stated, made in (
        (f"more than {STATED:,} generated hostile inputs", True),
        ("a training run at ten random moments each", "KILLS = [counts() or 10," in kills),
        ("`make test-all` kills a hundred times each", "pytest.param(100, marks=pytest.mark.slow)" in kills),
        ("eight processes open run folders together a thousand times", "PROCESSES, ROUNDS = 8, 125" in races),
        ("fuzzing of seven parsers", len(GOOD) == 7),
    ):
        assert stated in said and made, stated
