"""An independent check of a schedule: lay out many periods and look. Shares no code with the search.

Dependencies are found again from the batch ranges of the nano-operations, durations from work and share, and the sum of
shares is taken at every instant at which something starts.
"""

from collections.abc import Mapping, Sequence

from papers.nanoflow.nano_batches import NanoOp

_TOLERANCE = 1e-6  # relative to the period: what a linear program leaves


def violations(
    ops: Sequence[NanoOp],
    period: float,
    starts: Sequence[float],
    shares: Sequence[float],
    exponents: Mapping[str, float],
    layers: int = 12,
    dependent: bool = True,
) -> list[str]:
    """What is wrong with a periodic schedule of these ops (a chain in the order given); empty if nothing is.

    period, starts: microseconds; layer n starts its copies n periods later. layers: how many are laid out. dependent:
    False looks at the shares and streams alone.
    """
    slack = _TOLERANCE * max(period, 1.0)
    lengths = [op.work / share ** exponents[op.stream] for op, share in zip(ops, shares, strict=True)]
    compute = sum(op.work for op in ops if op.stream == "compute")
    wrong = []
    if period < compute - slack:
        wrong.append(f"a period of {period:.1f} us is shorter than the {compute:.1f} us of its GEMMs")
    chain = list(dict.fromkeys(op.operator for op in ops))
    follows = {name: chain[(k + 1) % len(chain)] for k, name in enumerate(chain)}
    for n in range(layers if dependent else 0):
        for i, one in enumerate(ops):
            end = starts[i] + n * period + lengths[i]
            layer = n + 1 if one.operator == chain[-1] else n
            for j, other in enumerate(ops):
                if other.operator != follows[one.operator] or not max(one.low, other.low) < min(
                    one.high, other.high
                ):
                    continue
                if starts[j] + layer * period < end - slack:
                    wrong.append(
                        f"{other.name} of layer {layer} starts before {one.name} of layer {n} has ended"
                    )
    spans = sorted(
        (starts[i] + n * period, starts[i] + n * period + lengths[i], i)
        for n in range(layers)
        for i in range(len(ops))
    )
    for begin, _, _ in spans:
        running = [i for start, end, i in spans if start <= begin + slack and end > begin + 2 * slack]
        held = sum(shares[i] for i in running)
        if held > 1 + 1e-6:
            wrong.append(f"shares sum to {held:.2f} at {begin:.1f} us")
        streams = [ops[i].stream for i in running]
        if len(set(streams)) < len(streams):
            wrong.append(f"two kernels of one stream run at {begin:.1f} us")
    return wrong
