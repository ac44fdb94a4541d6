"""What a rank holds of weights, gradients and Adam moments, by ZeRO stage (Rajbhandari et al. 2020, arXiv 1910.02054).

0   everything, on every data rank; gradients are added up
1   weights and gradients, but only a slice of the moments: all tensors one after another, cut into equal slices
2   the same, and of the gradients only that slice survives the backward pass
3   of each tensor alone a slice, of everything; tensors are gathered for the moment in which a layer needs them
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.training.sharded.layout import Groups

Run = Callable[
    [Mapping[str, Tensor], Tensor], Tensor
]  # of a unit: its whole local tensors by name, and its input
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """A stretch of one local tensor: elements start .. start + numel of it flattened; values beside Adam's moments."""

    name: str
    size: tuple[int, ...]  # of the local tensor, this tensor rank's piece
    start: int
    weight: Tensor  # one dimension, like the moments
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class Adam:
    """AdamW's constants."""

    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    decay: float = 0.1

    def over(self, tensors: Sequence[Tensor]) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            list(tensors),
            lr=self.rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.decay,
            foreach=False,
        )


class Resident:
    """Stages 0 to 2: the whole local tensors stay, `tensors` by name."""

    def __init__(self, tensors: Mapping[str, Tensor], groups: Groups, adam: Adam) -> None:
        self.tensors = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        self._groups = groups
        self._sliced = groups.layout.zero > 0
        if self._sliced:
            self.slice = _slice_of(_flat(self.tensors.values()), groups).clone()
            self.optimiser = adam.over([self.slice])
        else:
            self.optimiser = adam.over(list(self.tensors.values()))

    def call(self, names: Sequence[str], run: Run, x: Tensor) -> Tensor:
        """run's answer to the tensors of these names and x."""
        return run({name: self.tensors[name] for name in names}, x)

    def gradient(self, name: str) -> Tensor:
        """Of a tensor, as far as this rank has it; zeros where nothing reached it."""
        tensor = self.tensors[name]
        if tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
        return tensor.grad

    def update(self) -> None:
        """Add up gradients over data ranks, take a step of Adam, and have all weights everywhere again."""
        gradients = {name: self.gradient(name) for name in self.tensors}
        group, layout = self._groups.data, self._groups.layout
        if not self._sliced:
            if group is not None:
                for gradient in gradients.values():
                    dist.all_reduce(gradient, group=group)
            self.optimiser.step()
        else:
            flat = _padded(_flat(gradients.values()), layout.data)
            if layout.zero == 2:
                for tensor in self.tensors.values():
                    tensor.grad = None
                self.slice.grad = _reduced_slice(flat, self._groups)
            else:
                if group is not None:
                    dist.all_reduce(flat, group=group)
                self.slice.grad = _slice_of(flat, self._groups)
            self.optimiser.step()
            self._spread()
        self.optimiser.zero_grad(set_to_none=True)
        for tensor in self.tensors.values():
            tensor.grad = None

    def _spread(self) -> None:
        """Every data rank's slice of the weights into everybody's tensors."""
        whole, start = _gathered(self.slice.detach(), self._groups), 0
        with torch.no_grad():
            for tensor in self.tensors.values():
                tensor.copy_(whole[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def fragments(self) -> list[Fragment]:
        """What this rank's optimiser owns."""
        if not self._sliced:
            return [
                _fragment(n, t, 0, t, slice(0, t.numel()), self.optimiser) for n, t in self.tensors.items()
            ]
        return [
            _fragment(name, self.tensors[name], start, self.slice, part, self.optimiser)
            for name, start, part in self._cuts()
        ]

    def load(self, fragments: Sequence[Fragment], step: int) -> None:
        """Put back what `fragments` gave, on the same rank of the same layout. ValueError for anything else."""
        _restore(fragments, self.fragments(), self.optimiser, step)
        if self._sliced:
            self._spread()

    def _cuts(self) -> list[tuple[str, int, slice]]:
        """Where the slice's tensors are: name, first element within the tensor, and its stretch of the slice."""
        first = self._groups.place.data * self.slice.numel()
        found, at = [], 0
        for name, tensor in self.tensors.items():
            low, high = max(at, first), min(at + tensor.numel(), first + self.slice.numel())
            if low < high:
                found.append((name, low - at, slice(low - first, high - first)))
            at += tensor.numel()
        return found


class Sliced:
    """Stage 3: of every local tensor a slice, `slices` by name; `sizes` are those of the tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], groups: Groups, adam: Adam) -> None:
        self.sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.slices = {
            name: _slice_of(tensor.flatten(), groups).clone().requires_grad_()
            for name, tensor in tensors.items()
        }
        self._groups = groups
        self.optimiser = adam.over(list(self.slices.values()))

    def call(self, names: Sequence[str], run: Run, x: Tensor) -> Tensor:
        """run's answer to the whole tensors and x; they are gathered for it, and once more for the way back."""
        return _Gathered.apply(run, self, tuple(names), x, *(self.slices[name] for name in names))

    def whole(self, name: str) -> Tensor:
        """The local tensor from all data ranks' slices."""
        flat = _gathered(self.slices[name].detach(), self._groups)
        numel = torch.Size(self.sizes[name]).numel()
        return flat[:numel].view(self.sizes[name])

    def reduced(self, gradient: Tensor) -> Tensor:
        """This rank's slice of the gradient's sum over data ranks."""
        return _reduced_slice(_padded(gradient.flatten(), self._groups.layout.data), self._groups)

    def gradient(self, name: str) -> Tensor:
        """Of a tensor, this rank's slice; zeros where nothing reached it."""
        own = self.slices[name]
        if own.grad is None:
            own.grad = torch.zeros_like(own)
        return own.grad

    def update(self) -> None:
        """A step of Adam on the slices; their gradients are added up already."""
        for name in self.slices:
            self.gradient(name)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def fragments(self) -> list[Fragment]:
        """What this rank's optimiser owns; without the padding at the end of the last slice."""
        found = []
        for name, own in self.slices.items():
            size = self.sizes[name]
            start = self._groups.place.data * own.numel()
            real = max(0, min(own.numel(), torch.Size(size).numel() - start))
            if real:
                tensor = torch.empty(size, device="meta")
                found.append(_fragment(name, tensor, start, own, slice(0, real), self.optimiser))
        return found

    def load(self, fragments: Sequence[Fragment], step: int) -> None:
        """Put back what `fragments` gave, on the same rank of the same layout. ValueError for anything else."""
        _restore(fragments, self.fragments(), self.optimiser, step)


class _Gathered(torch.autograd.Function):
    """A unit whose tensors exist while it computes, and again while its gradients are computed."""

    @staticmethod
    def forward(
        context: Any, run: Run, held: Sliced, names: tuple[str, ...], x: Tensor, *slices: Tensor
    ) -> Tensor:
        context.run, context.held, context.names = run, held, names
        context.rng = torch.get_rng_state()
        context.save_for_backward(x)
        return run({name: held.whole(name) for name in names}, x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = context.saved_tensors
        moving = x.is_floating_point()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(context.rng)  # the same dropout as on the way forwards
            again = x.detach().requires_grad_(moving)
            tensors = {name: context.held.whole(name).requires_grad_() for name in context.names}
            out = context.run(tensors, again)
            wanted = [*tensors.values(), *([again] if moving else [])]
            found = torch.autograd.grad(out, wanted, gradients[0], allow_unused=True)
        of_tensors = [
            torch.zeros_like(tensor) if gradient is None else gradient
            for gradient, tensor in zip(found, tensors.values(), strict=False)
        ]
        return None, None, None, found[-1] if moving else None, *map(context.held.reduced, of_tensors)


def hold(tensors: Mapping[str, Tensor], groups: Groups, adam: Adam) -> Resident | Sliced:
    """The holdings that the layout's ZeRO stage asks for, from the whole local tensors."""
    return Sliced(tensors, groups, adam) if groups.layout.zero == 3 else Resident(tensors, groups, adam)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _padded(flat: Tensor, ranks: int) -> Tensor:
    """With zeros up to a multiple of the ranks."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % ranks))


def _slice_of(flat: Tensor, groups: Groups) -> Tensor:
    """This data rank's share of a vector, padded to equal shares."""
    return _padded(flat, groups.layout.data).chunk(groups.layout.data)[groups.place.data]


def _gathered(own: Tensor, groups: Groups) -> Tensor:
    """All data ranks' slices, one after another."""
    if groups.data is None:
        return own.clone()
    parts = [torch.empty_like(own) for _ in range(groups.layout.data)]
    dist.all_gather(parts, own.contiguous(), group=groups.data)
    return torch.cat(parts)


def _reduced_slice(flat: Tensor, groups: Groups) -> Tensor:
    """This data rank's slice of the sum over data ranks; a reduction to each owner, since gloo scatters no sums."""
    parts = [part.clone() for part in flat.chunk(groups.layout.data)]
    if groups.data is not None:
        for index, part in enumerate(parts):
            dist.reduce(part, dist.get_global_rank(groups.data, index), group=groups.data)
    return parts[groups.place.data]


def _fragment(
    name: str, tensor: Tensor, start: int, owned: Tensor, part: slice, optimiser: torch.optim.Optimizer
) -> Fragment:
    """Of an optimiser's tensor the stretch that belongs to a local tensor; views. Moments before the first step: 0."""
    state = optimiser.state[owned]
    for moment in MOMENTS:
        if moment not in state:
            state[moment] = torch.zeros_like(owned)
    state.setdefault("step", torch.tensor(0.0))
    moments = [state[moment].flatten()[part] for moment in MOMENTS]
    return Fragment(name, tuple(tensor.shape), start, owned.detach().flatten()[part], *moments)


def _restore(
    saved: Sequence[Fragment], own: Sequence[Fragment], optimiser: torch.optim.Optimizer, step: int
) -> None:
    def key(fragment: Fragment) -> tuple:
        return fragment.name, fragment.size, fragment.start, fragment.weight.numel()

    if [key(one) for one in saved] != [key(one) for one in own]:
        raise ValueError("these fragments belong to another rank or another layout: convert them first")
    with torch.no_grad():
        for theirs, ours in zip(saved, own, strict=True):
            ours.weight.copy_(theirs.weight)
            ours.exp_avg.copy_(theirs.exp_avg)
            ours.exp_avg_sq.copy_(theirs.exp_avg_sq)
    for state in optimiser.state.values():
        state["step"] = torch.tensor(float(step))
