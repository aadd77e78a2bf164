from hypothesis import given
from hypothesis import strategies as st

from rbee.cli.table import lines

CELLS = st.tuples(st.text(max_size=20), st.text(max_size=40))


def test_columns_stand_under_each_other():
    assert lines(("A", "LONG"), [("xyz", "1"), ("x", "2")]) == ["A    LONG", "xyz  1", "x    2"]


def test_line_end_in_a_cell_does_not_break_the_line():
    assert lines(("A",), [("x\n\x1b[31my",)]) == ["A", "x  [31my"]


@given(st.lists(CELLS, max_size=5), st.integers(10, 60))
def test_no_line_is_wider_than_the_terminal(rows, width):
    shown = lines(("A", "B"), rows, width)
    assert len(shown) == len(rows) + 1
    assert all(len(line) <= width for line in shown)
