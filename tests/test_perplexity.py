"""Each protocol against a slow, obvious reference: one plain forward pass a window, a Python loop over tokens."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2bench.data.corpus import Chosen, Document, choose_documents, read_documents
from e2bench.errors import DataError, E2BenchError, RunFailed
from e2bench.experiments.perplexity import Perplexity
from e2bench.experiments.windows import Protocol, cells_of, items_of, measuring, together
from e2bench.files import read_rows
from e2bench.models.local import Model
from e2bench.rope.methods import RopeScaling
from e2bench.runs.folder import RunFolder
from e2bench.runs.manifest import manifest
from e2bench.runs.processes import Processes
from e2bench.runs.runner import run

BOS = 1


@pytest.fixture
def model64(tiny_model: Model) -> Model:
    """The tiny model in float64, so that references agree to rounding."""
    tiny_model.hf.double()
    yield tiny_model
    tiny_model.hf.float()


def nll_of(model: Model, ids: list[int], first: int) -> list[float]:
    """Reference: -log p of ids[first:] in one plain forward pass, no cache, full logits."""
    logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0].double()
    return [-logits[at - 1].log_softmax(-1)[ids[at]].item() for at in range(first, len(ids))]


def reference(model: Model, ids: list[int], protocol: str, window: int, stride: int, bos: int | None) -> float:
    """Natural log of the perplexity of one document, written out as the protocol's source does it."""
    if protocol == "truncate":
        losses = nll_of(model, ids[:window], 1)
        return sum(losses) / len(losses)
    if protocol == "window-mean":  # LongLoRA eval.py: all targets of every full window, mean of the windows' means
        starts = [s for s in range(0, len(ids), stride) if s + window <= len(ids)] or [0]
        means = [sum(n := nll_of(model, ids[s : s + window], 1)) / len(n) for s in starts]
        return sum(means) / len(means)
    if protocol == "yarn":  # yarn eval/perplexity.py, no flag: unweighted mean of window means, BOS before each
        length, previous, means = window - (bos is not None), 0, []
        for begin in range(0, len(ids), stride):
            end = min(begin + length, len(ids))
            fed = ([] if bos is None else [bos]) + ids[begin:end]
            new = min(end - previous, len(fed) - 1)
            losses = nll_of(model, fed, len(fed) - new)
            means.append(sum(losses) / len(losses))
            previous = end
            if end == len(ids):
                break
        return sum(means) / len(means)
    losses, done, start = [], 1, 0  # press: each token but the first scored once
    while done < len(ids):
        end = min(start + window, len(ids))
        losses += nll_of(model, ids[start:end], done - start)
        done, start = end, start + stride
    return sum(losses) / len(losses)


def run_cells(model: Model, out: Path, cells: list, protocol: Protocol, batch_size: int | None = None) -> list[dict]:
    contents = manifest("ppl", settings={}, resolved={"case": out.name})
    with RunFolder(out, contents) as folder, torch.no_grad():
        run(
            items_of(cells),
            measuring(model, protocol, batch_size),
            folder,
            batch_size=together(cells),
            processes=Processes(),
            title="ppl",
        )
    return read_rows(out / "ppl.jsonl")


def document(ids: list[int]) -> Chosen:
    return Chosen(Document(" ".join(map(str, ids)), "test"), ids)


