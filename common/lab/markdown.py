"""Text as Markdown: what a card says stays as it was written, in a cell or a paragraph."""

import re
from collections.abc import Sequence

SIGNS = re.compile(r"([|*<$~`\\])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])")


def plain(text: str) -> str:
    """A text on one line, no sign of which is taken for markup."""
    return SIGNS.sub(lambda found: "\\" + found.group(), " ".join(text.split()))


def lines(text: str) -> str:
    """The same of a text of several lines, kept apart by breaks, as a table's cell needs them."""
    return "<br>".join(plain(line) for line in text.split("\n") if line.strip())


def row(*cells: str) -> str:
    """A row of a table, of cells that are Markdown on one line."""
    return f"| {' | '.join(cells)} |"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [row(*headings), row(*["---"] * len(headings)), *[row(*cells) for cells in rows]]
