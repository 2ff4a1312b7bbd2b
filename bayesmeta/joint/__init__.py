"""The joint variational fit: three ways to the minimum of M over the prior, ψ and all Q_i.

`exact` integrates linear-Gaussian tasks out, `profile` solves every Q_i at each outer step, and
`gradient` lets everything descend together, and shares the tasks among processes.
"""
