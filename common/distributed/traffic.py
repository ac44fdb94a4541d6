"""Bytes that processes send one another, counted: those of torch.distributed, and those of plain connections."""

import pickle
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from common.distributed.throttled import Device


class Traffic(TorchDispatchMode):
    """Counts what this process hands to torch.distributed while it is entered.

    bytes and calls by operation, as torch names them ("allreduce_", "send", "allgather_"): bytes are those of the
    tensors that a call is given, once, also for a gathering's outputs; what gloo sends over the wire for them depends
    on its algorithm. Calls of the backward pass count too, where it runs on the thread that entered (on a CPU).
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.bytes.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            self.calls[name] += 1
            self.bytes[name] += sum(one.nbytes for one in tree_iter(args) if isinstance(one, torch.Tensor))
        return func(*args, **(kwargs or {}))


class Wire:
    """A connection whose bytes are counted, and wait for their turn on a device (a network card, say) if one is given.

    The sender pays; give each end its own device to have both cards pay.
    """

    def __init__(self, connection: Connection, device: Device | None = None) -> None:
        self.connection, self.device = connection, device
        self.sent_bytes = self.received_bytes = 0

    def send(self, message: Any) -> None:
        """Any picklable value."""
        self.send_bytes(pickle.dumps(message))

    def receive(self) -> Any:
        """What `send` sent at the other end. EOFError when that end is gone. Unpickled: for own processes alone."""
        return pickle.loads(self.receive_bytes())

    def send_bytes(self, data: Any) -> None:
        """A buffer of bytes."""
        nbytes = memoryview(data).nbytes
        if self.device is not None:
            self.device.pass_through(nbytes)
        self.connection.send_bytes(data)
        self.sent_bytes += nbytes

    def receive_bytes(self) -> bytes:
        """What `send_bytes` sent at the other end."""
        data = self.connection.recv_bytes()
        self.received_bytes += len(data)
        return data

    def close(self) -> None:
        self.connection.close()
