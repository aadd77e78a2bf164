"""A table on standard output: rich on a terminal, plain columns everywhere else."""

import sys
from collections.abc import Sequence

import click


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print *rows*. A pipe gets whole values, two blanks between columns, so that awk and cut can read it."""
    if sys.stdout.isatty():
        _show_on_terminal(columns, rows)
        return
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]
    for row in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show_on_terminal(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Imported here because rich takes as long to import as the rest of the command takes to run.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        last = column == columns[-1]
        table.add_column(column, overflow="fold" if last else "ellipsis", no_wrap=not last)
    for row in rows:
        # Text, not markup: a model's name may hold brackets.
        table.add_row(*[Text(cell) for cell in row])
    Console().print(table)
