"""A Spark session that leaves nothing behind: on this machine by default, on a cluster where SPARK_MASTER names one.

    from common.data.spark import session

    with session("containment") as spark:
        spark.read.parquet(str(path)).count()

The same code runs on both. Locally nothing listens beyond 127.0.0.1, and the JVM ends with the block, or with this
process if that is killed. Spark needs Java 17 or later; `JavaMissing` says how to get it. pyspark is imported inside.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JAVA = 17  # the oldest that Spark 4 runs on
INSTALL = "install one (apt-get install openjdk-17-jre-headless, brew install openjdk@17) or set JAVA_HOME"
SECONDS_TO_END = 20.0
QUIET = """rootLogger.level = error
rootLogger.appenderRef.err.ref = err
appender.err.type = Console
appender.err.name = err
appender.err.target = SYSTEM_ERR
appender.err.layout.type = PatternLayout
appender.err.layout.pattern = %p %c{1}: %m%n
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
"""


class JavaMissing(RuntimeError):
    """No Java that Spark can run on; the message is one line that says what to do."""


def java() -> Path:
    """The Java that Spark will use: that of JAVA_HOME, else the first in PATH. JavaMissing if none, or too old."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if found is None:
        where = f"JAVA_HOME={home} has none" if home else "there is none in PATH"
        raise JavaMissing(f"Spark needs Java {JAVA} or later, and {where}: {INSTALL}")
    told = subprocess.run([found, "-version"], capture_output=True, text=True)
    version = re.search(r'version "(\d+)', told.stderr + told.stdout)
    if version is None or int(version[1]) < JAVA:
        which = f"is Java {version[1]}" if version else "does not say its version"
        raise JavaMissing(f"Spark needs Java {JAVA} or later, and {found} {which}: {INSTALL}")
    return Path(found)


@contextmanager
def session(
    name: str,
    master: str | None = None,
    memory: str = "1g",
    settings: Mapping[str, str] | None = None,
    short: bool = False,
) -> Iterator["SparkSession"]:
    """A Spark session for a block; one at a time in a process.

    master: by default SPARK_MASTER of the environment, else "local[2]". memory: of the driver. settings: any other of
    Spark's, which take precedence. short: compile Java quickly rather than well, which halves a run of some seconds.
    Raises JavaMissing, and RuntimeError where a session is open already.
    """
    java()
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    if SparkContext._active_spark_context is not None:
        raise RuntimeError("a Spark session is open in this process already; end it first")
    where = master or os.environ.get("SPARK_MASTER") or "local[2]"
    local = where.startswith("local")
    # Not /tmp by name: TMPDIR is honoured. All that Spark writes on this machine lies in here.
    folder = Path(tempfile.mkdtemp(prefix="spark-"))
    logging = folder / "log4j2.properties"
    logging.write_text(QUIET)
    chosen = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": memory,
        "spark.driver.extraJavaOptions": f"-Dlog4j.configurationFile={logging.as_uri()} "
        f"-Dderby.system.home={folder} -Djava.io.tmpdir={folder}"
        + (" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC" if short else ""),
        "spark.sql.warehouse.dir": (folder / "warehouse").as_uri(),
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.session.timeZone": "UTC",
    }
    if local:
        chosen |= {
            "spark.local.dir": str(folder),
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2",
        }
    builder = SparkSession.builder.appName(name).master(where)
    for key, value in {**chosen, **(settings or {})}.items():
        builder = builder.config(key, value)
    variables = {"PYSPARK_PYTHON": sys.executable} | ({"SPARK_LOCAL_IP": "127.0.0.1"} if local else {})
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a pandas that it does not know yet
            spark = builder.getOrCreate()
        _delete_with_the_jvm(spark, (folder, logging))
        yield spark
    finally:
        try:
            _end()
        finally:
            for key, earlier in before.items():
                if earlier is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = earlier
            shutil.rmtree(folder, ignore_errors=True)


def _delete_with_the_jvm(spark: "SparkSession", paths: tuple[Path, ...]) -> None:
    """If this process is killed, the JVM, which outlives it by a moment, removes these (the last first)."""
    for path in paths:
        spark._jvm.java.io.File(str(path)).deleteOnExit()  # type: ignore[union-attr]


def _end() -> None:
    """Stop the session, and then the JVM, which pyspark alone would keep until this process ends."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    context, gateway = SparkContext._active_spark_context, SparkContext._gateway
    process = getattr(gateway, "proc", None)
    try:
        if context is not None:
            active = SparkSession.getActiveSession()
            (active or context).stop()
        if gateway is not None:
            gateway.shutdown()
    finally:
        if process is not None:
            process.stdin.close()  # the JVM ends when its input does
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        SparkContext._gateway = SparkContext._jvm = None
