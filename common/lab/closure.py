"""The sources that an experiment rests on, found without running it, and their digest.

From papers/<slug>/experiment.py every import inside papers/, bakeoffs/ and common/ is followed (also those within
functions, not those under `if TYPE_CHECKING`), with the packages on the way and the tables (*.csv, *.json) beside the
modules.
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from common.lab.project import Project

TABLES = ("*.csv", "*.json")
RECORDS = ("results.json", "results.cuda.json")  # what the digest is written into can't be part of it


def code_digest(project: Project, slug: str) -> str:
    """sha256 over the names and contents of all files that a paper's experiment rests on."""
    return digest_of(closure(project, slug))


def digest_of(files: dict[str, Path]) -> str:
    """sha256 over the names and contents of files."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def closure(project: Project, slug: str) -> dict[str, Path]:
    """The files of a paper's experiment."""
    return module_closure(project, f"papers.{slug}.experiment")


def imported(project: Project, slug: str) -> set[str]:
    """Dotted names of all that a paper's experiment imports, libraries too, as far as its sources say."""
    names: set[str] = set()
    for name, path in closure(project, slug).items():
        if path.suffix == ".py":
            package = ".".join(Path(name).parent.parts)
            names.update(_imports(ast.parse(path.read_bytes(), str(path)), package))
    return names


def module_closure(project: Project, module: str) -> dict[str, Path]:
    """Files by their name relative to the project, such as common/serving/engine.py, that `module` rests on."""
    roots = {name: project.root / name for name in ("papers", "bakeoffs")}
    roots["common"] = Path(__file__).resolve().parents[1]
    found: dict[str, Path] = {}
    todo = [module]
    while todo:
        module = todo.pop()
        path = _locate(roots, module)
        if path is None:
            continue
        name = str(Path(module.partition(".")[0]) / path.relative_to(roots[module.partition(".")[0]]))
        if name in found:
            continue
        found[name] = path
        for pattern in TABLES:
            for table in path.parent.glob(pattern):
                if table.name not in RECORDS:
                    found[str(Path(name).parent / table.name)] = table
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        todo += [".".join(module.split(".")[:i]) for i in range(1, module.count(".") + 1)]
        todo += _imports(ast.parse(path.read_bytes(), str(path)), package)
    return found


def _locate(roots: dict[str, Path], module: str) -> Path | None:
    top, *rest = module.split(".")
    if top not in roots:
        return None
    base = roots[top].joinpath(*rest)
    candidates = [base.with_suffix(".py"), base / "__init__.py"] if rest else [base / "__init__.py"]
    return next((path for path in candidates if path.is_file()), None)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which never run."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _running(other)
            continue
        yield child
        yield from _running(child)
