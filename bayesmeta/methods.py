"""The papers of the field by name: compositions of a few lines of the three choices.

A paper's numbers are taken as they stand in it and converted: papers average a loss over the n
support rows, here nats are summed. So `lr` is for that mean, of squared errors where the noise is
Gaussian and of −log p elsewhere, and `lam` is the paper's λ beside that mean: the step on f_i is
lr/n_i and Λ = n_i λ I, the one times and the other over 2σ² for Gaussian noise of sd σ. Learning σ
thus changes no θ*.
"""

from __future__ import annotations

from typing import Any

from bayesmeta.gradients.direct import Direct
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import FirstOrder, SeparatePaths, Truncated, Unrolled
from bayesmeta.gradients.score import Score
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov, RMSProp
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.loop import Algorithm
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.newton import Exact, Kind, Newton, NewtonCG
from bayesmeta.inner.noise import Minibatched
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.inner.quasi_newton import LBFGS
from bayesmeta.method import Method, Support
from bayesmeta.objective import Evidence, Validation, Variational
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.posteriors.free import Free
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.randomised import stochastic, two_path

__all__ = [
    "LBFGS",
    "SGLD",
    "Adam",
    "Algorithm",
    "Algorithmic",
    "Direct",
    "Evidence",
    "Exact",
    "FirstOrder",
    "Free",
    "GradientDescent",
    "Implicit",
    "InnerProblem",
    "Method",
    "Minibatched",
    "Mixture",
    "Momentum",
    "Nesterov",
    "Newton",
    "NewtonCG",
    "Proximal",
    "RMSProp",
    "Score",
    "SeparatePaths",
    "Truncated",
    "Unrolled",
    "Validation",
    "Variational",
    "default_form",
    "fomaml",
    "imaml",
    "imaml_hf",
    "joint",
    "laplace",
    "maml",
    "reptile",
    "stochastic",
    "truncated_maml",
    "two_path",
    "variational_imaml",
]

FULL_LIMIT = 50


def default_form(dim: int) -> str:
    """Covariance of prior and Q_i where none is asked for: full up to 50 weights, then diagonal."""
    return "full" if dim <= FULL_LIMIT else "diagonal"


def joint(*, covariance: str = "full", beta: float = 1.0, **options: Any) -> Method:
    """Joint variational fit: M minimised over (θ₀, Σ₀, ψ) and all Q_i.

        min_{θ₀, Σ₀, ψ, Q} Σ_i [ E_{Q_i} f_i + β KL(Q_i ‖ N(θ₀, Σ₀)) ]

    With covariance="point" and Σ₀ = I/2 held this is Σ_i ‖θ_i − θ₀‖² + f_i(θ_i), the joint
    objective of the notes on iMAML (F. Huszár, inference.vc, 2019).

    Args:
        covariance: of every Q_i: point, diagonal, lowrank(r), full.
        beta: weight of the KL.
        **options: solver, steps, lr, draws, noise, batch, warmup, tolerance, reset_every,
            prior_update; see `Method`.

    Example:
        >>> joint(covariance="diagonal").posterior
        Free(covariance='diagonal')
    """
    return Method(posterior=Free(covariance), objective=Variational(beta), **options)


def maml(
    *,
    steps: int = 1,
    lr: float = 0.01,
    support: Support = 0.5,
    learn_lr: bool = False,
    **options: Any,
) -> Method:
    """MAML: the loss of a query set after `steps` gradient steps from θ₀, differentiated through.

        min_{θ₀} Σ_i g_i(θ_T),    θ_{t+1} = θ_t − (lr/n_i) ∇f_i(θ_t)

    Finn, Abbeel & Levine 2017 (equation 1). It has no Σ₀. With learn_lr=True every weight has a
    learned step size that starts at lr: Meta-SGD (Li et al. 2017, equation 3).

    Args:
        steps: inner steps T.
        lr: the paper's α, for the loss per row.
        support: rows (or their fraction) that adaptation sees; see `Validation`.
        learn_lr: learn one step size per weight.
        **options: of the outer loop, see `Method`: optimiser, batch, compile, draws, noise, and
            its steps, lr and tolerance as outer_steps, outer_lr and outer_tolerance.
    """
    inner = GradientDescent(lr, steps, learn_lr=learn_lr)
    return Method.composed(Algorithmic(), inner, Unrolled(), Validation(support), options)


def truncated_maml(
    *,
    steps: int = 5,
    last: int = 1,
    lr: float = 0.01,
    support: Support = 0.5,
    **options: Any,
) -> Method:
    """MAML with only the last steps differentiated through (Shaban et al. 2019).

    Args:
        steps: inner steps.
        last: how many of them are recorded.
        lr, support, **options: as in `maml`.
    """
    inner = GradientDescent(lr, steps)
    return Method.composed(Algorithmic(), inner, Truncated(last), Validation(support), options)


def fomaml(*, steps: int = 1, lr: float = 0.01, support: Support = 0.5, **options: Any) -> Method:
    """First-order MAML: ∂θ_T/∂θ₀ taken as I (Finn et al. 2017, section 5.2).

    Args:
        steps, lr, support, **options: as in `maml`.
    """
    inner = GradientDescent(lr, steps)
    return Method.composed(Algorithmic(), inner, FirstOrder(), Validation(support), options)


