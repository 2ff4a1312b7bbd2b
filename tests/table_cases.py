"""One small table that is fine, for tests to read or to spoil."""

from __future__ import annotations

# 3 tasks; line 1 is the header, so task a is in lines 2-5, b in 6-9 and c in 10-11.
GOOD: str = """g,x,sex,n,s,e,y
a,0,M,5,2,1.0,1.5
a,1,F,5,0,1.0,2.5
a,2,M,4,4,2.0,2.0
a,3,F,3,1,1.0,4.5
b,0,M,5,2,0.5,0.5
b,1,M,9,3,1.0,1.0
b,2,F,5,5,1.0,3.5
b,4,F,2,1,1.5,2.5
c,1,M,5,2,1.0,7.0
c,5,F,5,2,1.0,6.5
"""


def changed(line: int, column: str, value: str) -> str:
    """GOOD with one cell changed; `line` as an editor counts."""
    lines = [list(row.split(",")) for row in GOOD.splitlines()]
    lines[line - 1][lines[0].index(column)] = value
    return "\n".join(map(",".join, lines)) + "\n"
