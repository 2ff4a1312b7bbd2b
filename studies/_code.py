"""A study's code in two parts: what measures, and what only draws and tells.

So that a table is known to be old when the code that measured it has changed, and only then: a
figure drawn anew, or a sentence written better, needs no new measurement.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
FRAMEWORK = HERE / "_framework.py"
TELLING = ("draw", "headline", "QUESTION")
LOOSE = "statements outside definitions"
Key = tuple[Path, str]


def halves(file: Path, others: Sequence[Path] = ()) -> dict[str, str]:
    """sha256 of the definitions that only drawing uses, and of all others: those measure.

    Of files that are imported what counts is what is used.

    Args:
        file: the module of a study, with `run`, `draw`, `headline` and `QUESTION`.
        others: further files of its own, whether imported or run as a process.
    """
    sources = _sources([file, *others])
    every = {(path, name) for path in (file, *others) for name in sources[path].defined}
    telling = _closure(sources, [(file, name) for name in TELLING])
    measuring = _closure(sources, [*(every - telling), (file, "run")])
    return {
        "measuring": _digest(sources, measuring),
        "drawing": _digest(sources, telling - measuring),
    }


def _sources(files: list[Path]) -> dict[Path, _Source]:
    """These files and, in turn, those they import of `studies`, save what all have in common."""
    found: dict[Path, _Source] = {}
    for file in files:  # grows on the way
        found[file] = _Source(file)
        files += [path for path, _ in found[file].imported.values() if path not in files]
    return found


def _closure(sources: dict[Path, _Source], keys: Iterable[Key]) -> set[Key]:
    """Those definitions, and all they use."""
    reached, waiting = set(), list(keys)
    while waiting:
        file, name = key = waiting.pop()
        if key not in reached and file in sources and name in sources[file].defined:
            reached.add(key)
            waiting += sources[file].uses(name, sources)
    return reached


def _digest(sources: dict[Path, _Source], keys: Iterable[Key]) -> str:
    parts = [(f.parent.name, f.name, name, sources[f].text(name)) for f, name in keys]
    return hashlib.sha256("\0".join(map(repr, sorted(parts))).encode()).hexdigest()


class _Source:
    """One file: what it defines, and what of `studies` each imported name stands for."""

    def __init__(self, file: Path) -> None:
        text = file.read_text("utf-8")
        self.file, self.lines = file, text.splitlines()
        self.defined: dict[str, list[ast.stmt]] = {}
        tree = ast.parse(text)
        for node in tree.body:
            for name in _names(node):
                self.defined.setdefault(name, []).append(node)
        self.imported = {
            name: found
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name, found in _imports(node)
        }

    def text(self, name: str) -> str:
        """The lines of a definition, decorators included."""
        lines = []
        for node in self.defined[name]:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            lines += self.lines[first - 1 : node.end_lineno]
        return "\n".join(lines)

    def uses(self, name: str, sources: dict[Path, _Source]) -> Iterator[Key]:
        """What a definition names; of a module that is handed on whole, everything."""
        for node in self.defined[name]:
            parts = list(ast.walk(node))
            attributes = {id(p.value): p.attr for p in parts if isinstance(p, ast.Attribute)}
            for part in parts:
                if not isinstance(part, ast.Name):
                    continue
                file, what = self.imported.get(part.id, (self.file, part.id))
                what = what or attributes.get(id(part))
                yield from [(file, what)] if what else ((file, n) for n in sources[file].defined)


def _names(node: ast.stmt) -> list[str]:
    """What a statement of a module defines; imports, docstrings and what is for types: nothing."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    imports = isinstance(node, ast.Import | ast.ImportFrom)
    return [] if docstring or for_types or imports else [LOOSE]


def _imports(node: ast.ImportFrom) -> Iterator[tuple[str, tuple[Path, str | None]]]:
    """For each name that is imported of `studies`: its file, and what it is called there."""
    module = node.module or ""
    if module.partition(".")[0] != "studies":
        return
    for alias in node.names:
        whole, part = file_of(f"{module}.{alias.name}"), file_of(module)
        if whole is not None:
            yield alias.asname or alias.name, (whole, None)
        elif part not in (None, FRAMEWORK):
            yield alias.asname or alias.name, (part, alias.name)


def file_of(module: str) -> Path | None:
    """Of a module of `studies`, named as it is imported; None if there is none."""
    path = HERE.joinpath(*module.split(".")[1:])
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None
