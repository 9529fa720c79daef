"""Every family of sticks with what the tests need to judge it: a new family is one more entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Categorical,
    Distribution,
    Independent,
    Kumaraswamy,
    Normal,
    SigmoidTransform,
)
from torch.distributions import MixtureSameFamily as TorchMixture

from pyro_mixtures.distributions import (
    KumaraswamyStickBreaking,
    MixtureOfDiagNormals,
    MixtureSameFamily,
    StickBreaking,
    TransformedDistribution,
)
from tests.registry import Parameters, leaves


@dataclass(frozen=True)
class Family:
    """Stick-breaking weights, random parameters for them, and the sticks in torch's own terms.

    Args:
        build: the distribution of such parameters.
        sticks: a distribution of torch's alone, of batch shape ``(*B,)`` and event ``(K - 1,)``.
        shapes: of the parameters behind the batch, for three weights.
        signed: names of parameters that may be negative.
    """

    build: Callable[[Parameters], StickBreaking]
    sticks: Callable[[Parameters], Distribution]
    shapes: dict[str, tuple[int, ...]]
    signed: tuple[str, ...] = ()

    def parameters(self, batch_shape: tuple[int, ...] = (), *, seed: int = 0) -> Parameters:
        """Random ones with gradient."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            name: torch.randn((*batch_shape, *shape), generator=generator, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        return leaves(
            {name: x if name in self.signed else (x / 2).exp() for name, x in drawn.items()}
        )

    def reference(self, parameters: Parameters) -> Reference:
        return Reference(self.sticks(parameters))


class Reference(dist.TorchDistribution):
    """The density of weights by plain arithmetic, without logarithms."""

    arg_constraints = {}
    support = dist.constraints.simplex

    def __init__(self, sticks: Distribution) -> None:
        self.sticks = sticks
        shape = torch.Size([sticks.event_shape[0] + 1])
        super().__init__(sticks.batch_shape, shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        left = value.flip(-1).cumsum(-1).flip(-1)[..., :-1]
        v = value[..., :-1] / left
        later = torch.arange(v.shape[-1] - 1, -1, -1)
        return self.sticks.log_prob(v) - (later * (1 - v).log()).sum(-1)


def _sigmoid(base: Distribution, kind: type[Distribution]) -> Distribution:
    return kind(base, [SigmoidTransform()], validate_args=False)


def _torch_sigmoid(base: Distribution) -> Distribution:
    return _sigmoid(base, torch.distributions.TransformedDistribution)


def _normals(parameters: Parameters) -> Normal:
    return Normal(parameters["loc"], parameters["scale"], validate_args=False)


def _joint_reference(parameters: Parameters) -> Distribution:
    normals = Normal(parameters["locs"], parameters["coord_scale"], validate_args=False)
    weights = Categorical(logits=parameters["component_logits"], validate_args=False)
    mixture = TorchMixture(weights, Independent(normals, 1), validate_args=False)
    return _torch_sigmoid(mixture)


def _apart(parameters: Parameters) -> Parameters:
    return {**parameters, "locs": 4 * parameters["locs"]}


def _mixtures(kind: type, component: type, parameters: Parameters) -> Any:
    """For each stick a mixture of its own."""
    *own, logits = parameters.values()
    shape = torch.broadcast_shapes(*(x.shape for x in parameters.values()))
    weights = Categorical(logits=logits.expand(shape), validate_args=False)
    return kind(weights, component(*own, validate_args=False), validate_args=False)


TWO = {"a": (2,), "b": (2,)}
OF_EACH = {"loc": (2, 3), "scale": (2, 3), "logits": (2, 3)}
OF_BETAS = {"a": (2, 3), "b": (2, 3), "logits": (2, 3)}
FAMILIES = {
    "kumaraswamy": Family(
        lambda given: KumaraswamyStickBreaking(**given),
        lambda given: Independent(Kumaraswamy(**_named(given)), 1),
        TWO,
    ),
    "beta": Family(
        lambda given: StickBreaking(Beta(**_named(given))),
        lambda given: Independent(Beta(**_named(given)), 1),
        TWO,
    ),
    "logit_normal": Family(
        lambda given: StickBreaking(_sigmoid(_normals(given), TransformedDistribution)),
        lambda given: Independent(_torch_sigmoid(_normals(given)), 1),
        {"loc": (2,), "scale": (2,)},
        signed=("loc",),
    ),
    "logit_mixture": Family(
        lambda given: StickBreaking(
            _sigmoid(MixtureOfDiagNormals(**given), TransformedDistribution)
        ),
        _joint_reference,
        {"locs": (3, 2), "coord_scale": (3, 2), "component_logits": (3,)},
        signed=("locs", "component_logits"),
    ),
    "logit_mixture_apart": Family(
        lambda given: StickBreaking(
            _sigmoid(MixtureOfDiagNormals(**_apart(given)), TransformedDistribution)
        ),
        lambda given: _joint_reference(_apart(given)),
        {"locs": (3, 2), "coord_scale": (3, 2), "component_logits": (3,)},
        signed=("locs", "component_logits"),
    ),
    "logit_mixture_of_each": Family(
        lambda given: StickBreaking(
            _sigmoid(_mixtures(MixtureSameFamily, Normal, given), TransformedDistribution)
        ),
        lambda given: Independent(_torch_sigmoid(_mixtures(TorchMixture, Normal, given)), 1),
        OF_EACH,
        signed=("loc", "logits"),
    ),
    "beta_mixture_of_each": Family(
        lambda given: StickBreaking(_mixtures(MixtureSameFamily, Beta, given)),
        lambda given: Independent(_mixtures(TorchMixture, Beta, given), 1),
        OF_BETAS,
        signed=("logits",),
    ),
    "gem": Family(
        lambda given: StickBreaking.gem(given["concentration"], 3),
        lambda given: Independent(_gem_sticks(given["concentration"]), 1),
        {"concentration": ()},
    ),
    "dirichlet": Family(
        lambda given: StickBreaking.dirichlet(given["concentration"]),
        lambda given: Independent(_dirichlet_sticks(given["concentration"]), 1),
        {"concentration": (3,)},
    ),
}


def _named(given: Parameters) -> dict[str, Any]:
    """As torch's families of two concentrations name them."""
    a, b = torch.broadcast_tensors(given["a"], given["b"])
    return {"concentration1": a, "concentration0": b, "validate_args": False}


def _gem_sticks(concentration: Tensor) -> Beta:
    return Beta(1.0, concentration.unsqueeze(-1).expand(*concentration.shape, 2))


def _dirichlet_sticks(concentration: Tensor) -> Beta:
    first, second, third = concentration.unbind(-1)
    return Beta(torch.stack([first, second], -1), torch.stack([second + third, third], -1))


def families(keep: Callable[[str], bool] = lambda name: True) -> pytest.MarkDecorator:
    """Those whose names are kept, one test each."""
    chosen = [pytest.param(each, id=name) for name, each in FAMILIES.items() if keep(name)]
    return pytest.mark.parametrize("sticks", chosen)
