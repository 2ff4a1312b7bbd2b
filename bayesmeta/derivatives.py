"""First derivatives of functions of θ, all tasks at once, no dearer than their use demands.

torch.func's transforms record how a derivative was computed, in case it is differentiated again.
Under `torch.no_grad` nobody will, and autograd's own functions spare that record: about a quarter
of the time of a small network. They cannot be called inside a transform, nor compiled, and record
nothing at all in inference mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._C._functorch as functorch
from torch import Tensor
from torch.func import grad, vjp
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Map = Callable[[Tensor], Tensor]


def slope(function: Map, at: Tensor) -> tuple[Tensor, Tensor]:
    """(task,) values f_i(θ_i) and (task, dim) gradients ∇f_i(θ_i); no graph under `no_grad`.

    Args:
        function: (task, dim) -> (task,), each value of its own task's θ only.
        at: (task, dim).

    Example:
        >>> slope(lambda t: t.square().sum(-1), torch.tensor([[3.0]]))
        (tensor([9.]), tensor([[6.]]))
    """
    if not _without_graph():

        def summed(theta: Tensor) -> tuple[Tensor, Tensor]:
            values = function(theta)
            return values.sum(), values

        gradient, values = grad(summed, has_aux=True)(at)
        return values, gradient
    with torch.enable_grad():
        inside = at.detach().requires_grad_()
        values = function(inside)
        if not values.requires_grad:  # a constant
            return values, torch.zeros_like(at)
        (gradient,) = torch.autograd.grad(values.sum(), inside)
    return values.detach(), gradient


def gradients(function: Callable[..., tuple[Tensor, Any]], *at: Any) -> tuple[Any, Any]:
    """The derivative of a number in all its arguments, and what came with it.

    Args:
        function: pytrees of tensors -> (() number, anything else made of tensors).
        *at: the pytrees; no graph leads to them from the result under `no_grad`.

    Returns:
        A derivative for each of `at`, in its shape, and the function's second value.

    Example:
        >>> def function(a, b):
        ...     return (a["x"] * b).sum(), a["x"] + b
        >>> gradients(function, {"x": torch.tensor([3.0])}, torch.tensor([2.0]))
        (({'x': tensor([2.])}, tensor([3.])), tensor([5.]))
    """
    if not _without_graph():
        return grad(function, argnums=tuple(range(len(at))), has_aux=True)(*at)
    flat, structure = tree_flatten(at)
    with torch.enable_grad():
        inside = [tensor.detach().requires_grad_() for tensor in flat]
        number, rest = function(*tree_unflatten(inside, structure))
        found = torch.autograd.grad(number, inside, allow_unused=True, materialize_grads=True)
    return tree_unflatten(list(found), structure), tree_map(torch.Tensor.detach, rest)


def pullback(function: Map, at: Tensor) -> tuple[Tensor, Map]:
    """The function's value, and u -> Jᵀu at the same point; all u share one graph.

    Example:
        >>> value, pull = pullback(lambda t: t.square(), torch.tensor([3.0]))
        >>> value, pull(torch.tensor([2.0]))
        (tensor([9.]), tensor([12.]))
    """
    if not _without_graph():
        value, pull = vjp(function, at)[:2]
        return value, lambda u: pull(u)[0]
    with torch.enable_grad():
        inside = at.detach().requires_grad_()
        value = function(inside)
    if not value.requires_grad:
        return value, lambda u: torch.zeros_like(at)

    def pull_back(u: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            value, inside, u, retain_graph=True, create_graph=torch.is_grad_enabled()
        )
        return found

    return value.detach(), pull_back


def _without_graph() -> bool:
    """Whether autograd's own functions may be called, and no graph of the result is wanted."""
    if torch.compiler.is_compiling():
        return False
    return not (
        torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or functorch.peek_interpreter_stack() is not None
    )


def readable(values: Tensor) -> bool:
    """Whether its numbers can be looked at without waiting for a device, or breaking a transform.

    Example:
        >>> readable(torch.ones(2))
        True
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    while functorch.is_functorch_wrapped_tensor(values):
        if functorch.is_batchedtensor(values):
            return False
        values = functorch.get_unwrapped(values)
    return True
