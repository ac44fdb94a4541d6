"""The server on a real model: iterations are computed and blocks copied on this machine, nothing is predicted.

Policy, tables, host copies and rules are the simulator's own objects (server.py, priority_switching.py). A decoder runs
the batches, keys and values lie in the blocks of a tensor that stands for the GPU's memory, and copies go to and from
a second one, by a worker thread, or by the loop itself, which waits (the control). A block is filled with NaN when it
changes hands, so that whatever is read before its copy has ended shows in the answers.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.hardware.copies import CopyCost
from common.models.decoder import Cache, Decoder, DecoderConfig, KVCache
from common.serving.batch import Plan, Slot
from common.serving.engine import Instance, simulate
from common.serving.latency import Line
from common.serving.live import Iteration, LiveBatches
from common.serving.sequence import DecodeGroup, Sequence
from common.serving.trace import Trace
from common.serving.wall_clock import WallClock
from papers.fastswitch.async_swaps import KVLayout, Transfer
from papers.fastswitch.block_groups import BLOCK_TOKENS, Piece, Run
from papers.fastswitch.conversations import Conversations
from papers.fastswitch.deployments import Setup
from papers.fastswitch.ledger import Swap
from papers.fastswitch.priorities import Update
from papers.fastswitch.priority_switching import PrioritySwitching
from papers.fastswitch.server import SwitchingInstance

FREQUENCY = 0.2  # priority updates an iteration: far more than a real server's, so that much is swapped in little time


def live_setup(config: DecoderConfig, gpu_blocks: int, host_blocks: int, trusts: bool) -> Setup:
    """FastSwitch's setup on this machine. Costs of copies are never asked for."""
    unknown = CopyCost(1.0, 0.0, 1.0)
    layout = KVLayout(config.layers, BLOCK_TOKENS * config.groups * config.head_dim * 4)
    return Setup(gpu_blocks, host_blocks, layout, unknown, unknown, 1.0, target=4, trusts_copies=trusts)


class Unpredicted:
    """The latency model of a server that runs its iterations and is never asked."""

    stages = 1

    def iteration(self, chunks: object, decodes: int, context: int) -> tuple[float, float]:
        raise NotImplementedError("a live iteration is run, not predicted")

    def decode_line(self, decodes: int, context: int) -> Line:
        raise NotImplementedError("a live iteration is run, not predicted")


class TabledCache:
    """A conversation's share of the GPU's blocks; see decoder.Cache. runs: where its blocks are."""

    def __init__(self, pool: Tensor, runs: list[Run], length: int) -> None:
        self.pool = pool  # (blocks, layers, 2, kv_heads, BLOCK_TOKENS, head_dim)
        self.blocks = torch.tensor(blocks_in(runs))
        self.length = length

    @property
    def capacity(self) -> int:
        return len(self.blocks) * BLOCK_TOKENS

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache; the result is a gathered copy."""
        end = self.length + keys.shape[1]
        new = torch.arange(self.length, end)
        place, offset = self.blocks[new // BLOCK_TOKENS], new % BLOCK_TOKENS
        for kind, added in enumerate((keys, values)):
            self.pool[place, layer, kind, :, offset] = added.transpose(0, 1)
        used = self.blocks[: -(-end // BLOCK_TOKENS)]
        held = self.pool[used, layer]  # (blocks, 2, kv_heads, tokens, head_dim)
        stored = held.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :end]
        return stored[0], stored[1]

    def advance(self, new: int) -> None:
        """See Cache."""
        self.length += new

    def release(self) -> None:
        """See Cache; the tables free the blocks."""


class RealTransfer(Transfer):
    """A copy under way. over: set by whoever copies; began, ended: when the copying itself did, s."""

    def __init__(self) -> None:
        super().__init__()
        self.began = self.ended = 0.0
        self.over = threading.Event()


class LiveServer(SwitchingInstance, LiveBatches):
    """A server of conversations on this machine. prompts: tokens that each turn adds, by its index."""

    def __init__(
        self,
        loop: WallClock,
        model: Decoder,
        setup: Setup,
        conversations: Conversations,
        prompts: list[list[int]],
        policy: PrioritySwitching,
        worker: bool = True,
        instant: bool = False,
    ) -> None:
        super().__init__(loop, Unpredicted(), setup, conversations, policy)
        self.wall, self.model, self.prompts = loop, model, prompts
        self.instant = instant  # copies move nothing, which ruins the answers
        self.log: list[Iteration] = []
        self.texts: dict[int, list[int]] = {}  # of each conversation, answers included
        config = model.config
        shape = (config.layers, 2, config.groups, BLOCK_TOKENS, config.head_dim)
        self.gpu = torch.full((setup.kv_blocks, *shape), torch.nan)
        self.cpu = torch.full((setup.host_blocks, *shape), torch.nan)
        self.transfers: list[RealTransfer] = []
        self.computed: list[tuple[float, float]] = []  # when each batch was computed, s
        self.worker = ThreadPoolExecutor(1) if worker else None

    # What the engine asks for

    def new_group(self) -> DecodeGroup:
        """Blocks are taken before an iteration stores into them: see _compute."""
        return Instance.new_group(self)

    def submit(self, sequence: Sequence) -> None:
        """See SwitchingInstance; the turn's tokens join its conversation."""
        self.texts.setdefault(self.key(sequence), []).extend(self.prompts[sequence.index])
        super().submit(sequence)

    def text(self, sequence: Sequence) -> list[int]:
        """See LiveBatches."""
        return self.texts[self.key(sequence)]

    def cache(self, sequence: Sequence) -> Cache:
        """See LiveBatches."""
        group = self.slots[0].group
        stored = sequence.base + group.step if sequence in group.members else sequence.context
        return TabledCache(self.gpu, self.tables.runs(self.key(sequence)), stored)

    def _compute(self, plan: Plan, decoding: list[Sequence]) -> None:
        step = self.slots[0].group.step
        for sequence in decoding:
            if (sequence.base + step) % BLOCK_TOKENS == 0:
                self.grow(sequence)
        begun = self.wall.clock()
        super()._compute(plan, decoding)
        self.computed.append((begun, self.wall.clock()))

    # What the mechanism asks for

    def copied(self, key: int, moved: list[Piece], out: bool) -> None:
        """See SwitchingInstance; blocks that are to be read into are worth nothing before that."""
        if not out:
            self.gpu[blocks_in(self.tables.runs(key))] = torch.nan

    def order(self, out: bool, start: float, batches: list[list[Piece]]) -> list[Transfer]:
        """See SwitchingInstance; without a worker the copies have ended on return."""
        ordered: list[Transfer] = []
        for batch in batches:
            copy = RealTransfer()
            self.transfers.append(copy)
            ordered.append(copy)
            if self.worker is None:
                self._copy(out, batch, copy)
                self._end(copy)
            else:
                self.wall.outside += 1
                self.worker.submit(self._copy_beside, out, batch, copy)
        return ordered

    def runs_beside(self, slot: Slot, moved: list[Piece]) -> bool:
        """Whenever somebody runs: the adaptive choice needs times that nobody has predicted here."""
        return bool(slot.group.members)

    def _copy(self, out: bool, batch: list[Piece], copy: RealTransfer) -> None:
        copy.began = self.wall.clock()
        source, target = (self.gpu, self.cpu) if out else (self.cpu, self.gpu)
        for start, to, length in batch if not self.instant else ():
            target[to : to + length] = source[start : start + length]
        copy.ended = self.wall.clock()

    def _copy_beside(self, out: bool, batch: list[Piece], copy: RealTransfer) -> None:
        """On the worker's thread."""
        try:
            self._copy(out, batch, copy)
        finally:
            copy.over.set()
            self.wall.post(self._ended, copy)

    def _ended(self, copy: RealTransfer) -> None:
        self.wall.outside -= 1
        self._end(copy)
        self.at_boundary(lambda: None)

    def _end(self, copy: RealTransfer) -> None:
        if copy.end == float("inf"):
            copy.end = self.loop.now  # as of the event under way, in which it is noticed

    def _stall(self, slot: Slot, copy: Transfer) -> None:
        """Wait, now; the worker has then ended all that was ordered before, too."""
        assert isinstance(copy, RealTransfer)
        if self.worker is not None:
            copy.over.wait()
        for one in (copy, *self.leaving.transfers):
            if isinstance(one, RealTransfer) and one.over.is_set():
                self._end(one)

    def _share_memory(self, slot: Slot, moved: list[Piece]) -> None:
        """It does, on its own."""

    def _poll_at(self, copy: Transfer) -> None:
        """The worker calls."""


