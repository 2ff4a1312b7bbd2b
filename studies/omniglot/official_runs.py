"""The 20 official one-shot runs: 20 characters of one alphabet, an image of each, 20 to name."""

from __future__ import annotations

from typing import Any

import torch

import bayesmeta as bm
from bayesmeta.models.normalisation import in_context
from studies.omniglot.data import SIZE, folder

PUBLISHED = {
    "Bayesian program learning": 3.3,
    "people": 4.5,
    "Siamese network": 8.0,
    "convolutional network": 13.5,
    "prototypical network": 13.7,
    "modified Hausdorff distance": 38.8,
}
"""Error in %, within alphabets, after training on the background alphabets: Lake et al. (2015), the
network with prototypes Lake et al. (2019)."""


def errors(fit: bm.Fit) -> list[dict[str, Any]]:
    """A row per run: the share of its 20 images that are named wrongly."""
    rows = []
    for run in bm.images.omniglot_runs(folder(), size=SIZE):
        like = fit.prior.mean
        support, query = (x.to(like)[None] / 255 for x in (run.support, run.query))
        y = torch.arange(len(run.support), device=like.device)[None]
        family = bm.TaskFamily.from_tensors(x=support, y=y)
        asked = bm.TaskFamily.from_tensors(x=query, y=run.labels.to(like.device)[None]).batch()
        theta = fit.adapt(family).posterior.mean
        row: dict[str, Any] = {"run": run.name}
        with torch.no_grad():
            for kind, seen in (
                ("inductive", in_context(fit.model, asked, family.batch(), "x")),
                ("transductive", asked),
            ):
                named = fit.model.predict(theta, seen).argmax(-1)
                row[f"{kind}_error"] = 100 * float((named != asked.tensors["y"]).double().mean())
        rows.append(row)
    return rows
