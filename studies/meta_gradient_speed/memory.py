"""`python -m studies.meta_gradient_speed.memory DEVICE STEPS...`: peak memory, rows as JSON.

Of one meta-gradient; see `_peaks` for what counts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import bayesmeta as bm
from studies._peaks import MIB, peak
from studies.meta_gradient_speed.bayesmeta_step import implicit, meta_step
from studies.meta_gradient_speed.timing import sinusoids


def rows(device: str, steps: list[int]) -> list[dict[str, Any]]:
    """One row per gradient rule and number of inner steps."""
    found = []
    for inner_steps in steps:
        task = replace(sinusoids(device), steps=inner_steps)
        method = implicit(task)
        unrolled = replace(method, gradient=bm.methods.Unrolled())
        for name, chosen in (("implicit", method), ("unrolled", unrolled)):
            step, arguments = meta_step(task, chosen)
            size = peak(lambda step=step, arguments=arguments: step(*arguments), device)
            found.append(
                {
                    "part": "memory",
                    "implementation": name,
                    "inner_steps": inner_steps,
                    "peak_mib": size / MIB,
                }
            )
    return found


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1], [int(steps) for steps in sys.argv[2:]])))
