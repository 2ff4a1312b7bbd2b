"""The README: its code runs, its numbers are what the code and the studies give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = sorted((ROOT / "figures").glob("*.json"))


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


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_every_headline_in_the_readme_is_the_studys_own(record: Path) -> None:
    headline = json.loads(record.read_text(encoding="utf-8"))["headline"]
    assert headline in README, f"README.md has an older sentence for {record.stem}: {headline}"


def test_every_figure_and_file_the_readme_names_exists() -> None:
    names = re.findall(r"\]\(([^)#]+)\)|`([\w/]+\.(?:md|csv))`", README)
    for name in (a or b for a, b in names):
        assert (ROOT / name).exists(), name
