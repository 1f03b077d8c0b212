"""Tables as text, for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

from softlabels.core.printable import printable


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1
) -> str:
    """A table in which nothing of others does anything; its first columns are of `words`, the others of numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), box=None)
    for i, column in enumerate(columns):
        made.add_column(Text(column), justify="left" if i < words else "right")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))  # not its markup
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(made)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def in_columns(lines: Mapping[str, str]) -> str:
    """Names to the right, what they name beside them, each on one line."""
    width = max(map(len, lines)) + 1
    return "\n".join(f"{name:>{width}}  {printable(value)}" for name, value in lines.items())
