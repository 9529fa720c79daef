"""Maps that keep their parameters in many places, and mixtures whose components share one."""

import functools

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Categorical,
    ComposeTransform,
    Independent,
    IndependentTransform,
    Normal,
    Transform,
    TransformedDistribution,
    constraints,
)

from pyro_mixtures import MixtureSameFamily
from tests.registry import gradients, leaves, randn

K, D = 3, 2


class Shift(Transform):
    """By the sum of what it is given: tensors, functions that return some, and containers."""

    domain = codomain = constraints.real
    bijective, sign = True, 1

    def __init__(self, *shifts, cache_size=0):
        super().__init__(cache_size=cache_size)
        self.shifts = shifts

    def _call(self, x):
        return x + total(self.shifts)

    def _inverse(self, y):
        return y - total(self.shifts)

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


def total(thing):
    if isinstance(thing, torch.Tensor):
        return thing
    if isinstance(thing, dict):
        return total(list(thing.values()))
    return sum(map(total, thing)) if isinstance(thing, (list, tuple)) else thing()


class Holder:
    """Of a class that nobody knows."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __call__(self):
        return self.tensor


def module(transform):
    """Of a smaller slope, for the sake of integrals."""
    parameters = dict(transform.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(0.1 if isinstance(transform, pyro_transforms.Spline) else 0.4)
    return transform, parameters


def conditioned(transform):
    """By a context that needs a gradient; the networks are Pyro's."""
    context = randn(4).requires_grad_()
    given, parameters = module(transform)
    return given.condition(context), {**parameters, "context": context}


def network():
    linear = torch.nn.Linear(1, D)
    return linear, dict(linear.named_parameters())


def bound():
    linear, parameters = network()
    return Shift(functools.partial(linear.forward, torch.ones(1))), parameters


def partial():
    linear, parameters = network()
    function = functools.partial(torch.add, 0.1)
    function.more = parameters  # as Pyro keeps things with those that it makes
    inner = functools.partial(torch.mul, parameters["bias"], other=parameters["weight"][:, 0])
    return Shift(inner, functools.partial(inner)), {"bias": parameters["bias"]}


def containers():
    a, b, c = (randn(D).requires_grad_() for _ in range(3))
    return Shift([a, (b,)], {"c": c, "again": a}), {"a": a, "b": b, "c": c}


def composed():
    a, b = randn(D).requires_grad_(), randn(D).exp().requires_grad_()
    inner = ComposeTransform([IndependentTransform(AffineTransform(a, b).inv, 1), Shift(b)])
    return ComposeTransform([inner]), {"a": a, "b": b}


TRANSFORMS = {
    "affine coupling": lambda: module(pyro_transforms.affine_coupling(D, [5])),
    "affine autoregressive": lambda: module(pyro_transforms.affine_autoregressive(D, [5])),
    "spline": lambda: module(pyro_transforms.spline(D)),
    "conditional coupling": lambda: conditioned(
        pyro_transforms.conditional_affine_coupling(D, 4, [5])
    ),
    "conditional autoregressive": lambda: conditioned(
        pyro_transforms.conditional_affine_autoregressive(D, 4, [5])
    ),
    "conditional spline": lambda: conditioned(pyro_transforms.conditional_spline(D, 4, [5])),
    "bound method": bound,
    "partial": partial,
    "containers": containers,
    "composed": composed,
}
each_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


def base_parameters():
    return leaves(
        {"loc": randn(K, D), "scale": (0.3 * randn(K, D)).exp(), "logits": 0.5 * randn(K)}
    )


def mixture_of(base, transform, **options):
    """Of Normals that all are transformed by one map."""
    normals = Independent(Normal(base["loc"], base["scale"]), 1)
    weights = Categorical(logits=base["logits"])
    return MixtureSameFamily(weights, TransformedDistribution(normals, [transform]), **options)


def example(make, **options):
    base = base_parameters()
    transform, more = make()
    return {**base, **more}, mixture_of(base, transform, **options)


def loss_of(z):
    return (z * torch.tensor([1.0, -0.7])).sum(-1).cos().sum()


def loss_and_gradients(make, function=lambda q: loss_of(q.rsample((5,)))):
    """Of the same random numbers at each call."""
    torch.manual_seed(2)
    parameters, mixture = example(make)
    torch.manual_seed(1)
    return gradients(function(mixture), parameters)
