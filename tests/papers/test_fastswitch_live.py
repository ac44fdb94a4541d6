"""The live server: real answers under swaps, real copies by a thread, and blocks that all come back."""

import numpy as np
import pytest
import torch

from common.models.decoder import Decoder, KVCache
from common.serving.workload import Workload
from papers.fastswitch.block_groups import BLOCK_TOKENS, Run
from papers.fastswitch.conversations import Conversations, draw_conversations
from papers.fastswitch.live_server import LiveServer, TabledCache, serve_live, undisturbed
from papers.fastswitch.live_study import (
    EXCHANGES,
    TINY,
    answer_swapped,
    decode_beside,
    draw_prompts,
    taking_turns,
)
from papers.fastswitch.priorities import random_priorities


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_cache_in_scattered_blocks_equals_one_in_a_row():
    model = Decoder(TINY, torch.Generator().manual_seed(0))
    pool = torch.full((12, TINY.layers, 2, TINY.groups, BLOCK_TOKENS, TINY.head_dim), torch.nan)
    scattered = TabledCache(pool, [Run(7, 2), Run(1, 1), Run(10, 2)], 0)
    row = KVCache(TINY, 80)
    tokens = torch.randint(256, (70,), generator=torch.Generator().manual_seed(1))
    for part in (tokens[:37], tokens[37:38], tokens[38:]):
        torch.testing.assert_close(model([part], [scattered]), model([part], [row]))
    assert scattered.length == row.length == 70 and scattered.capacity == 80


def test_no_swap_changes_an_answer_and_stale_copies_do():
    def run(**switches):
        generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
        return answer_swapped(generator, rng, turns=3.0, count=6, **switches)

    ours, stale = run(), run(trust=True)
    assert ours.changed == 0 and ours.tokens > 300 and ours.saving > 0.1
    assert stale.changed > 0.02


@pytest.mark.parametrize("switches, least, most", [
    ({}, 0.001, 1.0), ({"worker": False}, 0.0, 0.0), ({"instant": True}, 0.0, 0.001),
])  # fmt: skip
def test_copies_run_beside_computing_with_a_thread_that_moves_something_and_else_not(switches, least, most):
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    found = decode_beside(generator, rng, 200, 12, **{"worker": True} | switches)
    assert least <= found <= most


def test_long_and_short_conversations_take_turns():
    first, later = taking_turns(0), taking_turns(2)
    assert first[0] > first[-1] and later[0] < later[-1]


@pytest.mark.parametrize("worker", [False, True])
def test_every_block_is_free_again_and_every_token_comes(worker, monkeypatch):
    kept = []
    original = LiveServer.__init__

    def remember(self, *arguments, **named):
        original(self, *arguments, **named)
        kept.append(self)

    monkeypatch.setattr(LiveServer, "__init__", remember)
    rng = np.random.default_rng(3)
    talks = draw_conversations(rng, 6, 40.0, EXCHANGES, 300, mean_turns=2.0, mean_think=0.01)
    prompts = draw_prompts(rng, talks)
    model = Decoder(TINY, torch.Generator().manual_seed(3))
    run = serve_live(model, talks, prompts, random_priorities(rng, talks.count), 40, 300, worker=worker)
    (server,) = kept
    assert server.memory.free == server.tables.free == server.memory.capacity
    assert not server.copying and server.wall.outside == 0
    assert [len(times) for times in run.trace.token_times] == talks.workload.output.tolist()
    assert {who: len(text) for who, text in run.texts.items()} == {
        who: int((talks.workload.prompt + talks.workload.output)[talks.session == who].sum())
        for who in run.texts
    }


def test_undisturbed_answers_are_those_of_one_pass_over_the_whole_text():
    model = Decoder(TINY, torch.Generator().manual_seed(4))
    zeros = np.zeros(2, dtype=np.int64)
    talks = Conversations(
        Workload(np.zeros(2), np.array([9, 7]), np.array([5, 4])),
        zeros,
        np.array([0, 14]),
        zeros.astype(float),
    )
    prompts = [list(range(9)), list(range(20, 27))]
    (text,) = undisturbed(model, talks, prompts).values()
    for place in (*range(9, 14), *range(21, 25)):
        assert text[place] == int(model([torch.tensor(text[:place])], [KVCache(TINY, 64)]).argmax(-1))
