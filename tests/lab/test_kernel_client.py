"""A reply that lies in the socket is found, also where the edge that would have woken its reader is gone."""

import asyncio
import time
from queue import Empty

import pytest
import zmq
import zmq.asyncio
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session

from common.lab.kernel_client import Channel


async def received(kind: type[AsyncZMQSocketChannel], seconds: float) -> str:
    """What a reader of this kind gets of a message whose edge something else on its socket has swallowed."""
    context, session = zmq.asyncio.Context(), Session(key=b"")
    mine, theirs = context.socket(zmq.DEALER), zmq.Context.shadow(context.underlying).socket(zmq.DEALER)
    mine.bind("inproc://kernel")
    theirs.connect("inproc://kernel")
    reader = asyncio.create_task(kind(mine, session).get_msg())
    await asyncio.sleep(0.2)  # it waits
    session.send(theirs, "execute_reply")
    zmq.Socket.shadow(mine.underlying).getsockopt(zmq.EVENTS)  # as a send does
    try:
        message = await asyncio.wait_for(reader, seconds)
        return str(message["header"]["msg_type"])
    except TimeoutError:
        return "nothing"
    finally:
        mine.close(0)
        theirs.close(0)


def test_a_reply_without_its_edge_is_found() -> None:
    assert asyncio.run(received(AsyncZMQSocketChannel, 2.5)) == "nothing", "the library mends it itself now"
    assert asyncio.run(received(Channel, 2.5)) == "execute_reply"


def test_a_limit_is_kept() -> None:
    async def nothing() -> float:
        socket = zmq.asyncio.Context().socket(zmq.DEALER)
        socket.bind("inproc://silent")
        began = time.monotonic()
        with pytest.raises(Empty):
            await Channel(socket, Session(key=b"")).get_msg(1.3)
        socket.close(0)
        return time.monotonic() - began

    assert 1.2 < asyncio.run(nothing()) < 10