def blocks_in(runs: list[Run]) -> list[int]:
    """The blocks of runs, in order."""
    return [block for start, length in runs for block in range(start, start + length)]


@dataclass(frozen=True)
class LiveRun:
    """What a run leaves behind. texts: all tokens of each conversation. computed: when each batch was computed, s."""

    trace: Trace
    texts: dict[int, list[int]]
    transfers: list[RealTransfer]
    computed: list[tuple[float, float]]
    swaps: list[Swap]

    @property
    def copied_beside(self) -> float:
        """Share of the seconds of computing in which a copy was under way; 0 where copies take no time."""
        begun, ended = np.array(self.computed).reshape(-1, 2).T
        overlaps = [
            np.maximum(np.minimum(ended, copy.ended) - np.maximum(begun, copy.began), 0).sum()
            for copy in self.transfers
        ]
        return float(sum(overlaps) / (ended - begun).sum()) if len(begun) else 0.0


def serve_live(
    model: Decoder,
    conversations: Conversations,
    prompts: list[list[int]],
    update: Update,
    gpu_blocks: int,
    host_blocks: int,
    *,
    trusts_copies: bool = False,
    worker: bool = True,
    instant: bool = False,
    max_sequences: int = 256,
) -> LiveRun:
    """Let conversations talk to a real model under changing priorities, in real time, until the last has ended."""
    loop = WallClock()
    setup = live_setup(model.config, gpu_blocks, host_blocks, trusts_copies)
    policy = PrioritySwitching(update, FREQUENCY, max_sequences)
    server = LiveServer(loop, model, setup, conversations, prompts, policy, worker, instant)
    model(
        [torch.zeros(2, dtype=torch.int64)], [KVCache(model.config, 2)]
    )  # else the first batch pays for set-up
    try:
        trace = simulate(conversations.workload, lambda _: server, conversations.clients(), loop)
    finally:
        if server.worker is not None:
            server.worker.shutdown()
    return LiveRun(trace, server.texts, server.transfers, server.computed, server.ledger.swaps)


def undisturbed(
    model: Decoder, conversations: Conversations, prompts: list[list[int]]
) -> dict[int, list[int]]:
    """What each conversation says when it has the model to itself."""
    texts: dict[int, list[int]] = {}
    caches: dict[int, KVCache] = {}
    outputs = conversations.workload.output.tolist()
    for turn, (who, output) in enumerate(zip(conversations.session.tolist(), outputs, strict=True)):
        text = texts.setdefault(who, [])
        cache = caches.setdefault(who, KVCache(model.config, model.config.positions))
        text += prompts[turn]
        for _ in range(output):
            text.append(int(model([torch.tensor(text[cache.length :])], [cache]).argmax(-1)))
    return texts
