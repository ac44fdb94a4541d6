"""The graph network and the policy on it: Park et al. 2021 (arXiv 2106.01086), with an edge type for blocking.

Layer, for every alive operation v (pred and succ of its job, D(v) its machine's others, B(v) what blocks it):

    h_v' = MLP([relu(MLP_pred(h_pred)), relu(MLP_succ(h_succ)), relu(MLP_disj(mean_D h)), relu(MLP_block(h_B)),
                relu(mean over all h), h_v, x_v])

Actor: a score MLP([h_v, mean h]) for each candidate; critic: MLP(mean h). Means in place of the parent's sums, so that
the numbers stay in the range of training when the shop is larger. Only alive operations are computed: those of all
shops of a batch stand in one row after another, and edges are indices into these rows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from papers.isbjssp.disjunctive_graph import FEATURES


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Layer(nn.Module):
    """One round of messages; embeddings (operations, inputs) -> (operations, width)."""

    def __init__(self, inputs: int, width: int, hidden: int, messages: bool) -> None:
        super().__init__()
        self.messages = messages
        own = inputs + len(FEATURES)
        if messages:
            self.senders = nn.ModuleList(mlp(inputs, hidden, width) for _ in range(4))
            own += 4 * width + inputs
        self.update = mlp(own, hidden, width)

    def forward(self, h: Tensor, x: Tensor, edges: "Edges") -> Tensor:
        parts = [h, x]
        if self.messages:
            received = (edges.before(h), edges.after(h), edges.same_machine(h), edges.blocked_by(h))
            parts += [torch.relu(send(one)) for send, one in zip(self.senders, received, strict=True)]
            parts.append(torch.relu(edges.overall(h))[edges.shop])
        return self.update(torch.cat(parts, dim=-1))


class Edges:
    """The edges of a batch of graphs as operations on embeddings of its alive operations, (operations, width).

    before, after, same_machine and blocked_by give what each operation receives, 0 where it has no such neighbour.
    """

    def __init__(self, seen: Mapping[str, Tensor]) -> None:
        alive = seen["alive"]
        shops, jobs, operations = alive.shape
        self.shops, self._machines = shops, operations
        flat = alive.flatten().nonzero()[:, 0]
        count = len(flat)
        row = torch.full((alive.numel() + 1,), count)  # of a place in the grid; `count` is a row of zeros
        row[flat] = torch.arange(count)
        k = flat % operations
        self.flat = flat
        self.shop = flat // (jobs * operations)
        self.size = torch.bincount(self.shop, minlength=shops).clamp(min=1)[:, None]
        self.row_before = row[torch.where(k > 0, flat - 1, alive.numel())]
        self.row_after = row[torch.where(k < operations - 1, flat + 1, alive.numel())]
        self.machine = self.shop * operations + seen["machine"].flatten()[flat]
        users = torch.bincount(self.machine, minlength=shops * operations)
        self.others = (users[self.machine] - 1).clamp(min=1)[:, None]
        holder = torch.full((shops * operations,), count)  # the row that holds a machine although it is done
        holds = seen["holds"].flatten()[flat].nonzero()[:, 0]
        holder[self.machine[holds]] = holds
        waits = seen["waits"].flatten()[flat]
        self.row_holding = torch.where(waits, holder[self.machine], count)
        self.candidates = row[
            torch.arange(shops)[:, None] * jobs * operations
            + torch.arange(jobs)[None] * operations
            + seen["next"]
        ]

    def _rows(self, h: Tensor, rows: Tensor) -> Tensor:
        return torch.nn.functional.pad(h, (0, 0, 0, 1)).index_select(0, rows)

    def before(self, h: Tensor) -> Tensor:
        return self._rows(h, self.row_before)

    def after(self, h: Tensor) -> Tensor:
        return self._rows(h, self.row_after)

    def same_machine(self, h: Tensor) -> Tensor:
        """The mean over the others of the operation's machine."""
        sums = h.new_zeros(self.shops * self._machines, h.shape[1]).index_add(0, self.machine, h)
        return (sums.index_select(0, self.machine) - h) / self.others

    def blocked_by(self, h: Tensor) -> Tensor:
        """At most one operation holds a machine; what waits for it receives its embedding."""
        return self._rows(h, self.row_holding)

    def overall(self, h: Tensor) -> Tensor:
        """The mean over a shop's operations, (shops, width)."""
        return h.new_zeros(self.shops, h.shape[1]).index_add(0, self.shop, h) / self.size

    def of_candidates(self, h: Tensor) -> Tensor:
        """The next operation of each job, (shops, jobs, width); 0 of a job that has none."""
        return self._rows(h, self.candidates.flatten()).view(*self.candidates.shape, -1)


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
        edges = Edges(seen)
        x = seen["features"].flatten(0, 2).index_select(0, edges.flat)
        h = x
        for layer in self.layers:
            h = layer(h, x, edges)
        candidates = edges.of_candidates(h)
        overall = edges.overall(h)
        if self.messages:
            beside = overall[:, None].expand_as(candidates)
            scores = self.actor(torch.cat([candidates, beside], dim=-1))
        else:
            scores = self.actor(candidates)
        return scores[..., 0], self.critic(overall)[:, 0]
