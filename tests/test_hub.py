"""Without a network nothing waits for the hub: one line, before torch is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2bench import hub
from e2bench.errors import ModelError
from e2bench.models.loading import check_hub_id


@pytest.fixture
def asked_anew() -> Iterator[None]:
    hub.is_online.cache_clear()
    yield
    hub.is_online.cache_clear()


def test_an_endpoint_that_takes_no_connection_puts_the_clients_into_offline_mode(
    asked_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens on the discard port
    assert not hub.is_online()
    assert constants.HF_HUB_OFFLINE


def test_a_hub_id_that_is_not_cached_is_refused(asked_anew: None) -> None:
    with pytest.raises(ModelError, match=r"not in the hub's cache.*give a folder or a \.gguf file"):
        check_hub_id("nobody/nothing")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("longbench", "--scale", "8"), "e2bench data longbench.*--data demo"),
        (("longbench", "--model", "nobody/nothing", "--data", "demo"), "nobody/nothing is not in the hub's cache"),
        (("ppl", "--model", "nobody/nothing", "--lengths", "4k"), "nobody/nothing is not in the hub's cache"),
        (("passkey", "--model", "/nowhere"), "no folder or file /nowhere"),
        (("attention", "--attn", "flash_attention_3"), r"pip install 'e2bench\[flash\]'"),
    ],
)
def test_what_cannot_be_had_is_said_before_torch_is_imported(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    ended = subprocess.run([sys.executable, "-m", "e2bench", *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("e2bench: ") and re.search(said, last)
