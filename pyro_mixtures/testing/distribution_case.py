"""A distribution and what is true of it: what the checks need to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

Parameters = dict[str, Tensor]


def bounded_cost(z: Tensor) -> Tensor:
    """One number for each sample ``(S, *E) -> (S,)``, whose mean exists for any tails.

    Its slope differs between coordinates.
    """
    flat = z.reshape(len(z), -1)
    flat = flat / (1 + flat.abs())
    return (flat * torch.arange(1, flat.shape[-1] + 1).to(flat)).sum(-1).cos()


def reparameterized(distribution: Any, points: Tensor) -> Tensor:
    """Chosen points with the gradients that samples there have: the mixtures' own method."""
    return distribution.reparameterize(points)


@dataclass(frozen=True)
class DistributionCase:
    """A distribution, random parameters for it, and what is true of it.

    Args:
        parameters: random tensors of double precision by their names, for a batch shape
            ``(*B,)``; their other dimensions are the same for each batch shape.
        build: the distribution of such parameters, of batch shape ``(*B,)``.
        reference: one with the same density and, where it has them, moments, of other code.
        at: chosen points ``(*S, *B, *E)`` of a distribution with the gradients that samples there
            have; None where points cannot be chosen.
        cost: of samples ``(S, *E) -> (S,)``, whose expected gradient is estimated.
        of_tensors: whether the parameters are the arguments of the class.
        moments: whether the first four exist.
        fixed_support: whether no parameter moves an end of the support.
        unbiased: whether gradients of samples are those of expectations.
        beside: names of parameters that do not change the distribution.

    Example:
        >>> import torch
        >>> from pyro_mixtures import MixtureOfDiagNormals
        >>> from pyro_mixtures.testing import DistributionCase, check
        >>> def parameters(batch_shape):
        ...     locs, scales = torch.randn(2, *batch_shape, 3, 2).double()
        ...     logits = torch.randn(*batch_shape, 3).double()
        ...     return {"locs": locs, "coord_scale": scales.exp(), "component_logits": logits}
        >>> case = DistributionCase(parameters, lambda given: MixtureOfDiagNormals(**given))
        >>> check(case, "expand", "plates", "unbiased_gradients")
    """

    parameters: Callable[[tuple[int, ...]], Parameters]
    build: Callable[[Parameters], TorchDistribution]
    reference: Callable[[Parameters], Distribution] | None = None
    at: Callable[[TorchDistribution, Tensor], Tensor] | None = reparameterized
    cost: Callable[[Tensor], Tensor] = bounded_cost
    of_tensors: bool = True
    moments: bool = True
    fixed_support: bool = True
    unbiased: bool = True
    beside: tuple[str, ...] = ()

    def draw(
        self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
    ) -> Parameters:
        """Parameters that collect gradients."""
        return leaves({name: x.to(dtype) for name, x in self.parameters(batch_shape).items()})

    def example(
        self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
    ) -> tuple[Parameters, TorchDistribution]:
        """Parameters and the distribution of them."""
        parameters = self.draw(batch_shape, dtype)
        return parameters, self.build(parameters)

    def constant(self, batch_shape: tuple[int, ...] = ()) -> TorchDistribution:
        """A distribution whose parameters have no gradient."""
        return self.build({name: x.detach() for name, x in self.draw(batch_shape).items()})

    def repeated(self, parameters: Parameters, batch_shape: tuple[int, ...]) -> Parameters:
        """Copies repeated in memory up to a batch shape: what ``expand`` has to be equal to."""
        own = {name: x.shape for name, x in self.parameters(()).items()}
        return leaves({name: x.expand(*batch_shape, *own[name]) for name, x in parameters.items()})


def leaves(parameters: Parameters) -> Parameters:
    """Copies that collect gradients."""
    return {name: x.detach().clone().requires_grad_() for name, x in parameters.items()}


def gradients(output: Tensor, parameters: Parameters, pull: Tensor | None = None) -> Parameters:
    """Of ``(output * pull).sum()``, by the parameters' names; zero where unused."""
    if not output.requires_grad:
        return {name: torch.zeros_like(x) for name, x in parameters.items()}
    values = torch.autograd.grad(
        output,
        list(parameters.values()),
        torch.ones_like(output) if pull is None else pull,
        retain_graph=True,
        materialize_grads=True,
    )
    return dict(zip(parameters, values, strict=True))


def is_discrete(distribution: Distribution) -> bool:
    """Whether samples are snapped to points, as those of straight-through distributions are."""
    return distribution.support is not None and distribution.support.is_discrete


def assert_near(actual: Parameters, expected: Parameters, tolerance: float) -> None:
    """Each by its largest entry, or by the thousandth part of the largest of all."""
    sizes = {name: float(x.detach().abs().max()) for name, x in expected.items() if x.numel()}
    for name, size in sizes.items():
        error = float((actual[name] - expected[name]).detach().abs().max())
        bound = tolerance * max(size, 1e-3 * max(sizes.values()))
        assert error <= bound, f"{name}: an error of {error:.2g}, allowed are {bound:.2g}"


def assert_mean(samples: Tensor, expected: Tensor | float, what: str) -> None:
    """Over the first dimension, to five standard errors: 6e-7 of all entries are beyond by chance.

    An entry that does not vary has to be exact.
    """
    error = (samples.std(0) / len(samples) ** 0.5).clamp_min(1e-12)
    worst = float(((samples.mean(0) - expected) / error).detach().abs().max())
    assert worst < 5, f"{what}: the mean is {worst:.1f} standard errors away"
