"""Live migration between two real processes: the same tokens, aborts, and blocks that come back."""

import pytest
import torch

from common.distributed.launch import launch
from common.models.decoder import KVCache
from papers.llumnix.config import METHODS
from papers.llumnix.live_instance import BLOCK, RewrittenCache, gather, scatter, versions
from papers.llumnix.migration import Stages
from papers.llumnix.two_instances import MODEL, Trial, build, migrations, unmoved

ROOM = 64
TRIALS = {
    **{method: Trial(method, 300, room=ROOM) for method in METHODS},
    "one stage": Trial("live", 40, room=ROOM),
    "three stages": Trial("live", 300, room=ROOM, stages=Stages(last_stage_blocks=0)),
    "no room": Trial("live", 300, room=8),
    "no room for a blocking copy": Trial("blocking", 300, room=8),
    "finished": Trial("live", 300, output=3, room=ROOM),
    "rewritten": Trial("live", 300, room=ROOM, append_only=False),
}


@pytest.fixture(scope="module")
def moved():
    results = launch(migrations, 2, (list(TRIALS.values()), 3), seconds=120)[0]
    return dict(zip(TRIALS, results, strict=True))


@pytest.fixture(scope="module")
def alone():
    """The tokens of requests that nobody migrates, by their length."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tokens = {length: unmoved(length, 80) for length in (40, 300)}
    torch.set_num_threads(before)
    return tokens


@pytest.mark.parametrize("method", [*METHODS, "one stage"])
def test_a_migrated_request_says_what_it_would_have_said(moved, alone, method):
    one = moved[method]
    assert one.outcome == "committed"
    assert one.tokens == alone[TRIALS[method].length][: len(one.tokens)]
    assert one.gap > 0 and len(one.tokens) >= 6


def test_stages_follow_from_what_is_left(moved):
    assert moved["live"].stages == 2 and moved["one stage"].stages == 1
    assert moved["blocking"].stages == 1
    assert moved["three stages"].outcome == "too many stages"  # the last block is always being written


@pytest.mark.parametrize(
    ("trial", "outcome"),
    [
        ("no room", "no room"),
        ("no room for a blocking copy", "no room"),
        ("finished", "finished"),
        ("rewritten", "too many stages"),
    ],
)
def test_an_aborted_request_goes_on_at_the_source(moved, alone, trial, outcome):
    one = moved[trial]
    assert one.outcome == outcome and one.gap == -1
    if trial != "rewritten":  # whose cache is another one
        assert one.tokens == alone[300][: len(one.tokens)]
    if outcome == "no room":
        assert len(one.tokens) > 3


def test_every_block_of_the_target_comes_back(moved):
    assert [one.free_blocks for one in moved.values()] == [trial.room for trial in TRIALS.values()]


@pytest.mark.parametrize(("append_only", "changed"), [(True, [2]), (False, [0, 1, 2])])
def test_only_the_last_block_of_an_append_only_cache_changes(append_only, changed):
    model = build()
    cache = (KVCache if append_only else RewrittenCache)(MODEL, 80)
    generator = torch.Generator().manual_seed(0)
    model([torch.randint(MODEL.vocab, (41,), generator=generator)], [cache])
    before, stored = versions(cache), cache.data.clone()
    model([torch.tensor([1])], [cache])
    after = versions(cache)
    differ = [b for b, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert differ == changed
    for block in range(3):  # what is said to be unchanged is
        same = torch.equal(gather(stored, [block]), gather(cache.data, [block]))
        assert same == (block not in differ)


def test_gathered_blocks_come_back_where_they_were():
    generator = torch.Generator().manual_seed(1)
    ours, theirs = KVCache(MODEL, 6 * BLOCK), KVCache(MODEL, 6 * BLOCK)
    ours.data.normal_(generator=generator)
    for chosen in ([4, 1], [0, 2, 3, 5]):
        scatter(theirs, chosen, gather(ours.data, chosen))
    assert torch.equal(ours.data, theirs.data)
