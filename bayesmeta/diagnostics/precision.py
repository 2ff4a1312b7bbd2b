"""What fewer bits in a network's products do to a meta-gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bayesmeta.amortised.meta_gradient import meta_gradient
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.prior import Prior
from bayesmeta.tasks import TaskFamily


@dataclass(frozen=True)
class PrecisionError:
    """A meta-gradient in θ₀ by fewer bits, beside that in full precision.

    Args:
        precision: of the products.
        relative: ‖g̃ − g‖ / ‖g‖.
        cosine: of the angle between g̃ and g; 1 where only the length differs.
        value: M̃ − M in nats per task.
        tasks: whose sum g is.
    """

    precision: str
    relative: float
    cosine: float
    value: float
    tasks: int

    def __str__(self) -> str:
        return (
            f"{self.precision}: the meta-gradient of {self.tasks} tasks is off by "
            f"{100 * self.relative:.2g} % (cosine {self.cosine:.4f}), M by {self.value:.2g} nats a "
            "task"
        )


def precision_error(
    model: Model,
    prior: Prior,
    family: TaskFamily,
    method: Method,
    *,
    precision: str = "bfloat16",
    query: TaskFamily | None = None,
    seed: int = 0,
) -> PrecisionError:
    """How far a meta-gradient by fewer bits is from the one in full precision, on the same noise.

        ‖g̃ − g‖ / ‖g‖,    g = ∂M/∂θ₀

    A rounding is enlarged by whatever is steep: by batch normalisation and ReLUs, most of all after
    several inner steps. "tf32" makes no difference on a CPU.

    Args:
        model, prior, family, method, query: as in `bm.meta_gradient`; the data in float32.
        precision: "bfloat16" or "tf32".
        seed: of splits and draws, the same for both.

    Raises:
        InputError: no such precision, or data of 64 bits.

    Example:
        >>> from bayesmeta import likelihoods, methods
        >>> model = Model(torch.nn.Linear(3, 2), likelihoods.Categorical(2))
        >>> x = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0))
        >>> family = TaskFamily.from_tensors(x=x, y=(x[..., 0] > 0.5).long())
        >>> prior = Prior("point").at(mean=model.start, variance=0.0)
        >>> error = precision_error(model, prior, family, methods.maml(support=None))
        >>> 0 < error.relative < 0.05, error.cosine > 0.99
        (True, True)
    """
    both = [
        meta_gradient(
            one, prior, family, method,
            generator=torch.Generator().manual_seed(seed), query=query,
        )
        for one in (model.with_precision("float32"), model.with_precision(precision))
    ]  # fmt: skip
    full, rounded = (g.theta0.double() for g in both)
    return PrecisionError(
        precision,
        float((rounded - full).norm() / full.norm()),
        float(torch.cosine_similarity(rounded, full, dim=0)),
        float(both[1].value - both[0].value) / len(family),
        len(family),
    )
