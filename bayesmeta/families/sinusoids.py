"""The sinusoids that papers on meta-learning fit; their coordinates are not all Gaussian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesmeta.families.draws import Draw, Normal, Rows, Truth, Uniform, noise_likelihood
from bayesmeta.tasks import TaskFamily


def sinusoid(
    *,
    tasks: int,
    rows: Rows,
    generator: torch.Generator,
    noise: float = 0.0,
    device: Any = None,
) -> tuple[TaskFamily, Truth]:
    """The sinusoids of MAML.

        y = A sin(x − φ) + N(0, noise²),    A ~ U(0.1, 5),    φ ~ U(0, π),    x ~ U(−5, 5)

    Args:
        tasks: how many.
        rows: per task, or (low, high).
        generator: the randomness.
        noise: sd of y; the paper has none.
        device: of the family; by default the generator's.

    Returns:
        The family, with x (task, row, 1) and y (task, row); its truth, θ = (amplitude, phase).

    References:
        Finn, Abbeel and Levine (2017), "Model-Agnostic Meta-Learning", section 5.1.
    """
    draw = Draw(tasks, rows, generator)
    laws = {"amplitude": Uniform(0.1, 5.0), "phase": Uniform(0.0, math.pi)}
    truth = draw.curves(laws, _sinusoid, {"scale": noise})
    return draw.family(truth, noise_likelihood(noise), draw.uniform(-5.0, 5.0), device=device)


def pacoh_sinusoid(
    *,
    tasks: int,
    rows: Rows,
    generator: torch.Generator,
    noise: float = 0.1,
    device: Any = None,
) -> tuple[TaskFamily, Truth]:
    """The sinusoids on a slope of PACOH; each N(mean, sd) has its standard deviation.

        y = slope x + A sin(1.5 (x − x₀)) + y₀ + N(0, noise²),    x ~ U(−5, 5)
        A ~ U(0.7, 1.3),    slope ~ N(0.5, 0.2),    x₀ ~ N(0, 0.1),    y₀ ~ N(5, 0.1)

    Args:
        tasks: how many; the paper has 20 to learn from.
        rows: per task, or (low, high); the paper has 5.
        generator: the randomness.
        noise: sd of y.
        device: of the family; by default the generator's.

    Returns:
        The family, with x (task, row, 1) and y (task, row); its truth, θ = (amplitude, slope,
        x_shift, y_shift).

    References:
        Rothfuss, Fortuin, Josifoski and Krause (2021), "PACOH", appendix.
    """
    draw = Draw(tasks, rows, generator)
    laws = {
        "amplitude": Uniform(0.7, 1.3),
        "slope": Normal(0.5, 0.2),
        "x_shift": Normal(0.0, 0.1),
        "y_shift": Normal(5.0, 0.1),
    }
    truth = draw.curves(laws, _sloped_sinusoid, {"scale": noise})
    return draw.family(truth, noise_likelihood(noise), draw.uniform(-5.0, 5.0), device=device)


def pacoh_nn_sinusoid(
    *,
    tasks: int,
    rows: Rows,
    generator: torch.Generator,
    noise: float = 0.1,
    device: Any = None,
) -> tuple[TaskFamily, Truth]:
    """The sinusoids of PACOH-NN.

        y = A sin(x − φ) + 5 + N(0, noise²),    A ~ U(2, 3),    φ ~ U(−2, 2),    x ~ U(−4, 4)

    Args:
        tasks: how many; the paper has 200 to learn from and 20 to test on.
        rows: per task, or (low, high); the paper has 5.
        generator: the randomness.
        noise: sd of y.
        device: of the family; by default the generator's.

    Returns:
        The family, with x (task, row, 1) and y (task, row); its truth, θ = (amplitude, phase).
    """
    draw = Draw(tasks, rows, generator)
    laws = {"amplitude": Uniform(2.0, 3.0), "phase": Uniform(-2.0, 2.0)}
    truth = draw.curves(laws, _raised_sinusoid, {"scale": noise})
    return draw.family(truth, noise_likelihood(noise), draw.uniform(-4.0, 4.0), device=device)


def _sinusoid(theta: Tensor, x: Tensor) -> Tensor:
    return theta[..., :1] * torch.sin(x[..., 0] - theta[..., 1:])


def _raised_sinusoid(theta: Tensor, x: Tensor) -> Tensor:
    return _sinusoid(theta, x) + 5.0


def _sloped_sinusoid(theta: Tensor, x: Tensor) -> Tensor:
    amplitude, slope, x_shift, y_shift = theta[..., None].unbind(-2)
    x = x[..., 0]
    return slope * x + amplitude * torch.sin(1.5 * (x - x_shift)) + y_shift
