"""MLflow: one run a reproduction, in the local store under mlflow/ or wherever MLFLOW_TRACKING_URI points.

A run that is interrupted ends KILLED, one that raises ends FAILED. A process that is killed hard can't say so; every
run carries its process' identity, and the next command marks those whose process is gone (`bury_the_dead`).
"""

import contextlib
import logging
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from common.lab.config import Composed, flatten
from common.lab.errors import LabError
from common.lab.files import locked
from common.lab.project import Project
from common.lab.record import Record
from common.lab.runtime import Observations

HOST, BOOT, PID, BORN = "paperlab.host", "paperlab.boot", "paperlab.pid", "paperlab.process_started"
PARENT = "mlflow.parentRunId"  # MLflow's own tag of a nested run
SECONDS_FOR_LOCK = 60  # that SQLite waits for another writer
LONGEST_PARAMETER = 6000  # characters that MLflow stores
MOST_METRICS = 1000  # that MLflow takes at once
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")  # characters that MLflow refuses in the name of a metric
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}  # then one clear line


def store_uri(project: Project) -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, or SQLite under mlflow/."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project.root / 'mlflow' / 'mlflow.db'}"


class Store:
    """The tracking store of a project. LabError in one line where it can't be used."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.uri = store_uri(project)
        self.local = not os.environ.get("MLFLOW_TRACKING_URI")
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        with self._one_line(), self._alone():
            self.client = _client(self.uri)
            self.client.search_experiments(max_results=1)  # creates or migrates the tables

    def experiment(self, slug: str) -> str:
        """The id of a paper's experiment, made when there is none."""
        with self._one_line(), self._alone():
            known = self.client.get_experiment_by_name(slug)
            if known is not None:
                if known.lifecycle_stage == "deleted":
                    self.client.restore_experiment(known.experiment_id)
                return known.experiment_id
            place = (self.project.root / "mlflow" / "artifacts" / slug).as_uri() if self.local else None
            return self.client.create_experiment(slug, artifact_location=place)

    def bury_the_dead(self) -> int:
        """Mark runs RUNNING whose process on this machine is gone as KILLED; how many there were."""
        with self._one_line():
            experiments = [each.experiment_id for each in self.client.search_experiments()]
            here = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
            runs = self.client.search_runs(experiments, here) if experiments else []
            dead = [run for run in runs if not _alive(run.data.tags)]
            for run in dead:
                self.client.set_terminated(run.info.run_id, "KILLED")
        return len(dead)

    @contextlib.contextmanager
    def run(self, composed: Composed, parent: str | None = None) -> Iterator["TrackedRun"]:
        """A run that ends FINISHED, KILLED on an interrupt, or FAILED on an exception."""
        experiment = self.experiment(composed.slug)
        tags = {"paper": composed.slug, "profile": composed.profile, **_identity()}
        if parent:
            tags[PARENT] = parent
        name = " ".join([composed.profile, *composed.overrides])
        with self._one_line():
            started = self.client.create_run(experiment, tags=tags, run_name=name)
        run = TrackedRun(self, started.info.run_id)
        status = "FAILED"
        try:
            with self._one_line():
                run.parameters({"seeds": len(composed.seeds), **dict(flatten(composed.tree))})
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            with self._one_line():
                self.client.set_terminated(run.id, status)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Creation and migration of the local store by one process at a time."""
        if self.local:
            with locked(self.project.root / "mlflow" / ".lock"):
                yield
        else:
            yield

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except LabError:
            raise
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LabError(f"the MLflow store {self.uri} can't be used: {first[:200]}") from error


class TrackedRun:
    """An MLflow run that is under way."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._client, self.id = store, store.client, run_id

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log parameters, long ones cut."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in values.items()]
        self._client.log_batch(self.id, params=params)

    def results(self, record: Record) -> None:
        """Log a record: each claim's metric with one step a seed, its mean, and verdicts and digests as tags."""
        from mlflow.entities import Metric, RunTag

        metrics, tags = [], {"observed": record.provenance.observed, "sources": record.provenance.sources}
        for claim in record.claims:
            seeds = record.provenance.seeds if claim.note != "deterministic" else [0]
            pairs = zip(seeds, claim.values, strict=False)
            metrics += [Metric(claim.metric, value, 0, seed) for seed, value in pairs]
            tags[f"verdict.{claim.id}"] = claim.verdict
            if claim.mean is not None:
                metrics.append(Metric(f"mean.{claim.id}", claim.mean, 0, 0))
            if claim.control is not None:
                tags[f"control.{claim.id}"] = claim.control.outcome
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
            self._client.log_artifacts(self.id, str(folder))


def _client(uri: str) -> Any:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith("sqlite:") and "?" not in uri:
        uri += f"?timeout={SECONDS_FOR_LOCK}"
    return MlflowClient(tracking_uri=uri)


def _identity() -> dict[str, str]:
    """Tags that tell this very process from any other, also after a restart of the machine."""
    me = psutil.Process()
    return {
        HOST: socket.gethostname(),
        BOOT: str(int(psutil.boot_time())),
        PID: str(me.pid),
        BORN: str(me.create_time()),
    }


def _alive(tags: Mapping[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags[PID]))
        return (
            process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - float(tags[BORN])) < 1.0
        )
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False
