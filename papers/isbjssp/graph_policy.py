"""The graph network and the policy on it: Park et al. 2021 (arXiv 2106.01086), with an edge type for blocking.

Layer, for every alive operation v (pred and succ of its job, D(v) its machine's others, B(v) what blocks it):

    h_v' = MLP([relu(MLP_pred(h_pred)), relu(MLP_succ(h_succ)), relu(MLP_disj(mean_D h)), relu(MLP_block(h_B)),
                relu(mean over all h), h_v, x_v])

Actor: a score MLP([h_v, mean h]) for each candidate; critic: MLP(mean h). Means in place of the parent's sums, so that
the numbers stay in the range of training when the shop is larger. All operations lie in a grid (jobs, operations): the
neighbours along a job are shifts, those of a machine a sum by index.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from papers.isbjssp.disjunctive_graph import FEATURES


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Layer(nn.Module):
    """One round of messages; embeddings (shops, operations, inputs) -> (shops, operations, width)."""

    def __init__(self, inputs: int, width: int, hidden: int, messages: bool) -> None:
        super().__init__()
        self.messages = messages
        own = inputs + len(FEATURES)
        if messages:
            self.senders = nn.ModuleList(mlp(inputs, hidden, width) for _ in range(4))
            own += 4 * width + inputs
        self.update = mlp(own, hidden, width)

    def forward(self, h: Tensor, x: Tensor, edges: "Edges") -> Tensor:
        """h (shops, jobs, operations, inputs) is 0 where not alive, and so is what comes out."""
        parts = [h, x]
        if self.messages:
            received = (edges.before(h), edges.after(h), edges.same_machine(h), edges.blocked_by(h))
            parts += [torch.relu(send(one)) for send, one in zip(self.senders, received, strict=True)]
            parts.append(torch.relu(edges.overall(h))[:, None, None].expand(*h.shape))
        return self.update(torch.cat(parts, dim=-1)) * edges.alive


class Edges:
    """The edges of a batch of graphs as operations on embeddings of shape (shops, jobs, operations, width)."""

    def __init__(self, seen: Mapping[str, Tensor]) -> None:
        shops, jobs, operations = seen["alive"].shape
        self.alive = seen["alive"][..., None].float()
        self.count = self.alive.sum(dim=(1, 2)).clamp(min=1)
        self.waits = seen["waits"].flatten(1)[..., None].float()
        self.holds = seen["holds"][..., None].float()
        machine = torch.nn.functional.one_hot(seen["machine"].flatten(1), operations).float()
        self.on = machine  # (shops, jobs * operations, machines)
        alive = self.alive.flatten(1, 2)
        others = machine @ (machine.transpose(1, 2) @ alive) - alive
        self.others = others.clamp(min=1)

    def before(self, h: Tensor) -> Tensor:
        return torch.nn.functional.pad(h[:, :, :-1], (0, 0, 1, 0))

    def after(self, h: Tensor) -> Tensor:
        return torch.nn.functional.pad(h[:, :, 1:], (0, 0, 0, 1))

    def _by_machine(self, h: Tensor) -> Tensor:
        """The sum over each operation's machine."""
        return self.on @ (self.on.transpose(1, 2) @ h.flatten(1, 2))

    def same_machine(self, h: Tensor) -> Tensor:
        return ((self._by_machine(h) - h.flatten(1, 2)) / self.others).view_as(h)

    def blocked_by(self, h: Tensor) -> Tensor:
        """At most one operation holds a machine; what waits for it receives its embedding."""
        return (self._by_machine(h * self.holds) * self.waits).view_as(h)

    def overall(self, h: Tensor) -> Tensor:
        return h.sum(dim=(1, 2)) / self.count


class GraphPolicy(nn.Module):
    """Scores of jobs (shops, jobs) and values (shops,) from graphs. messages=False leaves the nodes' own features."""

    def __init__(
        self,
        generator: torch.Generator,
        layers: int = 3,
        width: int = 16,
        hidden: int = 64,
        messages: bool = True,
    ) -> None:
        super().__init__()
        self.messages = messages
        inputs = [len(FEATURES)] + [width] * (layers - 1)
        self.layers = nn.ModuleList(Layer(size, width, hidden, messages) for size in inputs)
        self.actor = mlp(2 * width if messages else width, hidden, 1)
        self.critic = mlp(width, hidden, 1)
        with torch.no_grad():  # as torch.nn.Linear begins, from our own generator
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, seen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = seen["features"]
        edges = Edges(seen)
        h = x
        for layer in self.layers:
            h = layer(h, x, edges)
        place = seen["next"][:, :, None, None].expand(-1, -1, 1, h.shape[-1])
        candidates = h.gather(2, place)[:, :, 0]
        overall = edges.overall(h)
        if self.messages:
            beside = overall[:, None].expand_as(candidates)
            scores = self.actor(torch.cat([candidates, beside], dim=-1))
        else:
            scores = self.actor(candidates)
        return scores[..., 0], self.critic(overall)[:, 0]
