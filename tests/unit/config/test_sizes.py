import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.config.sizes import (
    DURATION_UNITS,
    MAX_BYTES,
    MAX_SECONDS,
    SIZE_UNITS,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("8GiB", 8 * 2**30),
        ("512MiB", 512 * 2**20),
        ("10MB", 10_000_000),
        ("64 KiB", 65536),
        ("1.5gib", 3 * 2**29),
        ("42", 42),
        (42, 42),
        ("0", 0),
        ("7B", 7),
    ],
)
def test_size_is_read_as_people_write_it(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "value", ["", "GiB", "8 G", "8Gib/s", "-1", -1, True, 1.5, None, [], "1e9", "٣", str(2**63), "8 GiB 1"]
)
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match="size"):
        parse_size(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("2m", 120), ("24h", 86400), ("250ms", 0.25), ("1d", 86400), ("1.5", 1.5), (7, 7), (0.5, 0.5)],
)
def test_duration_is_read_as_people_write_it(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value", ["", "s", "-1s", "1y", "1h30m", True, None, math.nan, math.inf, -0.1, "9999999999d", "30S"]
)
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(ValueError, match=r"duration|time"):
        parse_duration(value)


@given(st.integers(0, MAX_BYTES))
def test_size_survives_being_written_and_read(size_bytes):
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.integers(0, 2**20), st.sampled_from(sorted(SIZE_UNITS)))
def test_unit_of_size_multiplies_exactly(number, unit):
    assert parse_size(f"{number}{unit}") == number * SIZE_UNITS[unit]


@given(st.floats(0, MAX_SECONDS))
def test_duration_survives_being_written_and_read(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 3650), st.sampled_from(sorted(DURATION_UNITS)))
def test_unit_of_time_multiplies(number, unit):
    assert parse_duration(f"{number}{unit}") == float(number * DURATION_UNITS[unit])


@given(st.text() | st.integers() | st.floats() | st.booleans() | st.none())
def test_anything_else_is_refused_as_a_value_error_and_nothing_else(value):
    for parse, most in ((parse_size, MAX_BYTES), (parse_duration, MAX_SECONDS)):
        try:
            assert 0 <= parse(value) <= most
        except ValueError:
            continue
