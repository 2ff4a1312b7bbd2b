"""Questions with measured answers, one file or folder each.

    python -m studies list                  what there is, and what the committed tables say
    python -m studies run NAME [--quick]    run one; a full run writes to figures/

A study is a module with a QUESTION, `run(quick, device) -> Result`, and `headline(table)`: its
answer in one sentence, computed from the result table alone. Modules whose names begin with an
underscore are what the studies share.
"""
