"""How components are made of parameters, and the draws that several families share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import Logistic, MultivariateStudentT
from torch.distributions import (
    AffineTransform,
    Beta,
    Distribution,
    Gamma,
    Independent,
    Kumaraswamy,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    Pareto,
    StudentT,
    TanhTransform,
    TransformedDistribution,
    Uniform,
    Weibull,
)

from tests.families.components import Components, Draw
from tests.families.references import BatchedAffine
from tests.registry import Parameters, random_factor


def independent(family: type[Distribution]) -> Callable[[Parameters], Independent]:
    """Independent coordinates, whose parameters have the names of the family's arguments."""
    return lambda parameters: Independent(family(**own(parameters)), 1)


def multivariate(family: type[Distribution]) -> Callable[[Parameters], Distribution]:
    """Vectors, with the lower triangle of a ``scale_tril``."""

    def build(parameters: Parameters) -> Distribution:
        arguments = own(parameters)
        if "scale_tril" in arguments:
            arguments["scale_tril"] = arguments["scale_tril"].tril()
        return family(**arguments)

    return build


def different(*builders: Callable[[Parameters], Distribution]):
    """A list of one component after the other, each made of its part of the parameters."""

    def build(parameters: Parameters) -> list[Distribution]:
        dim = parameters["logits"].dim() - 1
        parts = [
            {name: value.select(dim, j) for name, value in parameters.items()}
            for j in range(parameters["logits"].shape[-1])
        ]
        return [builders[j % len(builders)](part) for j, part in enumerate(parts)]

    return build


def location_scale(family: type[Distribution], **settings) -> Components:
    return Components(
        lambda draw: {"loc": draw.locs, "scale": draw.scales}, independent(family), **settings
    )


def scalar(
    family: type[Distribution], draw: Callable[[Draw], Parameters], **settings
) -> Components:
    """Of event shape ``()``."""
    return Components(
        lambda numbers: {name: value.squeeze(-1) for name, value in draw(numbers).items()},
        lambda parameters: family(**own(parameters)),
        dims=(1,),
        event=lambda D: (),
        **settings,
    )


def own(parameters: Parameters) -> Parameters:
    return {name: value for name, value in parameters.items() if name != "logits"}


def draw_full(draw: Draw) -> Parameters:
    return {"loc": draw.locs, "scale_tril": random_factor(draw.scales, draw.randn)}


def draw_student_t(draw: Draw, size: float = 1.0) -> Parameters:
    """With one number of degrees of freedom for each component."""
    full = {name: size * value for name, value in draw_full(draw).items()}
    return {"df": draw.between(1.5, 8.0, draw.locs.shape[:-1]), **full}


def draw_shared_affine(draw: Draw) -> Parameters:
    """A map that all components share."""
    *batch_shape, _, dim = draw.locs.shape
    shared = (*batch_shape, 1, dim)
    return {
        "loc": draw.locs,
        "scale": draw.scales,
        "shift": draw.randn(*shared),
        "factor": random_factor(draw.between(0.7, 1.5, shared), draw.randn),
    }


def affine_tanh(parameters: Parameters) -> TransformedDistribution:
    """Elementwise transforms with parameters for each component; the first one turns around."""
    base = Independent(Logistic(parameters["loc"], parameters["scale"]), 1)
    affine = AffineTransform(parameters["shift"], -parameters["stretch"], event_dim=1)
    return TransformedDistribution(base, [affine, TanhTransform()])


def shared_affine(parameters: Parameters) -> TransformedDistribution:
    base = Independent(Laplace(parameters["loc"], parameters["scale"]), 1)
    affine = BatchedAffine(parameters["shift"], parameters["factor"].tril())
    return TransformedDistribution(base, [affine])


def shared_tanh(parameters: Parameters) -> TransformedDistribution:
    base = multivariate(MultivariateStudentT)(parameters)
    return TransformedDistribution(base, [TanhTransform()])


def uniform(parameters: Parameters) -> Independent:
    """On an interval that all components share."""
    logits = parameters["logits"]
    low, width = (parameters[name] for name in ("low", "width"))
    shape = (*logits.shape, low.shape[-1])
    return Independent(Uniform(low.expand(shape), (low + width).expand(shape)), 1)


def pareto(parameters: Parameters) -> Independent:
    """From an end on that all components share."""
    alpha = parameters["alpha"]
    return Independent(Pareto(parameters["scale"].expand_as(alpha), alpha), 1)


REAL_LINES = different(
    lambda parameters: Independent(Normal(parameters["loc"], parameters["scale"]), 1),
    lambda parameters: Independent(
        StudentT(parameters["df"], parameters["loc"], parameters["scale"]), 1
    ),
    lambda parameters: Independent(Laplace(parameters["loc"], parameters["scale"]), 1),
)
HALF_LINES = different(
    lambda parameters: Independent(Gamma(parameters["shape"], 1 / parameters["scale"]), 1),
    lambda parameters: Independent(
        LogNormal(parameters["scale"].log(), 1 / (1 + parameters["shape"])), 1
    ),
    lambda parameters: Independent(Weibull(parameters["scale"], parameters["shape"]), 1),
)
UNIT_INTERVALS = different(
    independent(Beta),
    independent(Kumaraswamy),
    lambda parameters: Independent(
        Uniform(
            torch.zeros_like(parameters["concentration1"]),
            torch.ones_like(parameters["concentration0"]),
        ),
        1,
    ),
)
ELLIPTICAL = different(
    lambda parameters: MultivariateNormal(
        parameters["loc"], scale_tril=parameters["scale_tril"].tril()
    ),
    multivariate(MultivariateStudentT),
)