def reptile(*, steps: int = 5, lr: float = 0.01, rows: int | None = None, **options: Any) -> Method:
    """Reptile: θ₀ moves towards what gradient descent from θ₀ reaches.

        θ₀ ← θ₀ − outer_lr · mean_i Λ(θ₀ − θ_T)

    which is the gradient of ½‖θ_T − θ₀‖²_Λ with θ_T held; under the default prior Λ = I, and the
    outer optimiser is sgd, this is Nichol et al. 2018 (algorithm 1, batched).

    Args:
        steps: inner steps.
        lr: of the inner steps, for the loss per row.
        rows: rows of a task in each inner step, in passes; None: all. What θ₀ learns of
            generalisation comes from steps on different rows (section 5 of the paper), and with
            all rows in every step there is little of it.
        **options: as in `maml`; outer_lr is the paper's ε, 1 by default here.
    """
    inner, options = (
        GradientDescent(lr, steps, rows=rows),
        {"optimiser": "sgd", "outer_lr": 1.0} | options,
    )
    return Method.composed(Algorithmic(), inner, Direct(), Variational(), options)


def imaml(
    *,
    steps: int = 16,
    lr: float = 0.01,
    lam: float | None = None,
    cg_steps: int = 5,
    tolerance: float = 0.0,
    support: Support = 0.5,
    curvature: Kind = "auto",
    **options: Any,
) -> Method:
    """iMAML by gradient descent: the loss of a query set at the minimum of the anchored loss.

        min_{θ₀} Σ_i g_i(θ*_i),    θ*_i = argmin f_i(θ) + ½‖θ − θ₀‖²_Λ

    Rajeswaran, Finn, Kakade & Levine 2019 (algorithms 1 and 2). Unlike their released code, the
    anchor is in every inner step, at test time too, and the system solved is the one stated.

    Args:
        steps: inner steps.
        lr: the paper's α, for the loss per row.
        lam: the paper's λ, held (Λ = n_i λ I, over 2σ² for Gaussian noise); None keeps the
            prior's own Λ, and learns it.
        cg_steps: conjugate gradient steps of the implicit gradient.
        tolerance: of ‖∇F‖ in nats per unit of θ, at which a task stops; 0 takes all steps.
        support: as in `maml`.
        curvature: as in `Implicit`; the paper's is "hessian".
        **options: as in `maml`.
    """
    inner = GradientDescent(lr, steps, tolerance=tolerance)
    rule = Implicit(steps=cg_steps, curvature=curvature)
    return Method.composed(Proximal(lam=lam), inner, rule, Validation(support), options)


def imaml_hf(
    *,
    steps: int = 10,
    newton_cg_steps: int = 5,
    lam: float | None = None,
    cg_steps: int = 5,
    tolerance: float = 0.0,
    support: Support = 0.5,
    curvature: Kind = "auto",
    **options: Any,
) -> Method:
    """iMAML, Hessian-free: adaptation by Newton-CG with a line search.

    Rajeswaran et al. 2019 (section 4.2), who take the Hessian; on its own the line search makes
    slow progress where a network's is indefinite, so "auto" takes the Gauss-Newton matrix there.

    Args:
        steps: Newton steps.
        newton_cg_steps: conjugate gradient steps for each direction.
        lam, cg_steps, tolerance, support, curvature, **options: as in `imaml`.
    """
    inner = NewtonCG(steps, newton_cg_steps, curvature=curvature, tolerance=tolerance)
    rule = Implicit(steps=cg_steps, curvature=curvature)
    return Method.composed(Proximal(lam=lam), inner, rule, Validation(support), options)


def variational_imaml(
    *,
    covariance: str = "point",
    steps: int = 16,
    lr: float = 0.01,
    lam: float | None = None,
    cg_steps: int = 5,
    tolerance: float = 0.0,
    curvature: Kind = "auto",
    **options: Any,
) -> Method:
    """Variational iMAML: the anchored loss itself, no query set.

        min_{θ₀} Σ_i f_i(θ*_i) + ½‖θ*_i − θ₀‖²_Λ        (point)
        min Σ_i E_{Q_i} f_i + KL(Q_i ‖ N(θ₀, Σ₀)),  Q_i = N(θ*_i, (H_i + Λ)⁻¹)

    (F. Huszár, inference.vc, 2019, "a variational formulation".) For a point the gradient Λ(θ₀ −
    θ*_i) is exact by the envelope theorem; for a Gaussian Q_i θ* is differentiated implicitly.

    Args:
        covariance: point, diagonal, lowrank(r) or full.
        lam: as in `imaml`; a point cannot teach Σ₀, so it needs lam or a prior that is held.
        steps, lr, cg_steps, tolerance, curvature, **options: as in `imaml`.
    """
    inner = GradientDescent(lr, steps, tolerance=tolerance)
    point = covariance.strip() == "point"
    rule = Direct() if point else Implicit(steps=cg_steps, curvature=curvature)
    posterior = Proximal(covariance, curvature, lam)
    return Method.composed(posterior, inner, rule, Variational(), options)


def laplace(
    *,
    covariance: str = "full",
    curvature: Kind = "auto",
    points: int = 1,
    steps: int = 50,
    **options: Any,
) -> Method:
    """Empirical Bayes: the evidence of every task, by Laplace's method or quadrature around θ*.

        min −Σ_i log ∫ exp(−f_i(θ)) N(θ; θ₀, Σ₀) dθ
          ≈ f_i(θ*) + ½‖θ* − θ₀‖²_Λ − ½ log|Λ| + ½ log|H_i + Λ|

    What lme4's glmer (nAGQ = points) and TMB maximise.

    Args:
        covariance: of Q_i = N(θ*, (H_i + Λ)⁻¹): full, diagonal, lowrank(r).
        curvature: "hessian" (TMB; glmer, where the link is canonical), "ggn", or "auto".
        points: Gauss-Hermite nodes per weight, for up to three weights.
        steps: Newton steps at most.
        **options: as in `maml`.
    """
    inner = Newton(steps, curvature=curvature, tolerance=1e-9)
    rule = Implicit("cholesky", curvature=curvature)
    return Method.composed(Proximal(covariance, curvature), inner, rule, Evidence(points), options)
