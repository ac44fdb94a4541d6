"""Real tables as roots of a lake: ratings, films, people, traces of model servers, texts, classic data sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

# registered data set -> (separator, names where the file has no header)
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ml-100k-ratings": ("\t", ()),
    "ml-100k-films": ("\t", ()),
    "ml-100k-users": ("\t", ()),
    "nanoflow-sharegpt-lengths": (",", ()),
    "nanoflow-lmsys-lengths": (",", ()),
    "nanoflow-azure-conversation": (",", ()),
    "azure-2023-conversation": (",", ()),
    "azure-2023-code": (",", ()),
    "arxiv-summarisation-lengths": (",", ()),
    "sarathi-yi-34b-prefill": (",", ()),
    "sarathi-yi-34b-decode": (",", ()),
    "sarathi-chunking-overhead": (",", ()),
    "sarathi-hybrid-batches": (",", ()),
    "sst2-train": ("\t", ("sentence", "label")),
    "sst2-dev": ("\t", ("sentence", "label")),
    "sst2-test": ("\t", ("sentence", "label")),
    "ag-news-test": (",", ("class", "title", "description")),
}
CLASSICS = ("iris", "wine", "breast_cancer", "diabetes", "linnerud")  # inside scikit-learn's wheel


def real_roots(files: Mapping[str, Path], rows: int, rng: np.random.Generator) -> dict[str, "pyarrow.Table"]:
    """Tables by name, each of at most `rows` random rows: the given files of FILES, and scikit-learn's."""
    import pyarrow

    tables = {name: read_delimited(path, *FILES[name]) for name, path in files.items()}
    tables |= {name: classic(name) for name in CLASSICS}
    drawn = {}
    for name, table in tables.items():
        places = np.sort(rng.choice(table.num_rows, min(rows, table.num_rows), replace=False))
        drawn[name] = table.take(pyarrow.array(places)).combine_chunks()
    return drawn


def read_delimited(path: Path, separator: str, names: tuple[str, ...] = ()) -> "pyarrow.Table":
    """A text table with types as Arrow infers them, times as text. `user_id:token` becomes `user_id`."""
    import pyarrow
    from pyarrow import csv

    table = csv.read_csv(
        path,
        read_options=csv.ReadOptions(column_names=list(names) or None),
        parse_options=csv.ParseOptions(
            delimiter=separator, quote_char='"' if separator == "," else False, newlines_in_values=False
        ),
        convert_options=csv.ConvertOptions(
            column_types={"TIMESTAMP": pyarrow.string()}, strings_can_be_null=True
        ),
    )
    return table.rename_columns([name.partition(":")[0] or "row" for name in table.column_names])


def classic(name: str) -> "pyarrow.Table":
    """A data set of scikit-learn, features and target."""
    import pyarrow
    from sklearn import datasets

    held: Any = getattr(datasets, f"load_{name}")()
    columns = dict(zip(held.feature_names, held.data.T, strict=True))
    if held.target.ndim == 1:
        columns["target"] = held.target
    else:
        columns |= dict(zip(held.target_names, held.target.T, strict=True))
    return pyarrow.table({str(column): np.ascontiguousarray(values) for column, values in columns.items()})
