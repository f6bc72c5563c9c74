"""E² draws and positions: pure functions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2bench.errors import E2BenchError, UnknownName
from e2bench.train.e2 import Draw, E2Settings, draw, max_offset, positions

windows = st.integers(1, 8192)
settings_ = st.builds(
    E2Settings,
    native_window=windows,
    train_window=windows,
    method=st.sampled_from(["e2", "pi", "pose"]),
    offset=st.booleans(),
    scale=st.integers(1, 64),
    g_max=st.integers(1, 64),
    per_sample=st.booleans(),
    seed=st.integers(0, 2**31),
) | st.builds(E2Settings, native_window=windows, train_window=windows, g_max=st.integers(1, 64), seed=st.integers(0, 9))


@given(settings_, st.integers(0, 2**40), st.integers(0, 2**20))
def test_every_position_stays_inside_the_extended_window(settings, step, sample):
    drawn = draw(settings, step, sample)
    last = settings.train_window - 1 + drawn.offset
    assert 1 <= drawn.scale <= (settings.scale or settings.g_max)
    assert 0 <= drawn.offset <= max_offset(drawn.scale, settings.native_window, settings.train_window)
    assert last < max(drawn.scale * settings.native_window, settings.train_window)


@given(settings_, st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 50))
def test_a_draw_depends_on_nothing_drawn_before(settings, step, sample, before):
    expected = draw(settings, step, sample)
    for earlier in range(before):
        draw(settings, earlier, sample)
    assert draw(settings, step, sample) == expected


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_rows_of_a_step_share_their_draw_unless_drawn_per_sample(step, sample):
    shared = E2Settings(native_window=512, train_window=512)
    assert draw(shared, step, sample) == draw(shared, step, 0)
    own = [draw(E2Settings(native_window=512, train_window=512, per_sample=True), step, i) for i in range(64)]
    assert len(set(own)) > 32
    assert draw(E2Settings(native_window=512, train_window=512, per_sample=True), step) == own[0]


def test_scales_and_offsets_are_uniform():
    settings = E2Settings(native_window=100, train_window=100, g_max=20)
    drawn = [draw(settings, step) for step in range(20_000)]
    counts = np.bincount([d.scale for d in drawn], minlength=21)[1:]
    # 19 degrees of freedom: chi-squared exceeds 43.8 once in a thousand seeds
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8
    relative = [d.offset / max_offset(d.scale, 100, 100) for d in drawn if d.scale > 1]
    assert abs(np.mean(relative) - 0.5) < 0.01
    assert {d.offset for d in drawn if d.scale == 1} == {0}
    assert max(d.offset for d in drawn) > 1890  # t_max = 1,900 at g = 20


def test_a_run_begun_with_an_earlier_version_goes_on_with_its_own_draws():
    # Stored on 2026-11-22 from numpy 2.4's Philox(key=seed, counter=[0, 0, step, row]), called directly.
    shared = {"native_window": 4096, "train_window": 4096}
    drawn = [draw(E2Settings(**shared), step, sample) for step in range(4) for sample in (0, 5)]
    assert [(d.scale, d.offset) for d in drawn[::2]] == [(1, 0), (14, 34273), (19, 71309), (7, 2194)]
    assert drawn[::2] == drawn[1::2]
    own = draw(E2Settings(**shared, per_sample=True, seed=7), 1000, 3)
    assert (own.scale, own.offset) == (16, 18874)


def test_seeds_draw_differently():
    first, second = (
        [draw(E2Settings(native_window=512, train_window=512, seed=seed), step) for step in range(20)]
        for seed in (0, 1)
    )
    assert first != second


@given(windows, st.integers(1, 50), st.integers(0, 10_000), st.integers(0, 8))
def test_positions_follow_the_papers_equations(train_window, scale, offset, sinks):
    got = positions(train_window, scale, offset, sinks)
    expected = [(m + (0 if m < sinks else offset)) / scale for m in range(train_window)]
    assert got.dtype == np.float32 and got.shape == (train_window,)
    np.testing.assert_allclose(got, expected, rtol=2**-23)


def test_a_train_window_beyond_the_extended_one_has_no_offset():
    assert max_offset(1, native_window=4096, train_window=8192) == 0
    assert max_offset(2, native_window=4096, train_window=8192) == 0
    assert max_offset(20, native_window=4096, train_window=4096) == 77_824  # 20 · 4,096 - 4,096


def test_ablations_and_rivals_are_settings():
    shared = {"native_window": 512, "train_window": 512}
    drawn = [draw(E2Settings(**shared, offset=False), step) for step in range(50)]
    assert {d.offset for d in drawn} == {0} and len({d.scale for d in drawn}) > 5
    assert {draw(E2Settings(**shared, scale=8), step).scale for step in range(50)} == {8}
    assert draw(E2Settings(**shared, method="pi", scale=8), 3) == Draw(8, 0, 4)
    assert draw(E2Settings(**shared, method="none"), 3) == Draw(1, 0, 4)
    pose = [draw(E2Settings(**shared, method="pose", scale=8), step) for step in range(50)]
    assert {d.scale for d in pose} == {8} and len({d.start for d in pose}) > 30
    assert all(1 <= d.start < 512 for d in pose)


@pytest.mark.parametrize(("train_window", "starts"), [(1, {1}), (2, {1}), (3, {1, 2})])
def test_poses_skip_begins_anywhere_behind_the_first_token(train_window, starts):
    settings = E2Settings(native_window=512, train_window=train_window, method="pose", scale=8)
    assert {draw(settings, step).start for step in range(30)} == starts


def test_the_first_four_tokens_keep_their_place():
    assert {draw(E2Settings(native_window=512, train_window=512), step).start for step in range(5)} == {4}
    assert positions(7, 1, 100).tolist() == [0, 1, 2, 3, 104, 105, 106]


def test_impossible_settings_are_refused_by_name():
    with pytest.raises(UnknownName, match=r"^unknown training method 'poze'.*did you mean 'pose'"):
        E2Settings(native_window=512, train_window=512, method="poze")
    for method in ("pi", "pose"):
        with pytest.raises(E2BenchError, match=f"'{method}' needs its fixed scale"):
            E2Settings(native_window=512, train_window=512, method=method)
    with pytest.raises(E2BenchError, match="g_max is 0: it must be at least 1"):
        E2Settings(native_window=512, train_window=512, g_max=0)
    with pytest.raises(E2BenchError, match="scale is 0"):
        E2Settings(native_window=512, train_window=512, scale=0)
