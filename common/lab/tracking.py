"""MLflow: one run a reproduction, in the local store under mlflow/ or wherever MLFLOW_TRACKING_URI points.

A run that is interrupted ends KILLED, one that raises ends FAILED. A process that is killed hard can't say so; each run
owns a file as long as its process lives (common/lab/owned.py), and the next command marks as KILLED those whose file
nobody owns any more (`bury_the_dead`).
"""

import contextlib
import logging
import math
import os
import re
import secrets
import shutil
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.lab.config import Composed, flatten
from common.lab.errors import LabError
from common.lab.files import locked
from common.lab.owned import abandoned, owned
from common.lab.project import Project
from common.lab.record import Record
from common.lab.runtime import Observations

HOST, PID, OWNER = "paperlab.host", "paperlab.pid", "paperlab.owner"
PARENT = "mlflow.parentRunId"  # MLflow's own tags: of a nested run,
KIND = {"mlflow.experimentKind": "custom_model_development"}  # of an experiment whose page opens on its runs
SECONDS_FOR_LOCK = 60  # that SQLite waits for another writer
LONGEST_PARAMETER = 6000  # characters that MLflow stores
MOST_METRICS = 1000  # that MLflow takes at once
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")  # characters that MLflow refuses in the name of a metric
SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(?!:memory:)([^?]+)")
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}  # then one clear line


class StoreError(LabError):
    """The tracking store can't be used."""


def store_uri(project: Project) -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, or SQLite under mlflow/; the path of a file is absolute."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        return f"sqlite:///{project.root / 'mlflow' / 'mlflow.db'}"
    file = SQLITE.match(named)
    return named if file is None else f"sqlite:///{Path(file[1]).absolute()}{named[file.end() :]}"


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None of any other."""
    found = SQLITE.match(uri)
    return Path(found[1]).absolute() if found else None


class Store:
    """The tracking store of a project. LabError in one line where it can't be used.

    Beside the file of a SQLite store, whoever named it, lie its lock, the files that its runs own, and artifacts.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self.uri = store_uri(project)
        self.local = not os.environ.get("MLFLOW_TRACKING_URI")
        self.database = database_of(self.uri)
        beside = self.database or project.root / "mlflow" / "mlflow"
        self._lock = beside.with_name(f".{beside.name}.lock")
        self._owners = beside.with_name(f".{beside.name}.running")
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        with self._one_line(), self._alone():
            self.client = _client(self.uri)
            self.client.search_experiments(max_results=1)  # creates or migrates the tables
            if self.local and self.database:
                _readdress(self.database)

    def experiment(self, slug: str) -> str:
        """The id of a paper's experiment, made when there is none."""
        with self._one_line(), self._alone():
            known = self.client.get_experiment_by_name(slug)
            if known is not None:
                if known.lifecycle_stage == "deleted":
                    self.client.restore_experiment(known.experiment_id)
                return known.experiment_id
            place = (self.database.parent / "artifacts" / slug).as_uri() if self.database else None
            return self.client.create_experiment(slug, place, KIND)

    def page(self) -> str:
        """The part of the UI's address that shows the runs of the paper that ran last; of all papers before any has."""
        with self._one_line():
            experiments = [each.experiment_id for each in self.client.search_experiments()]
            last = self.client.search_runs(
                experiments, order_by=["attributes.start_time DESC"], max_results=1
            )
        return f"/#/experiments/{last[0].info.experiment_id}/runs" if last else "/#/experiments"

    def bury_the_dead(self) -> int:
        """Mark runs RUNNING that a process started here, on this store, and left behind as KILLED; how many."""
        count = 0
        with self._one_line(), locked(self._lock) if self._owners.is_dir() else contextlib.nullcontext():
            dead = [file for file in self._owners.glob("*") if abandoned(file)]
            experiments = [each.experiment_id for each in self.client.search_experiments()] if dead else []
            for file in dead:
                this = f"attributes.status = 'RUNNING' and tags.`{OWNER}` = '{file.name}'"
                for run in self.client.search_runs(experiments, this) if experiments else []:
                    self.client.set_terminated(run.info.run_id, "KILLED")
                    count += 1
                file.unlink(missing_ok=True)
        return count

    @contextlib.contextmanager
    def run(self, composed: Composed, parent: str | None = None) -> Iterator["TrackedRun"]:
        """A run that ends FINISHED, KILLED on an interrupt, or FAILED on an exception."""
        experiment = self.experiment(composed.slug)
        token = secrets.token_hex(8)
        tags = {"paper": composed.slug, "profile": composed.profile, OWNER: token}
        tags |= {HOST: socket.gethostname(), PID: str(os.getpid())}
        if parent:
            tags[PARENT] = parent
        name = " ".join([composed.profile, *composed.overrides])
        with self._owning(token) as file:
            with self._one_line():
                started = self.client.create_run(experiment, tags=tags, run_name=name)
            run = TrackedRun(self, started.info.run_id, composed.slug)
            try:
                with self._one_line():
                    run.parameters({"seeds": len(composed.seeds), **dict(flatten(composed.tree))})
                yield run
            except BaseException as error:
                interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
                with contextlib.suppress(StoreError):
                    self._end(run.id, "KILLED" if interrupted else "FAILED", file)
                raise
            self._end(run.id, "FINISHED", file)

    def _end(self, run_id: str, status: str, file: Path) -> None:
        with self._one_line():
            self.client.set_terminated(run_id, status)
            file.unlink(missing_ok=True)  # before that the next command would bury the run

    @contextlib.contextmanager
    def _owning(self, token: str) -> Iterator[Path]:
        """A file of a run that starts, owned by this process meanwhile."""
        with contextlib.ExitStack() as held:
            with self._named(), locked(self._lock):
                self._owners.mkdir(exist_ok=True)
                held.enter_context(owned(self._owners / token))
            yield self._owners / token

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Creation and migration of a SQLite store by one process at a time."""
        if self.database:
            with self._named(), locked(self._lock):
                yield
        else:
            yield

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the store in an error about a file beside it, unless it is our own."""
        try:
            yield
        except StoreError:
            raise
        except LabError as error:
            raise (
                error if self.local else StoreError(f"the MLflow store {self.uri} can't be used: {error}")
            ) from error

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except LabError:
            raise
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise StoreError(f"the MLflow store {self.uri} can't be used: {first[:200]}") from error


