"""How far a run is, where it is watched: the runner's terminal, a line in the notebook, a bar on the terminal.

What is shown goes when the work ends, also where a loop breaks off: no bar that stands still is left above a table.
"""

import contextlib
import html
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PROGRESS = "PAPERLAB_PROGRESS"  # environment variable: the file through which a kernel tells the runner
REFRESH = 0.2  # seconds between two reports


def show_progress(items: Iterable[Any], label: str, total: int | None) -> Iterable[Any]:
    """The items, with progress where somebody watches."""
    relay = os.environ.get(PROGRESS)
    if relay is not None:
        return _relayed(items, label, total, Path(relay))
    if in_notebook():
        return _in_a_cell(items, label, total)
    return _on_a_terminal(items, label, total) if sys.stderr.isatty() else items


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel (papermill brings ipykernel into others too)."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "ipykernel" in sys.modules


def _relayed(items: Iterable[Any], label: str, total: int | None, relay: Path) -> Iterator[Any]:
    last = 0.0
    for done, item in enumerate(items):
        if time.monotonic() - last > REFRESH:
            last = time.monotonic()
            _tell(relay, label, done, total)
        yield item
    _tell(relay, label, total, total)


def _tell(relay: Path, label: str, done: int | None, total: int | None) -> None:
    with contextlib.suppress(OSError):  # who watched may be gone
        relay.write_text(json.dumps({"label": label, "done": done, "total": total}))


def _in_a_cell(items: Iterable[Any], label: str, total: int | None) -> Iterator[Any]:
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    last = 0.0
    try:
        for done, item in enumerate(items):
            if time.monotonic() - last > REFRESH:
                last = time.monotonic()
                handle.update(HTML(f"<small>{html.escape(label)}: {done} of {total or '?'}</small>"))
            yield item
    finally:
        handle.update(HTML(""))


def _on_a_terminal(items: Iterable[Any], label: str, total: int | None) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(items, desc=label, total=total, leave=False) as bar:
        yield from bar
