"""What --scale, --method, --window and --lengths mean."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2bench.errors import E2BenchError
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import parse_length, parse_lengths, parse_scale, scale_rule, short_length, short_number

L = 4096
YARN = RopeScaling("checkpoint", 16)
LINEAR = RopeScaling("linear", 8)


@pytest.mark.parametrize(
    ("text", "tokens"), [("4096", 4096), ("4k", 4096), ("200k", 204_800), ("0.5k", 512), ("64K", 65_536), ("1", 1)]
)
def test_a_length_is_read(text: str, tokens: int) -> None:
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "0", "-4k", "4.0001", "nan", "inf", "1e400", "4kk", "four", "4 k.", "infk"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(E2BenchError, match="not a number of tokens"):
        parse_length(text)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("4k..64k", [4096, 8192, 16384, 32768, 65536]),
        ("4k..50k", [4096, 8192, 16384, 32768, 51200]),  # always ends with the end point
        ("4k..4k", [4096]),
        ("512, 1k,2k..8k", [512, 1024, 2048, 4096, 8192]),
        ("100", [100]),
    ],
)
def test_lengths_double_and_end_with_the_end_point(text: str, lengths: list[int]) -> None:
    assert list(parse_lengths(text)) == lengths


@pytest.mark.parametrize("text", ["", ",", "8k..4k", "4k,4k", "8k,4k", "4k..8k,8k", "4k..", "..", "4k..8k..16k"])
def test_lengths_that_are_not_in_order_are_refused(text: str) -> None:
    with pytest.raises(E2BenchError):
        parse_lengths(text)


@given(first=st.integers(1, 10**5), factor=st.integers(1, 100))
def test_a_range_is_in_order_and_within_a_factor_of_two(first: int, factor: int) -> None:
    lengths = parse_lengths(f"{first}..{first * factor}")
    assert lengths[0] == first and lengths[-1] == first * factor
    assert all(a < b <= 2 * a for a, b in itertools.pairwise(lengths))


@given(st.integers(1, 10**7))
def test_a_short_length_reads_back(tokens: int) -> None:
    assert parse_length(short_length(tokens)) == tokens


def test_numbers_are_shown_as_people_write_them() -> None:
    assert [short_number(v) for v in (8.0, 2.5)] == [8, 2.5] and isinstance(short_number(8.0), int)


# ---- the rule


def test_auto_covers_each_window_with_the_smallest_integer() -> None:
    rule = scale_rule(parse_scale("auto"), None, L, None)
    windows = {4096: 1, 4097: 2, 65536: 16, 204_800: 50, 200_000: 49, 100: 1}
    assert {w: rule.scaling(w).factor for w in windows} == windows
    assert rule.window(None) == L and rule.window(9000) == 9000


def test_nothing_given_is_auto_without_scaling_in_the_checkpoint() -> None:
    assert scale_rule(None, None, L, None) == scale_rule(parse_scale("auto"), "linear", L, None)


def test_a_number_without_a_window_means_g_times_l() -> None:
    rule = scale_rule(parse_scale("8"), None, L, None)
    assert rule.window(None) == 32768 and rule.scaling(100) == RopeScaling("linear", 8)
    assert scale_rule(parse_scale("2.5"), None, L, None).window(None) == 10240


def test_a_list_gives_each_of_its_numbers_and_the_largest_window() -> None:
    rule = scale_rule(parse_scale("4,16,8"), None, L, None)
    assert rule.values == (4, 16, 8) and rule.window(None) == 16 * L
    assert [rule.scaling(100, v).factor for v in rule.values] == [4, 16, 8]


@pytest.mark.parametrize("own", [LINEAR, YARN])
def test_nothing_given_keeps_what_the_checkpoint_carries(own: RopeScaling) -> None:
    rule = scale_rule(None, None, L, own)
    assert rule.scaling(100) == own and rule.scaling(10**6) == own
    assert rule.window(None) == own.factor * L


def test_a_given_scale_replaces_a_linear_one() -> None:
    assert scale_rule(parse_scale("2"), None, L, LINEAR).scaling(100) == RopeScaling("linear", 2)


def test_another_scaling_is_replaced_only_when_the_method_says_so() -> None:
    with pytest.raises(E2BenchError, match="say what is meant with --method"):
        scale_rule(parse_scale("2"), None, L, YARN)
    assert scale_rule(parse_scale("2"), "yarn", L, YARN).scaling(1) == RopeScaling("yarn", 2)


def test_the_method_none_is_the_pretrained_model_at_every_window() -> None:
    assert scale_rule(parse_scale("8"), "none", L, None).scaling(10**6) == RopeScaling("none", 1)


def test_the_method_none_leaves_the_native_window() -> None:
    assert scale_rule(None, "none", L, None).window(None) == L


@pytest.mark.parametrize("text", ["0.5", "0", "-1", "nan", "inf", "eight", "", "4,,8", "4,0.5", "1e999", "automatic"])
def test_a_scale_that_is_not_possible_is_refused(text: str) -> None:
    with pytest.raises(E2BenchError):
        scale_rule(parse_scale(text), None, L, None)
