"""Greedy decoding with attention (Bahdanau et al. 2015): a loop that ends where the network says so."""

import torch
from torch import Tensor, nn

from common.models.dynamic.calibration import normalise, quantile


class GreedyDecoder(nn.Module):
    """Reads a sentence, then emits tokens one by one until the end token or `longest` of them."""

    def __init__(
        self, width: int = 64, vocabulary: int = 512, words: int = 64, longest: int = 12, length: int = 24
    ) -> None:
        super().__init__()
        self.end, self.longest = 0, longest
        self.source = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.encode = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.first = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.target = nn.Embedding(words, width)
        self.cell = nn.GRUCell(2 * width, width)
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, words)

    def step(self, token: int, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One token on: the state (1, width) and logits (1, words), attending to memory (length, width)."""
        scores = (memory @ self.query(state)[0]) * memory.shape[1] ** -0.5
        context = scores.softmax(dim=0) @ memory
        state = self.cell(torch.cat([self.target.weight[token], context])[None], state)
        return state, self.out(state)

    def forward(self, tokens: Tensor) -> tuple[list[int], Tensor]:
        """Token ids (1, length) to the tokens emitted and the last state (1, width)."""
        memory = self.encode(self.source(tokens[0]) + self.places.weight)
        state = self.first(memory.mean(dim=0, keepdim=True))
        token = 1
        emitted: list[int] = []
        while token != self.end and len(emitted) < self.longest:
            state, logits = self.step(token, state, memory)
            token = int(logits.argmax(dim=-1))
            emitted.append(token)
        return emitted, state

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """First states differ between inputs (n, length), and the end token wins on about a sixth of all steps."""
        memories = self.encode(self.source(inputs) + self.places.weight)
        normalise(self.first[0], memories.mean(dim=1))  # type: ignore[arg-type]
        states, margins = [], []
        for round_ in range(2):
            for memory in memories:
                state, token = self.first(memory.mean(dim=0, keepdim=True)), 1
                for _ in range(self.longest):
                    state, logits = self.step(token, state, memory)
                    token = int(logits[0, 1:].argmax()) + 1
                    if round_ == 0:
                        states.append(state[0])
                    else:
                        margins.append(logits[0, 1:].max() - logits[0, self.end])
            if round_ == 0:
                normalise(self.out, torch.stack(states))
        self.out.bias[self.end].add_(quantile(torch.stack(margins), 1 / 6))