def _readdress(database: Path) -> None:
    """Have the runs of a checkout that was copied or moved point to the artifacts that came along.

    MLflow keeps absolute addresses alone and offers no way to change them, hence its tables; those of other
    experiments, say of a user's own, stay as they are.
    """
    here = (database.parent / "artifacts").as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=SECONDS_FOR_LOCK)) as known, known:
        rows = known.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for number, name, address in rows:
            if address and address.endswith(f"/mlflow/artifacts/{name}") and address != f"{here}/{name}":
                known.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                    (f"{here}/{name}", number),
                )
                known.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ? AND "
                    "substr(artifact_uri, 1, ?) = ?",
                    (f"{here}/{name}", len(address) + 1, number, len(address), address),
                )


class TrackedRun:
    """An MLflow run that is under way."""

    def __init__(self, store: Store, run_id: str, slug: str) -> None:
        self._store, self._client, self.id, self._slug = store, store.client, run_id, slug

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log parameters, long ones cut."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in values.items()]
        self._client.log_batch(self.id, params=params)

    def results(self, record: Record) -> None:
        """Log a record: each metric that a claim reads, once, with one step a seed; verdicts and digests as tags."""
        from mlflow.entities import Metric, RunTag

        tags = {"observed": record.provenance.observed, "sources": record.provenance.sources}
        read: dict[str, list[float]] = {}
        for claim in record.claims:
            tags[f"verdict/{claim.id}"] = claim.verdict
            if claim.values and read.setdefault(claim.metric, claim.values) != claim.values:
                read[f"{claim.metric}/{claim.id}"] = claim.values  # at another setting of the metric
        metrics = []
        for name, values in read.items():
            seeds = record.provenance.seeds if len(values) > 1 else [0]
            metrics += [Metric(name, value, 0, seed) for seed, value in zip(seeds, values, strict=False)]
        tags["evidence"] = ", ".join(sorted({claim.evidence for claim in record.claims}))
        with self._store._one_line():
            self._client.log_batch(self.id, metrics=metrics, tags=[RunTag(k, v) for k, v in tags.items()])

    def observations(self, seen: Observations, code: str) -> None:
        """Log tidy observations: each metric at each coordinate, one step a seed; the code's digest as a tag."""
        from mlflow.entities import Metric, RunTag

        metrics = []
        for row in seen.rows():
            name = "/".join([row.metric, *(f"{key}:{value}" for key, value in sorted(row.at.items()))])
            if math.isfinite(row.value):
                metrics.append(Metric(NOT_IN_NAMES.sub("_", name), row.value, 0, row.seed or 0))
        with self._store._one_line():
            for start in range(0, len(metrics), MOST_METRICS):
                self._client.log_batch(self.id, metrics=metrics[start : start + MOST_METRICS])
            self._client.log_batch(self.id, tags=[RunTag("code", code)])

    def artifacts(self, folder: Path) -> None:
        """Keep all files of a folder with the run."""
        with self._store._one_line():
            inside = f"artifacts/{self._slug}/{self.id}/artifacts"
            if self._store.database and self._client.get_run(self.id).info.artifact_uri.endswith(
                f"/{inside}"
            ):
                # not by that address, which is absolute: a container may have the same store at another place
                shutil.copytree(folder, self._store.database.parent / inside, dirs_exist_ok=True)
            else:
                self._client.log_artifacts(self.id, str(folder))


def _client(uri: str) -> Any:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # an error is raised too, and becomes one line
    if uri.startswith("sqlite") and "?" not in uri:
        uri += f"?timeout={SECONDS_FOR_LOCK}"
    return MlflowClient(tracking_uri=uri)