CASES = [(61, 16, 5), (61, 17, 16), (40, 64, 7), (64, 16, 15), (33, 32, 1), (50, 16, 4)]


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("name", ["press", "truncate", "window-mean", "yarn"])
@pytest.mark.parametrize(("tokens", "window", "stride"), CASES)
def test_every_protocol_equals_its_reference_in_float64(
    model64: Model, tmp_path: Path, name: str, tokens: int, window: int, stride: int, bos: int | None
) -> None:
    ids = torch.randint(3, model64.vocab_size, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()
    if bos is not None and name != "yarn":
        ids = [bos, *ids]  # what a tokenizer adds, once
    protocol = Protocol(name, stride, bos if name == "yarn" else None)
    cells = cells_of([document(ids)], [(window, RopeScaling("linear", 2))], protocol, None)
    run_cells(model64, tmp_path / "run", cells, protocol)
    measured = Perplexity.summarise(tmp_path / "run")["cells"][0]["perplexity"]
    with model64.under(RopeScaling("linear", 2), window), torch.no_grad():
        expected = reference(model64, ids, name, window, stride, protocol.bos)
    assert math.log(measured) == pytest.approx(expected, abs=1e-5)


@given(tokens=st.integers(2, 300), window=st.integers(2, 80), stride=st.integers(1, 79), bos=st.booleans())
@settings(max_examples=300)
def test_press_and_yarn_score_every_token_exactly_once(tokens: int, window: int, stride: int, bos: bool) -> None:
    if stride >= window or (bos and window < 3):
        return
    for name, first in (("press", 1), ("yarn", 0 if bos else 1)):
        protocol = Protocol(name, stride, BOS if bos and name == "yarn" else None)
        if name == "yarn" and bos and stride >= window - 1:
            continue  # the BOS takes one place: windows of window - 1 tokens must still overlap or touch
        made = protocol.windows(tokens, window)
        scored = list(itertools.chain.from_iterable(range(w.first, w.end) for w in made))
        assert scored == list(range(first, tokens))
        assert all(w.end - w.start <= window for w in made)
        assert all(w.first > w.start or (w.first == w.start == 0) or protocol.bos is not None for w in made)


@given(last=st.integers(1, 5), window=st.sampled_from([16, 32, 64]))
def test_max_windows_scores_the_same_last_tokens_at_every_length(last: int, window: int) -> None:
    made = Protocol("press", 8, max_windows=last).windows(160, window)
    scored = list(itertools.chain.from_iterable(range(w.first, w.end) for w in made))
    assert scored == list(range(160 - 8 * last, 160))
    assert len(made) <= last


def test_batched_windows_give_the_sums_of_single_ones(model64: Model, tmp_path: Path) -> None:
    ids = torch.randint(3, model64.vocab_size, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    protocol = Protocol("press", 8)
    cells = cells_of([document(ids)], [(32, RopeScaling("linear", 4))], protocol, None)
    one, many = (run_cells(model64, tmp_path / str(n), cells, protocol, n)[0] for n in (1, 7))
    assert one["nll_sum"] == pytest.approx(many["nll_sum"], rel=1e-12)
    assert (one["scored_tokens"], one["windows"]) == (149, 16)  # 1 + ceil((150 - 32) / 8)


def test_one_pass_for_all_truncated_lengths_equals_separate_passes(model64: Model, tmp_path: Path) -> None:
    ids = torch.randint(3, model64.vocab_size, (120,), generator=torch.Generator().manual_seed(1)).tolist()
    protocol, grid = Protocol("truncate", 8), [(w, RopeScaling("linear", 2)) for w in (16, 33, 120)]
    together = run_cells(model64, tmp_path / "all", cells_of([document(ids)], grid, protocol, None), protocol)
    for line, cell in zip(together, grid, strict=True):
        alone = cells_of([document(ids)], [cell], protocol, None)
        (single,) = run_cells(model64, tmp_path / str(cell[0]), alone, protocol)
        assert line["nll_sum"] == pytest.approx(single["nll_sum"], abs=1e-5)
        assert line["scored_tokens"] == cell[0] - 1


def test_chunked_windows_equal_one_forward_pass(model64: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(3, model64.vocab_size, (2, 100), generator=torch.Generator().manual_seed(2))
    whole = model64.token_nll(ids)
    monkeypatch.setattr("e2bench.models.body.CHUNK_TOKENS", 13)
    monkeypatch.setattr("e2bench.models.body.SCORED_ROWS", 5)
    assert torch.allclose(model64.token_nll(ids), whole, atol=1e-9)
    assert torch.allclose(model64.token_nll(ids, first=90), whole[:, 89:], atol=1e-9)


def test_a_zeroed_head_gives_the_vocabulary_size(tiny_model: Model, tmp_path: Path) -> None:
    head = tiny_model.hf.get_output_embeddings()
    kept = head.weight.detach().clone()
    try:
        torch.nn.init.zeros_(head.weight)
        protocol = Protocol("press", 16)
        cells = cells_of([document(list(range(3, 90)))], [(32, RopeScaling("none"))], protocol, None)
        run_cells(tiny_model, tmp_path / "run", cells, protocol)
    finally:
        head.weight.data.copy_(kept)
    assert Perplexity.summarise(tmp_path / "run")["cells"][0]["perplexity"] == pytest.approx(
        tiny_model.vocab_size, rel=1e-5
    )


def test_an_infinite_loss_stops_with_the_documents_id(tiny_model: Model, tmp_path: Path) -> None:
    head = tiny_model.hf.get_output_embeddings()
    kept = head.weight.detach().clone()
    chosen = document(list(range(3, 60)))
    try:
        head.weight.data.fill_(float("nan"))
        cells = cells_of([chosen], [(32, RopeScaling("none"))], Protocol("press", 16), None)
        with pytest.raises(RunFailed, match=chosen.document.id):
            run_cells(tiny_model, tmp_path / "run", cells, Protocol("press", 16))
    finally:
        head.weight.data.copy_(kept)


@pytest.mark.parametrize("stride", [32, 40, 0])
def test_a_stride_that_does_not_fit_the_window_is_refused(stride: int) -> None:
    with pytest.raises(E2BenchError, match="stride"):
        Protocol("press", stride).windows(100, 32)


def test_documents_are_sampled_by_seed_and_too_few_are_counted() -> None:
    documents = [Document("word " * n, f"d{n}") for n in (5, 50, 60, 70, 80)]
    encode = lambda text: list(range(len(text.split())))  # noqa: E731
    first = choose_documents(iter(documents), encode, min_tokens=50, docs=2, seed=1)
    again = choose_documents(iter(documents), encode, min_tokens=50, docs=2, seed=1)
    assert [c.document.id for c in first] == [c.document.id for c in again]
    assert len(choose_documents(iter(documents), encode, min_tokens=50, docs=None, seed=1)) == 4
    with pytest.raises(DataError, match=r"4 of 5 documents have at least 50 tokens \(the longest has 80\), 9 needed"):
        choose_documents(iter(documents), encode, min_tokens=50, docs=9, seed=1)
    with pytest.raises(DataError, match=r"0 of 5 documents have at least 9,999 tokens \(the longest has 80\)"):
        choose_documents(iter(documents), encode, min_tokens=9999, docs=1, seed=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "good"}\n{"text": ""}\n', "a.jsonl:2: no text"),
        ("a.jsonl", b'{"text": "good"}\n{"text": \n', "a.jsonl:2: not a JSON object"),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n', "a.jsonl:1: not UTF-8"),
        ("a.jsonl.gz", b"no gzip at all", "a.jsonl.gz breaks off"),
        ("a.txt", b"\xff", "a.txt: not UTF-8"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read"),
    ],
)
def test_a_broken_document_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        list(read_documents(tmp_path / name))


def test_summary_weights_tokens_over_documents(tmp_path: Path) -> None:
    base = {
        "window": 8,
        "scale": 1,
        "method": "linear",
        "stride": 4,
        "protocol": "press",
        "windows": 2,
        "mean_sum": 0.0,
    }
    lines = [
        {"document": "a", **base, "nll_sum": 10.0, "scored_tokens": 10},
        {"document": "b", **base, "nll_sum": 60.0, "scored_tokens": 30},
    ]
    (tmp_path / "ppl.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (cell,) = Perplexity.summarise(tmp_path)["cells"]
    assert cell["perplexity"] == pytest.approx(math.exp(70 / 40))  # not the mean of e^1 and e^2
    assert math.exp(1) == pytest.approx(cell["interval"][0])
    assert math.exp(2) == pytest.approx(cell["interval"][1])
