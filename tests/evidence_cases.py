"""Models that are not linear in their weights, and small binary tasks, for the evidence."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import bayesmeta as bm
from bayesmeta import likelihoods

DATA = Path(__file__).parent / "data"


class Logistic(nn.Module):
    """Circumference of an orange tree by age in days."""

    def __init__(self) -> None:
        super().__init__()
        self.asym = nn.Parameter(torch.tensor(190.0))
        self.xmid = nn.Parameter(torch.tensor(700.0))
        self.scal = nn.Parameter(torch.tensor(350.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.asym / (1 + torch.exp((self.xmid - x[:, 0]) / self.scal))


class OneCompartment(nn.Module):
    """Concentration of a drug taken once, by dose and time; rates and clearance as logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.lke = nn.Parameter(torch.tensor(-2.5))
        self.lka = nn.Parameter(torch.tensor(0.5))
        self.lcl = nn.Parameter(torch.tensor(-3.2))

    def forward(self, x: Tensor) -> Tensor:
        dose, time = x.unbind(-1)
        ke, ka, cl = self.lke.exp(), self.lka.exp(), self.lcl.exp()
        decay = torch.exp(-ke * time) - torch.exp(-ka * time)
        return dose * ke * ka / (cl * (ka - ke)) * decay


def orange() -> tuple[bm.Model, bm.TaskFamily]:
    family = bm.TaskFamily.from_csv(DATA / "orange.csv", task="Tree", x=["age"], y="circumference")
    return bm.Model(Logistic(), likelihoods.Gaussian(), adapt=["asym"]), family


def theoph() -> tuple[bm.Model, bm.TaskFamily]:
    family = bm.TaskFamily.from_csv(
        DATA / "theoph.csv", task="Subject", x=["Dose", "Time"], y="conc"
    )
    return bm.Model(OneCompartment(), likelihoods.Gaussian()), family


def binary(tasks: int = 6, rows: int = 2) -> tuple[bm.Model, bm.TaskFamily]:
    """Bernoulli tasks with an adapted slope and intercept and a shared slope."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, rows, 3, generator=generator).double()
    x[..., 0] = 1.0
    y = torch.bernoulli(torch.full((tasks, rows), 0.5), generator=generator).double()

    class Predictor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.tensor([0.2, -0.3]))
            self.common = nn.Parameter(torch.tensor([0.4]))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] @ self.own + x[:, 2:] @ self.common

    model = bm.Model(Predictor(), likelihoods.Bernoulli(), adapt=["own"])
    return model.double(), bm.TaskFamily.from_tensors(x=x, y=y)
