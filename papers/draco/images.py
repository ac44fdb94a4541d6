"""The images that networks are trained on: MNIST-5k, scikit-learn's digits, an excerpt of CIFAR-10."""

import gzip
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Pixels, float32 of shape (n, channels, height, width) with mean 0 and deviation 1, and labels, int64 of (n,)."""

    pixels: Tensor
    labels: Tensor


def load(data: str, paths: tuple[Path, ...] = ()) -> Images:
    """The images of a data set in these files. ValueError for data that nobody knows, or another number of files."""
    if data == "digits" and not paths:
        return digits()
    if data == "mnist-5k" and len(paths) == 1:
        return mnist_5k(paths[0])
    if data == "cifar10" and paths:
        return cifar10(paths)
    raise ValueError(f"data is digits, mnist-5k or cifar10 with its files, not {data!r} with {len(paths)}")


def mnist_5k(path: Path) -> Images:
    """5,000 images of 28 x 28: 784 pixels from 0 to 255 and the label on each line."""
    with gzip.open(path, "rt") as lines:
        table = np.loadtxt(io.StringIO(lines.read()), delimiter=",", dtype=np.float32)
    return _images(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1])


def digits() -> Images:
    """1,797 images of 8 x 8, part of scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return _images(found.images[:, None].astype(np.float32), found.target)


def cifar10(paths: tuple[Path, ...]) -> Images:
    """Colour images of 32 x 32 from zips of <class>/<number>.jpg; classes in alphabetical order."""
    from PIL import Image

    pixels, names = [], []
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                if member.endswith(".jpg"):
                    with archive.open(member) as file:
                        pixels.append(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32))
                    names.append(Path(member).parent.name)
    classes = sorted(set(names))
    table = np.stack(pixels).transpose(0, 3, 1, 2)
    return _images(table, np.array([classes.index(name) for name in names]))


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    scaled = (pixels - pixels.mean()) / pixels.std()
    return Images(torch.from_numpy(np.ascontiguousarray(scaled)), torch.from_numpy(labels.astype(np.int64)))
