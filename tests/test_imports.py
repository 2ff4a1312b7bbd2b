"""The tree is the formula: imports run strictly downward, and heavy libraries load late."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bayesmeta"
HEAVY = ("torch", "arviz", "pyro", "pandas", "matplotlib")

# From the bottom up. A module may import from lines below its own, and from its own folder.
LAYERS = """
    results
    atomic devices ranks identity stopping seal
    images spectral resuming failures
    tasks gaussian empirical likelihoods
    splits forms tables derivatives streams few_shot
    prior models families standardise
    expectation predictions linsolve curvature
    inner
    gradients
    posteriors
    objective outer
    legality
    method
    randomised joint
    remarks unsound
    methods
    amortised
    adapting choosing judging records
    fitted
    checkpoint
    fit
    arviz_export
    plots diagnostics pyro_bridge
    options
    console
    report commands
    image_tasks interrupted
    predicting checking demo
    cli
    launch
    __main__
"""
LEVEL = {name: level for level, row in enumerate(LAYERS.split("\n")) for name in row.split()}
# Inside a function, upward, because a public verb sits on the object it belongs to.
LATE = {
    ("tasks", "splits"),  # TaskFamily.split
    ("tasks", "tables"),  # TaskFamily.from_csv
    ("fitted", "arviz_export"),  # Fit.to_arviz
    ("fitted", "checkpoint"),  # Fit.save
}


def imports(tree: ast.AST, *, late: bool = False) -> Iterator[tuple[str, bool]]:
    """(dotted name, inside a function) of every import that runs; type-only imports do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", late) for alias in node.names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, late=late or function)


def violations(module: str, source: str) -> list[str]:
    """What `module` ("tasks", "diagnostics.calibration") imports and must not."""
    found, here = [], module.split(".")[0]
    for name, late in imports(ast.parse(source)):
        root, *rest = name.split(".")
        if root == "None":
            found.append(f"{module}: a relative import; write it from bayesmeta down")
        if (root == "arviz" or root.startswith("arviz_")) and here != "arviz_export":
            found.append(f"{module} imports arviz: only arviz_export does")
        if name.startswith("pyro.infer") and here != "pyro_bridge":
            found.append(f"{module} imports pyro.infer: only pyro_bridge does")
        if root != "bayesmeta" or rest[0] == here or rest[0] == "__version__":
            continue
        if rest[0] not in LEVEL:
            found.append(f"{module} imports {name}, which is in no layer")
        elif LEVEL[rest[0]] >= LEVEL[here] and not (late and (here, rest[0]) in LATE):
            found.append(f"{module} imports {name}, which is not below it")
    return found


def modules() -> list[tuple[str, Path]]:
    paths = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
    names = [".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in paths]
    return [(n.removesuffix(".__init__"), p) for n, p in zip(names, paths, strict=True)]


@pytest.mark.parametrize(("module", "path"), modules())
def test_imports_run_strictly_downward(module, path):
    assert module.split(".")[0] in LEVEL, f"give {module} a layer in {Path(__file__).name}"
    assert violations(module, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("tasks", "from bayesmeta.fit import fit"),
        ("tasks", "import bayesmeta.models"),
        ("models", "from bayesmeta import prior"),
        ("gaussian", "def f():\n    from bayesmeta.tables import read_csv"),
        ("plots", "import arviz"),
        ("plots", "def f():\n    from arviz_stats import hdi"),
        ("fit", "from pyro.infer import MCMC"),
        ("prior", "from . import gaussian"),
        ("fit", "import bayesmeta.helpers"),
    ],
)
def test_a_planted_violation_is_found(module, planted):
    assert len(violations(module, planted)) == 1


def test_what_is_allowed_is_not_reported():
    allowed = "def f():\n    from bayesmeta.tables import read_csv"
    typing_only = "if TYPE_CHECKING:\n    from bayesmeta.fit import Fit"
    assert violations("tasks", allowed) == violations("tasks", typing_only) == []
    assert violations("diagnostics.checks", "from bayesmeta.diagnostics.k import k") == []


def run(*code: str) -> str:
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    script = f"import bayesmeta, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert run("-c", script).strip() == "[]"


def test_help_answers_without_loading_anything_heavy():
    script = (
        "import sys; sys.argv = ['bayesmeta', *sys.argv[1:]]\n"
        "from bayesmeta.cli import main\n"
        "try: main()\n"
        f"finally: print('loaded', [m for m in {HEAVY} if m in sys.modules])"
    )
    for arguments in (["--help"], ["fit", "--help"]):
        out = run("-c", script, *arguments)
        assert "Usage" in out
        assert out.strip().endswith("loaded []")


def test_public_names_load_and_the_verb_is_not_hidden_by_its_module():
    script = (
        "import bayesmeta as bm, bayesmeta.fit\n"
        "assert callable(bm.fit)\n"
        "assert all(getattr(bm, name) is not None for name in dir(bm))"
    )
    run("-W", "ignore", "-c", script)


@pytest.mark.parametrize("folder", ["bayesmeta", "tests", "studies"])
def test_files_stay_readable(folder):
    sizes = {
        str(path.relative_to(PACKAGE.parent)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (PACKAGE.parent / folder).rglob("*.py")
    }
    assert {name: lines for name, lines in sizes.items() if lines > 400} == {}
