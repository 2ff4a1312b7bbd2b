"""`python -m studies.omniglot NAME ...`: train and score the named cells, in order.

The study finds them done. With no name it lists all cells, and which of them are.
"""

from __future__ import annotations

import json
import sys

from studies.omniglot.settings import Size, cells
from studies.omniglot.training import measured, place, trained

if __name__ == "__main__":
    size = Size.of(quick=False, device="cpu")
    chosen = {cell.name: cell for cell in cells("cpu")}
    for name in sys.argv[1:]:
        one = chosen[name]
        if one.part == "runs":
            trained(one, size, "cpu")
        else:
            print(json.dumps(measured(one, size, "cpu")), flush=True)
    if len(sys.argv) == 1:
        for name, one in chosen.items():
            done = (place(one, size, "cpu") / "scores.json").is_file()
            print("done   " if done else "to do  ", name)
