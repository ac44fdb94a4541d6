"""Bytes on their way are counted as they are in the tensors and buffers given."""

import time
from multiprocessing import Pipe

import pytest
import torch
import torch.distributed as dist

from common.distributed.launch import launch
from common.distributed.throttled import Device
from common.distributed.traffic import Traffic, Wire
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer


def exchange(rank, world):
    with Traffic() as traffic:
        dist.all_reduce(torch.ones(100))
        dist.all_reduce(torch.ones(50, dtype=torch.float64))
        if rank == 0:
            dist.send(torch.ones(7), 1)
        else:
            dist.recv(torch.ones(7), 0)
        torch.ones(1000) + 1
    dist.all_reduce(torch.ones(3))
    return dict(traffic.bytes), dict(traffic.calls)


def train(rank, world, layout, shape):
    trainer = Trainer(shape, form_groups(layout, rank), Recipe())
    batch = torch.arange(4 * (shape.context + 1)).view(4, -1) % shape.vocab
    trainer.step(batch)
    with Traffic() as traffic:
        trainer.step(batch)
    return dict(traffic.bytes), sum(f.weight.nbytes for f in trainer.state().fragments)


def test_every_operation_counts_its_own_bytes_while_entered():
    (sender, calls), (receiver, _) = launch(exchange, 2, seconds=60)
    assert sender == {"allreduce_": 800, "send": 28} and calls == {"allreduce_": 2, "send": 1}
    assert receiver["allreduce_"] == 800 and [b for name, b in receiver.items() if "recv" in name] == [28]


def test_data_parallel_gradients_are_the_weights_bytes_and_pipelines_send_activations():
    shape = Shape(layers=2)
    (counted, weights), _ = launch(train, 2, (Layout(data=2), shape), seconds=60)
    assert counted["allreduce_"] == weights + 8  # and the loss
    (first, _), (last, _) = launch(train, 2, (Layout(pipeline=2), shape), seconds=60)
    activations = 4 * shape.context * shape.hidden * 4
    assert first["send"] == activations and last["send"] == activations


def test_a_wire_counts_and_waits_for_its_device(tmp_path):
    ours, theirs = Pipe()
    device = Device.make(tmp_path / "card", bytes_per_s=1e6)
    sender, receiver = Wire(ours, device), Wire(theirs)
    begun = time.monotonic()
    sender.send_bytes(bytes(50_000))
    assert time.monotonic() - begun >= 0.05
    assert receiver.receive_bytes() == bytes(50_000)
    sender.send({"a": 1})
    assert receiver.receive() == {"a": 1}
    assert sender.sent_bytes == receiver.received_bytes == device.passed_bytes > 50_000
    sender.close()
    with pytest.raises(EOFError):
        receiver.receive()
