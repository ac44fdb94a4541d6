"""The notebook's exercises and their solutions. Each answer is computed by the mechanism."""

from dataclasses import replace
from typing import Any

import torch

from common.distributed.rooms import Room
from common.lab.exercises import Exercise
from common.training.sharded.layout import Groups, Layout
from common.training.sharded.parameters import Shape, parameters
from common.training.sharded.trainer import Recipe, Trainer
from papers.universal_checkpointing.conversion import convert
from papers.universal_checkpointing.decoder import decoder_rules
from papers.universal_checkpointing.loading import load_universal
from papers.universal_checkpointing.native import Described, Progress, save
from papers.universal_checkpointing.patterns import PatternError, Rule, Shard, match
from papers.universal_checkpointing.slices import padded_size

SHAPE = Shape(vocab=65, hidden=64, layers=2, heads=8, kv_heads=4, mlp=128, context=16)


def lost_in_bfloat16(lab: Any) -> float:
    """Largest relative difference of a weight that is resumed in bfloat16."""
    with Room("paperlab-ucp-") as room:
        before = Trainer(SHAPE, Groups(Layout(), Layout().place(0)), Recipe())
        save(room / "native", before, Described(Layout(), Progress(0, 0), decoder_rules(SHAPE)))
        convert(room / "native", room / "universal")
        after = Trainer(SHAPE, Groups(Layout(), Layout().place(0)), Recipe(seed=1, dtype=torch.bfloat16))
        load_universal(room / "universal", after)
        pairs = zip(before.state().fragments, after.state().fragments, strict=True)
        differences = [
            ((a.weight - b.weight.float()) / a.weight).abs().nan_to_num(0.0, 0.0) for a, b in pairs
        ]
        return max(float(one.max()) for one in differences)


def planted() -> tuple[Rule, ...]:
    """The decoder's rules with one that is wrong."""
    return tuple(
        replace(rule, pattern=Shard(0)) if "down" in rule.names and rule.pattern == Shard(1) else rule
        for rule in decoder_rules(SHAPE)
    )


def wrong_parameter(lab: Any, ranks: int = 2) -> str:
    """The part of a block whose pattern does not give the tensor that two tensor ranks hold pieces of."""
    whole = {p.name: (p.rows or p.size[0], *p.size[1:]) for p in parameters(SHAPE, Layout())}
    held = parameters(SHAPE, Layout(tensor=ranks))
    rules = match(planted(), list(whole))
    for parameter in held:
        piece = list(parameter.size)
        if parameter.split.dim is not None:
            piece[parameter.split.dim] //= ranks
        try:
            padded_size(rules[parameter.name].pattern, whole[parameter.name], tuple(piece), ranks)
        except PatternError:
            return parameter.name.removeprefix("blocks.0.")
    return ""


EXERCISES = {
    "exercise-1": Exercise(
        "Resume the checkpoint in bfloat16. By how much, relative to itself, is the worst weight off?",
        "Give Recipe(seed=1, dtype=torch.bfloat16) to a trainer, load_universal(room.path / 'universal', trainer), and "
        "compare trainer.state().fragments with those of a trainer in float32. bfloat16 keeps 8 binary digits.",
        lost_in_bfloat16,
        tolerance=0.1,
    ),
    "exercise-2": Exercise(
        "planted() gives the decoder's rules with one wrong pattern. Which tensor of block 0 does conversion from two "
        "tensor ranks refuse first (such as 'mlp.up.weight')?",
        "Convert from TP2 with these rules, load, and read the PatternError; or compare each pattern with what the "
        "layer does: a row-parallel matrix is cut along its columns.",
        wrong_parameter,
    ),
}
