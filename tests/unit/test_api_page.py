"""docs/api.md names every error, with its status."""

import re
from pathlib import Path

from rbee.core.errors import STATUS

PAGE = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text()


def test_every_error_stands_in_a_row_of_its_status():
    told = {}
    for row in re.findall(r"^\| ([0-9, ]+) \| (.*?) \|", PAGE, re.MULTILINE):
        for code in re.findall(r"`(\w+)`", row[1]):
            told[code] = {int(status) for status in row[0].split(",")}
    for error, status in STATUS.items():
        assert status in told[error.code], error.code
    assert told.keys() == {error.code for error in STATUS}
