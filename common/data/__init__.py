"""The registry of real data sets: where each comes from, its licence, and its sha256.

A data set is looked for in `$PAPERLAB_DATA`, in `../shared/data` beside the repository, and in the user's cache
(`$PAPERLAB_CACHE`, or ~/.cache/paperlab); `fetch` downloads it into the cache. Its digest is checked every time,
and a file with another digest is never used. Nothing here is unpickled, and nothing from a public repository is
committed. Standard library only; `pooch` comes in when something is downloaded.
"""

import difflib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS_TO_CONNECT = 10.0


class DataError(Exception):
    """A data set that cannot be had or must not be used; the message is one line that says what to do."""


@dataclass(frozen=True)
class DataSet:
    """One file. mirror: its path below a mirror folder. url: where users download it."""

    mirror: str
    url: str
    sha256: str
    licence: str
    about: str


def _nanoflow(name: str) -> str:
    return _public("efeslab/Nanoflow", "d6b381e58110a8b5d08cfabd4a55c0d5d0ebef57", f"datasets/traces/{name}")


def _vidur(name: str) -> str:
    path = f"data/processed_traces/{name}"
    return _public("microsoft/vidur", "7d47513363ec447a741ac5e47241580b47724fbf", path)


def _distserve(name: str) -> str:
    path = f"simdistserve/estimators/profile_data/{name}"
    return _public("LLMServe/DistServe", "82831f1604cc6b10bebd360f6c437a07790dde9f", path)


def _public(repository: str, commit: str, path: str) -> str:
    """A file of a public repository at a commit, so that what is downloaded does not change under its digest."""
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"


DATASETS: dict[str, DataSet] = {
    "nanoflow-sharegpt-lengths": DataSet(
        "nanoflow/sharegpt.csv",
        _nanoflow("sharegpt.csv"),
        "4738e04a0377c192e5d46e0f050a9b64a07449310c46b28e93a3742ecc89d0f7",
        "Apache-2.0",
        "58,787 first turns of ShareGPT conversations: prompt and output tokens",
    ),
    "nanoflow-lmsys-lengths": DataSet(
        "nanoflow/lmsys.csv",
        _nanoflow("lmsys.csv"),
        "2a6b50278c80b55151a34a1d15cf13190c6ed8c9210f2a6442b56ff9245f0a0d",
        "Apache-2.0; derived from lengths of LMSYS-Chat-1M",
        "100,000 LMSYS-Chat requests: prompt and output tokens",
    ),
    "nanoflow-azure-conversation": DataSet(
        "nanoflow/splitwise.csv",
        _nanoflow("splitwise.csv"),
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        "Apache-2.0; the trace CC-BY-4.0 (Azure/AzurePublicDataset)",
        "the 19,366 requests of azure-2023-conversation with wall-clock time stamps: prompt and output tokens",
    ),
    "azure-2023-conversation": DataSet(
        "sarathi_serve/splitwise_conv.csv",
        _vidur("splitwise_conv.csv"),
        "439e4138b7e384f316de614c071f7162be05b8af0cef866f82faacd1b0472249",
        "MIT; the trace CC-BY-4.0 (Azure/AzurePublicDataset)",
        "19,366 conversation requests of the Azure LLM inference trace 2023: arrival, prompt and output tokens",
    ),
    "azure-2023-code": DataSet(
        "sarathi_serve/splitwise_code.csv",
        _vidur("splitwise_code.csv"),
        "f266b907d109d471c61283ab69771c17ad79a18b33ff6e96aa546346f52767a6",
        "MIT; the trace CC-BY-4.0 (Azure/AzurePublicDataset)",
        "8,819 code-completion requests of the Azure LLM inference trace 2023: arrival, prompt and output tokens",
    ),
    "arxiv-summarisation-lengths": DataSet(
        "sarathi_serve/arxiv_summarization_lengths.csv",
        _vidur("arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv"),
        "9d3580538d915ca75e4aaaa54590b42dbb17abc6d74c8913310cf07c232adcdc",
        "MIT",
        "28,257 arXiv summarisation requests, clipped at 4k tokens: prompt and output tokens",
    ),
    "distserve-engine-fits": DataSet(
        "distserve/profiler-a100-80g.distserve.json",
        _distserve("profiler-a100-80g.distserve.json"),
        "f5daa7346d6c0e3a69a830ac4ece11432891e09d610bcf3125d916c48b31f512",
        "Apache-2.0",
        "latency coefficients of DistServe's engine on A100-80GB, the originals of common/serving/a100_fits.csv",
    ),
    "distserve-vllm-fits": DataSet(
        "distserve/profiler-a100-80g.vllm.json",
        _distserve("profiler-a100-80g.vllm.json"),
        "ab24e00e0e1165fc45c9fbaeaa36aeb1f67cfe21d3961cb995b385a31c95f751",
        "Apache-2.0",
        "latency coefficients of vLLM on A100-80GB, the originals of common/serving/a100_fits.csv",
    ),
    "distserve-kv-capacities": DataSet(
        "distserve/max_num_tokens.csv",
        _distserve("max_num_tokens.csv"),
        "7a70549e4235a6d45fec6a311a5acf3078c1e5400709450e09afcb8be9ca09d3",
        "Apache-2.0",
        "KV capacities of OPT models on A100-80GB, the original of common/serving/a100_kv_tokens.csv",
    ),
}


def dataset(name: str) -> DataSet:
    """A registered data set. DataError naming the nearest ones (all, where none is near) if there is none."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS) or DATASETS
        raise DataError(f"unknown data set {name!r}; one of {', '.join(near)}")
    return DATASETS[name]


def cache() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("PAPERLAB_CACHE") or Path.home() / ".cache" / "paperlab")


def _places(mirror: str) -> Iterator[Path]:
    if os.environ.get("PAPERLAB_DATA"):
        yield Path(os.environ["PAPERLAB_DATA"]) / mirror
    yield REPOSITORY.parent / "shared" / "data" / mirror
    yield cache() / mirror


def find(name: str) -> Path | None:
    """The verified file of a data set on this machine, or None. DataError if a file is there with another digest."""
    wanted = dataset(name)
    for path in _places(wanted.mirror):
        if path.is_file():
            _verify(name, path, wanted.sha256)
            return path
    return None


def fetch(name: str) -> Path:
    """The verified file of a data set, downloaded into the cache where it is not on this machine yet.

    DataError where it cannot be downloaded, with what to do instead. An interrupted download leaves nothing behind.
    """
    found = find(name)
    if found is not None:
        return found
    wanted = dataset(name)
    target = cache() / wanted.mirror
    try:
        import pooch  # only here, so that a bare machine needs it only to download

        logging.getLogger("pooch").setLevel(logging.ERROR)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            download = pooch.HTTPDownloader(progressbar=False, timeout=SECONDS_TO_CONNECT)
            part = pooch.retrieve(wanted.url, wanted.sha256, fname="part", path=folder, downloader=download)
            Path(part).replace(target)
    except Exception as error:
        raise DataError(
            f"data set {name} could not be downloaded ({type(error).__name__}); check the network and call "
            f"`make data PAPER=<slug>` again, or put the file at $PAPERLAB_DATA/{wanted.mirror}"
        ) from error
    return target


def _verify(name: str, path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise DataError(
            f"data set {name}: {path} has sha256 {digest[:12]}... and not {sha256[:12]}...; "
            "it is not used: delete it and call `make data PAPER=<slug>` again"
        )
