"""Every trial of a method on validation tasks: `python -m studies.few_shot_sinusoid.tuning NAME`.

Each has 20 s of outer steps, compilation not counted. What is best at 10 points after the number of
adaptation steps that the method is for (one for MAML, its own for the others) is `CHOSEN`.
"""

from __future__ import annotations

import sys

import pandas as pd

from studies._framework import in_own_process
from studies.few_shot_sinusoid.settings import GRID

SECONDS = 20
SEED = 2
MODULE = "studies.few_shot_sinusoid.worker"


def tune(name: str) -> pd.DataFrame:
    """Validation errors of every trial of one method."""
    rows = []
    for trial in range(len(GRID[name])):
        rows += in_own_process(MODULE, name, trial, SECONDS, SEED, "free")
        last = pd.DataFrame(rows).tail(10).query("points == 10")
        print(last[["setting", "adaptation", "mse", "outer_steps"]].to_string(), flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table = tune(sys.argv[1])
    own = table[table["own"] & (table["points"] == 10)]
    print(own[["method", "setting", "mse", "outer_steps"]].to_string(index=False))
