"""f_i(θ): models of one task, and the ones the library builds by itself."""

from bayesmeta.models.images import conv4, dense
from bayesmeta.models.model import Model
from bayesmeta.models.predictors import (
    LinearPredictor,
    from_spec,
    linear,
    mlp,
    refuse_other_size,
)

__all__ = [
    "LinearPredictor",
    "Model",
    "conv4",
    "dense",
    "from_spec",
    "linear",
    "mlp",
    "refuse_other_size",
]
