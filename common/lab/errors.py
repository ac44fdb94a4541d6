"""The one kind of error that people see as a single line; anything else is a defect and says so."""

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """A mistake of the input or the surroundings; its message is one line that says what to do instead."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """' Did you mean a or b?' for a word that is not among the known ones; empty where nothing is near."""
    close = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""
