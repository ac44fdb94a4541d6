"""Adaptive computation time (Graves 2016): a cell thinks about each input until its halting sum reaches one."""

import torch
from torch import Tensor, nn

from common.models.dynamic.calibration import normalise, quantile


class PonderingRNN(nn.Module):
    """For each of `steps` inputs the cell runs until the sum of its halting probabilities is 1 - epsilon."""

    def __init__(
        self, width: int = 64, inputs: int = 32, steps: int = 4, longest: int = 6, classes: int = 4
    ) -> None:
        super().__init__()
        self.width, self.steps, self.longest, self.epsilon = width, steps, longest, 0.01
        self.cell = nn.GRUCell(inputs + 1, width)
        self.halt = nn.Linear(width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Inputs (1, steps, inputs) to logits (1, classes) and how often the cell ran."""
        state = torch.zeros(1, self.width)
        ran = 0
        for t in range(self.steps):
            flag = torch.ones(1, 1)
            total = torch.zeros(1, 1)
            mixed = torch.zeros(1, self.width)
            count = 0
            while count < self.longest and total < 1 - self.epsilon:
                state = self.cell(torch.cat([x[:, t], flag], dim=1), state)
                halting = self.halt(state).sigmoid()
                mixed = mixed + torch.minimum(halting, 1 - total) * state
                total = total + halting
                flag = torch.zeros(1, 1)
                count += 1
            state = mixed
            ran += count
        return self.head(state), ran

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """The median of all halting probabilities over inputs (n, steps, inputs) is 0.4, their deviation large."""
        states, state = [], torch.zeros(len(inputs), self.width)
        for t in range(self.steps):
            for count in range(self.longest):
                flag = torch.full((len(inputs), 1), float(count == 0))
                state = self.cell(torch.cat([inputs[:, t], flag], dim=1), state)
                states.append(state)
        seen = torch.cat(states)
        normalise(self.halt, seen)
        self.halt.bias.sub_(quantile(self.halt(seen), 0.5) - torch.logit(torch.tensor(0.4)))
        normalise(self.head, seen)
