"""The runner's side of a kernel's sockets, which looks again each second whether a message lies there.

While nbclient waits for a cell's reply it may send (it plays the front end of a widget). pyzmq wakes a waiting reader
by an edge, and a send on the same socket may swallow that edge: the reply lies there, and nobody comes for it (the
stuck cells with widgets of jupyter/nbclient issue 312). A reader that looks again finds it.
"""

import time
from queue import Empty
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from traitlets import Type

LOOK = 1.0  # seconds between two looks


class Channel(AsyncZMQSocketChannel):
    """A channel whose reader does not rely on being woken."""

    async def get_msg(self, timeout: float | None = None) -> dict[str, Any]:  # type: ignore[override]
        """The next message. queue.Empty after `timeout` seconds, never without one."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK if end is None else min(LOOK, max(0.0, end - time.monotonic()))
            try:
                return await super().get_msg(left)
            except Empty:
                if end is not None and time.monotonic() >= end:
                    raise


class Client(AsyncKernelClient):
    """jupyter_client's client with these channels."""

    shell_channel_class = Type(Channel)  # type: ignore[assignment]
    iopub_channel_class = Type(Channel)  # type: ignore[assignment]
    stdin_channel_class = Type(Channel)  # type: ignore[assignment]
    control_channel_class = Type(Channel)  # type: ignore[assignment]
