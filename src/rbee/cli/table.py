"""A table on standard output or error: fitted to the width of a terminal, whole and plain everywhere else."""

import shutil
import sys
from collections.abc import Sequence

import click


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], err: bool = False) -> None:
    """Print *rows*, on standard error for *err*.

    A pipe gets whole values, two blanks between columns, so that awk and cut can read it.
    """
    if not (sys.stderr if err else sys.stdout).isatty():
        for line in lines(columns, rows):
            click.echo(line, err=err)
        return
    header, *body = lines(columns, rows, shutil.get_terminal_size().columns)
    click.secho(header, bold=True, err=err)
    for line in body:
        click.echo(line, err=err)


def lines(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The header and a line a row, cut at *width* characters, which only the last column should reach."""
    # What a worker says of itself may hold anything, line ends and control characters too.
    table = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    text = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in table]
    return text if width is None else [line if len(line) <= width else line[: width - 1] + "…" for line in text]
