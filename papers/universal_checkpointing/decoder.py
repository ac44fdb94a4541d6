"""Rules for the decoder that common.training.sharded trains, as its user states them."""

from common.training.sharded.parameters import Shape
from papers.universal_checkpointing.patterns import Replicate, Rule, Shard

BLOCK = r"blocks\.\d+\."


def decoder_rules(shape: Shape, fused: bool = True, row_parallel: bool = True) -> tuple[Rule, ...]:
    """Every parameter once. Biases of row-parallel layers are added behind the sum, so that all ranks have them.

    fused: whether matrices that hold several (queries, keys and values; gate and values; experts) are cut part by part.
    row_parallel: False takes row-parallel matrices for column-parallel ones. Both False are mistakes, for controls.
    """
    d = shape.head_dim
    attention = (shape.heads * d, shape.kv_heads * d, shape.kv_heads * d)
    up = (shape.mlp,) * ((2 if shape.gated else 1) * max(1, shape.experts))
    within = r"norm[12]\.(weight|bias)|(attention\.out|mlp\.down)\.bias"
    within += r"|mlp\.router\.weight" if shape.experts else ""
    replicated = rf"positions\.weight|norm\.(weight|bias)|{BLOCK}({within})"
    rules = [
        Rule(r"embedding\.weight", Shard(0, rows=shape.vocab), stages=shape.tied),
        Rule(replicated, Replicate()),
        Rule(rf"{BLOCK}attention\.qkv\.(weight|bias)", Shard(0, attention if fused else ())),
        Rule(rf"{BLOCK}mlp\.up\.(weight|bias)", Shard(0, up if fused and len(up) > 1 else ())),
        Rule(rf"{BLOCK}(attention\.out|mlp\.down)\.weight", Shard(1 if row_parallel else 0)),
    ]
    if not shape.tied:
        rules.append(Rule(r"head\.weight", Shard(0, rows=shape.vocab)))
    return tuple(rules)
