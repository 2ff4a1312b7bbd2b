"""The README: its code runs, its numbers are what the code and the studies give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from studies._framework import FIGURES
from studies._pages import gallery, page
from studies._which import which

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOW = "a table has changed: run `python -m studies readme`"


def test_the_python_blocks_run_and_print_the_numbers_beside_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bayesmeta").symlink_to(ROOT / "bayesmeta")
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    first, *rest = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for block in (first, *rest):
        exec(block, space)  # the README's own lines, as a reader would run them
    fit = space["fit"]
    values = [
        fit.log_evidence, *fit.prior.mean.tolist(), *fit.prior.sd().tolist(),
        *fit.posterior.mean[0].tolist(),
    ]  # fmt: skip
    comments = " ".join(line.partition("#")[2] for line in first.splitlines())
    printed = [float(number) for number in re.findall(r"-?\d+\.\d+", comments)]
    assert printed == [round(value, 3) for value in values]
    assert space["again"].log_evidence == fit.log_evidence


def test_the_page_of_the_studies_is_what_their_tables_say() -> None:
    """Every headline, every figure; and the gallery's lines."""
    assert (ROOT / "studies" / "README.md").read_text("utf-8") == page(FIGURES), HOW
    assert (ROOT / "studies" / "WHICH_METHOD.md").read_text("utf-8") == which(FIGURES), HOW
    assert gallery(FIGURES) in README, HOW


def test_every_figure_and_file_the_readme_names_exists() -> None:
    for folder, text in ((ROOT, README), (ROOT / "studies", page(FIGURES))):
        names = re.findall(r"\]\(([^)#]+)\)|`([\w/]+\.(?:md|csv))`", text)
        for name in (a or b for a, b in names):
            assert (folder / name).exists() or (ROOT / name).exists(), name
