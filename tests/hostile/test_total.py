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
