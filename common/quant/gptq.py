"""GPTQ: a weight matrix rounded column by column, each column's error made up for by those still to come.

The error that counts is that of the layer's outputs, tr(D G D^T) with D the change of the weights and G the sum of
x x^T over calibration inputs. Source: Frantar et al. (ICLR 2023, arXiv:2210.17323), Algorithm 1, with groups whose
scales are fitted when their first column is reached, as in the authors' code; without reordering of columns.
"""

import torch
from torch import Tensor

from common.quant.groups import WHOLE_ROW, Grouped, round_to_nearest

STRIP = 64  # columns whose later ones are corrected at once, where a group is a whole row


def gptq(weight: Tensor, gram: Tensor, bits: int, group: int = WHOLE_ROW, damping: float = 0.01) -> Grouped:
    """Codes of a matrix (rows, columns) for inputs whose sum of x x^T is `gram` (columns, columns).

    damping: of the mean of gram's diagonal, added to it (the paper's 1%). An input that was never seen gets weight
    zero. Rows do not depend on each other, so that matrices with the same inputs may be stacked. ValueError for shapes
    that do not fit and for columns that are no multiple of the group.
    """
    rows, columns = weight.shape
    if gram.shape != (columns, columns):
        raise ValueError(
            f"{columns} columns need a gram matrix of {columns} x {columns}, not {tuple(gram.shape)}"
        )
    if columns % (group or columns):
        raise ValueError(f"{columns} columns are no multiple of a group of {group}")
    left = weight.detach().float().T.contiguous()  # (columns, rows): a column lies side by side in memory
    spread = gram.double().clone()
    unseen = spread.diagonal() == 0
    spread.diagonal()[unseen] = 1.0
    left[unseen] = 0.0
    spread.diagonal().add_(damping * spread.diagonal().mean())
    upper = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(spread)), upper=True
    ).float()  # U with G^-1 = U^T U: row i says how later columns make up for column i

    top = 2**bits - 1
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    scales, zeros = [], []
    if group == WHOLE_ROW:
        fitted = round_to_nearest(left.T, bits)
        scales, zeros = [fitted.scales], [fitted.zeros]
    strip = group or min(STRIP, columns)
    for start in range(0, columns, strip):
        stop = min(start + strip, columns)
        if group != WHOLE_ROW:
            fitted = round_to_nearest(left[start:stop].T, bits)
            scales.append(fitted.scales)
            zeros.append(fitted.zeros)
        scale, zero = scales[-1][:, 0].float(), zeros[-1][:, 0].float()
        errors = torch.empty(stop - start, rows)
        for i in range(start, stop):
            code = (left[i] / scale).round_().add_(zero).clamp_(0, top)
            codes[i] = code
            error = (left[i] - code.sub_(zero).mul_(scale)) / upper[i, i]
            left[i:stop].addr_(upper[i, i:stop], error, alpha=-1)
            errors[i - start] = error
        left[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return Grouped(codes.T.contiguous(), torch.cat(scales, 1), torch.cat(zeros, 1), bits)
