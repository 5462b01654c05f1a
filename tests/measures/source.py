"""What the source says: modules, lines, imports, circles and chains."""

from __future__ import annotations

import ast
import io
import tokenize
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE: Final = Path(__file__).resolve().parents[2] / "posthog_jobs"

_NO_CODE: Final = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
)  # fmt: skip

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Return module name → file."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def lines_of_code(file: Path) -> int:
    """Return how many lines have code: no blanks, comments or docstrings."""
    text = file.read_text(encoding="utf-8")
    docstrings = {line for node in _docstrings(ast.parse(text)) for line in _lines(node)}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def _docstrings(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())) as first, *_]:
                    yield first


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def imports(*, for_type_checking: bool = True) -> Graph:
    """Return which modules of ours each one imports, wherever in it that stands."""
    known = modules()
    graph: Graph = {name: set() for name in known}
    for name, file in known.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for node in _imports(ast.parse(file.read_text(encoding="utf-8")), for_type_checking):
            graph[name].update(_targets(node, package, known))
        graph[name].discard(name)
    return graph


def _imports(tree: ast.AST, all_of_them: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                yield node
            case ast.If(ast.Name("TYPE_CHECKING")) if not all_of_them:
                pass
            case _:
                yield from _imports(node, all_of_them)


def _targets(
    node: ast.Import | ast.ImportFrom, package: str, known: Mapping[str, Path]
) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
        return
    base = node.module or ""
    if node.level:
        root = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
        base = f"{root}.{base}".rstrip(".")
    for alias in node.names:
        # a name of a package is a module, or stands in the package itself
        target = f"{base}.{alias.name}"
        if target in known:
            yield target
        elif base in known:
            yield base


def circles(graph: Graph) -> list[set[str]]:
    """Return the strongly connected components of more than one module, the largest first."""
    reached = {name: _reached(graph, name) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        circle = {other for other in reached[name] if name in reached[other]} | {name}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return sorted(found, key=len, reverse=True)


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in graph[todo.pop()] - seen:
            seen.add(name)
            todo.append(name)
    return seen


def longest_chain(graph: Graph) -> int:
    """Return how many modules the longest chain of imports has, a circle being one link."""
    circle_of = {name: f"circle {n}" for n, c in enumerate(circles(graph)) for name in c}
    links: Graph = {}
    for name, targets in graph.items():
        link = circle_of.get(name, name)
        links.setdefault(link, set()).update(circle_of.get(target, target) for target in targets)
        links[link].discard(link)

    @cache
    def length(link: str) -> int:
        return 1 + max((length(target) for target in links[link]), default=0)

    return max(map(length, links))


def of_one_function() -> list[str]:
    """Return the modules that define one function, and no class."""
    found = []
    for name, file in modules().items():
        body = ast.parse(file.read_text(encoding="utf-8")).body
        functions = [
            node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        classes = [node for node in body if isinstance(node, ast.ClassDef)]
        if len(functions) == 1 and not classes:
            found.append(name)
    return found


def names_at_the_top() -> int:
    """Return how many modules, `__init__` among them, and packages stand at the package's top."""
    return 1 + len({name.split(".")[1] for name in modules() if "." in name})
