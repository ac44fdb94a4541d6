"""Latencies from a device's data sheet and stated efficiencies, for cards that nobody has measured."""

from common.hardware.roofline import MEASURED, Efficiency, RooflineOperators
from common.hardware.specs import GPU, LINKS, Link
from common.serving.layer import LayeredLatency
from common.serving.models import ModelShape


class RooflineLatency(LayeredLatency):
    """LatencyModel of a GPU of common/hardware/specs.py; link: by default the GPU's fastest in a node."""

    def __init__(
        self,
        gpu: GPU,
        shape: ModelShape,
        tensor_parallel: int = 1,
        stages: int = 1,
        efficiency: Efficiency = MEASURED,
        link: Link | None = None,
    ) -> None:
        operators = RooflineOperators(gpu, efficiency)
        super().__init__(operators, shape, tensor_parallel, stages, link or LINKS[gpu.interconnect])
