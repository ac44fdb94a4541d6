"""Questions over wires: a process answers the methods of an object by name, to whoever knows its address and key.

    listen(address, key, serve)                      # in the process that answers; serve(wire) on a thread each
    wire = connect(address, key); call(wire, "inventory")

Addresses are Linux's abstract names, without a file: gone with the process.
"""

import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from typing import Any

from common.distributed.throttled import Device
from common.distributed.traffic import Wire


def call(wire: Wire, question: str, *arguments: Any) -> Any:
    """Ask over a connection; the answer, or the error that the other side raised, under its own name."""
    wire.send((question, arguments))
    good, answer = wire.receive()
    if not good:
        raise answer
    return answer


def answer(wire: Wire, target: object, question: str, arguments: tuple[Any, ...]) -> None:
    """Answer one question with a method of `target`, or with the error that it raises. OSError: nobody listens."""
    try:
        found = (True, getattr(target, question)(*arguments))
    except Exception as error:
        error.add_note(traceback.format_exc())
        found = (False, error)
    wire.send(found)


def connect(address: str, key: bytes, device: Device | None = None) -> Wire:
    """A connection to a process that listens."""
    return Wire(Client(address, family="AF_UNIX", authkey=key), device)


def listen(address: str, key: bytes, serve: Callable[[Wire], None], device: Device | None = None) -> None:
    """Serve whoever connects, each on a thread, until the process ends."""
    listener = Listener(address, family="AF_UNIX", backlog=16, authkey=key)

    def accept() -> None:
        while True:
            try:
                wire = Wire(listener.accept(), device)
            except (OSError, EOFError):  # one that broke off while it was still introducing itself
                continue
            threading.Thread(target=serve, args=(wire,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
