"""The sources that an experiment rests on, found without running it, and their digests.

From papers/<slug>/experiment.py every import inside papers/, bakeoffs/ and common/ is followed (also those within
functions, not those under `if TYPE_CHECKING`), with the packages on the way and their tables (*.csv, *.json).
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from common.lab.project import Project

TABLES = ("*.csv", "*.json")
# what is written from runs can't be part of what they rest on
RECORDS = ("results*.json", "confirmations.json")
CARRIERS = ("common/data/__init__.py",)  # the registry: a record names the sha256 of all data that it brought
# of a syntax tree: types say nothing of what is computed, `kind` is the u of u"..."
LEFT_OUT = ("annotation", "returns", "type_comment", "type_params", "kind", "ctx", "type_ignores", "simple")


def sources_digest(project: Project, slug: str) -> str:
    """sha256 over what a paper's experiment computes with: its package and the domains that it imports, and tables.

    Of sources as they are parsed: comments, docstrings, annotations and layout don't count. common/lab and the
    registry of data sets, which only carry what is computed with and from, are no part of it.
    """
    digest = hashlib.sha256()
    for name, path in sorted(closure(project, slug).items()):
        if name.startswith("common/lab/") or name in CARRIERS:
            continue
        content = path.read_bytes()
        if path.suffix == ".py":
            content = repr(essence(ast.parse(content, str(path)))).encode()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def essence(node: object) -> object:
    """A syntax tree as nested tuples, without what changes nothing: docstrings, annotations, places, empty fields.

    The same in every version of Python that reads the source.
    """
    if isinstance(node, list):
        return tuple(essence(each) for each in node)
    if not isinstance(node, ast.AST):
        return node
    fields: list[object] = []
    for name, value in ast.iter_fields(node):
        if name in LEFT_OUT or value is None and not isinstance(node, ast.Constant) or value == []:
            continue
        if name == "body" and isinstance(value, list) and _has_docstring(node):
            value = value[1:]
        fields.append((name, essence(value)))
    return (type(node).__name__, *fields)


def _has_docstring(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if not isinstance(node, kinds) or not body or not isinstance(body[0], ast.Expr):
        return False
    return isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str)


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
        for table in _tables(path.parent):
            found[str(Path(name).parent / table.relative_to(path.parent))] = table
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        todo += [".".join(module.split(".")[:i]) for i in range(1, module.count(".") + 1)]
        todo += _imports(ast.parse(path.read_bytes(), str(path)), package)
    return found


def _tables(folder: Path) -> Iterator[Path]:
    """The tables of a package: beside its modules, and in folders below it that are no packages of their own."""
    for pattern in TABLES:
        yield from (each for each in folder.glob(pattern) if not any(map(each.match, RECORDS)))
    for below in folder.iterdir():
        if below.is_dir() and not any(below.glob("*.py")):
            yield from _tables(below)


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
