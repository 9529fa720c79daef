"""Every family of components with what the tests need to judge it: a new one is one more entry."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.distributions import Logistic, MultivariateStudentT
from torch import Tensor
from torch.distributions import (
    Beta,
    Cauchy,
    Chi2,
    Dirichlet,
    Exponential,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    Weibull,
)

from pyro_mixtures.distributions import MixtureDistribution
from tests.families.builders import (
    ELLIPTICAL,
    HALF_LINES,
    REAL_LINES,
    UNIT_INTERVALS,
    affine_tanh,
    draw_full,
    draw_shared_affine,
    draw_student_t,
    independent,
    location_scale,
    multivariate,
    pareto,
    scalar,
    shared_affine,
    shared_tanh,
    uniform,
)
from tests.families.components import Components
from tests.families.references import ExactVonMises
from tests.registry import Parameters, gradients

BOTH = ("telescoping", "displacement")


def positive(_: Parameters) -> tuple[float, float]:
    return 0.0, math.inf


def unit(_: Parameters) -> tuple[float, float]:
    return 0.0, 1.0


COMPONENTS = {
    "normal": location_scale(Normal, transports=BOTH),
    "normal_scalar": scalar(
        Normal, lambda draw: {"loc": draw.locs, "scale": draw.scales}, transports=BOTH
    ),
    "laplace": location_scale(Laplace, kinks=lambda parameters: parameters["loc"]),
    "logistic": location_scale(Logistic, transports=BOTH),
    "gumbel": location_scale(Gumbel, transports=BOTH),
    "cauchy": location_scale(Cauchy, moments=False, transports=BOTH),
    "student_t": Components(
        lambda draw: {"df": draw.between(1.0, 8.0), "loc": draw.locs, "scale": draw.scales},
        independent(StudentT),
        moments=False,
    ),
    "log_normal": Components(
        lambda draw: {"loc": 0.3 * draw.locs, "scale": draw.between(0.3, 1.0)},
        independent(LogNormal),
        moments=False,
        interval=positive,
    ),
    "half_normal": Components(
        lambda draw: {"scale": draw.scales}, independent(HalfNormal), interval=positive
    ),
    "half_cauchy": Components(
        lambda draw: {"scale": draw.scales},
        independent(HalfCauchy),
        moments=False,
        interval=positive,
    ),
    "exponential": Components(
        lambda draw: {"rate": 1 / draw.scales}, independent(Exponential), interval=positive
    ),
    "weibull": Components(
        lambda draw: {"scale": draw.scales, "concentration": draw.between(0.5, 3.0)},
        independent(Weibull),
        moments=False,
        interval=positive,
    ),
    "pareto": Components(
        lambda draw: {
            "scale": draw.between(0.7, 1.5, draw.locs[..., :1, :].shape),
            "alpha": draw.between(0.7, 4.0),
        },
        pareto,
        moments=False,
        interval=lambda parameters: (parameters["scale"], math.inf),
    ),
    "gamma": Components(
        lambda draw: {"concentration": draw.between(0.4, 5.0), "rate": 1 / draw.scales},
        independent(Gamma),
        interval=positive,
    ),
    "gamma_scalar": scalar(
        Gamma,
        lambda draw: {"concentration": draw.between(0.4, 5.0), "rate": 1 / draw.scales},
        interval=positive,
    ),
    "inverse_gamma": Components(
        lambda draw: {"concentration": draw.between(0.5, 5.0), "rate": draw.scales},
        independent(InverseGamma),
        moments=False,
        interval=positive,
    ),
    "chi2": Components(
        lambda draw: {"df": draw.between(0.8, 6.0)}, independent(Chi2), interval=positive
    ),
    "beta": Components(
        lambda draw: {
            "concentration1": draw.between(0.4, 5.0),
            "concentration0": draw.between(0.9, 5.0),
        },
        independent(Beta),
        interval=unit,
    ),
    "kumaraswamy": Components(
        lambda draw: {
            "concentration1": draw.between(0.4, 4.0),
            "concentration0": draw.between(0.9, 4.0),
        },
        independent(Kumaraswamy),
        interval=unit,
    ),
    "von_mises": Components(
        lambda draw: {"loc": draw.locs, "concentration": draw.between(0.2, 6.0)},
        independent(ExactVonMises),
        interval=lambda _: (-math.pi, math.pi),
    ),
    "uniform": Components(
        lambda draw: {
            "low": draw.locs[..., :1, :],
            "width": draw.between(0.7, 1.5, draw.locs[..., :1, :].shape),
        },
        uniform,
        interval=lambda parameters: (parameters["low"], parameters["low"] + parameters["width"]),
    ),
    "multivariate_normal": Components(
        draw_full, multivariate(MultivariateNormal), transports=BOTH
    ),
    "low_rank_normal": Components(
        lambda draw: {
            "loc": draw.locs,
            "cov_factor": draw.randn(*draw.locs.shape, 2),
            "cov_diag": draw.scales.square(),
        },
        multivariate(LowRankMultivariateNormal),
        transports=BOTH,
    ),
    "multivariate_student_t": Components(
        draw_student_t, multivariate(MultivariateStudentT), moments=False
    ),
    "dirichlet": Components(
        lambda draw: {
            "concentration": draw.between(
                0.9, 5.0, (*draw.locs.shape[:-1], draw.locs.shape[-1] + 1)
            )
        },
        multivariate(Dirichlet),
        event=lambda D: (D + 1,),
        interval=unit,
    ),
    "affine_tanh_logistic": Components(
        lambda draw: {
            "loc": 0.3 * draw.locs,
            "scale": draw.between(0.2, 0.6),
            "shift": 0.3 * draw.randn(*draw.locs.shape),
            "stretch": draw.between(0.3, 0.7),
        },
        affine_tanh,
        interval=lambda _: (-1.0, 1.0),
    ),
    "shared_affine_laplace": Components(
        draw_shared_affine, shared_affine, kinks=lambda parameters: parameters["loc"]
    ),
    "shared_tanh_student_t": Components(
        lambda draw: draw_student_t(draw, 0.4),
        shared_tanh,
        moments=False,
        interval=lambda _: (-1.0, 1.0),
    ),
    "mixed_real": Components(
        lambda draw: {"df": draw.between(1.0, 8.0), "loc": draw.locs, "scale": draw.scales},
        REAL_LINES,
        kinks=lambda parameters: parameters["loc"],
        moments=False,
    ),
    "mixed_positive": Components(
        lambda draw: {"shape": draw.between(0.6, 3.0), "scale": draw.scales},
        HALF_LINES,
        moments=False,
        interval=positive,
    ),
    "mixed_unit_interval": Components(
        lambda draw: {
            "concentration1": draw.between(0.4, 4.0),
            "concentration0": draw.between(0.9, 4.0),
        },
        UNIT_INTERVALS,
        interval=unit,
    ),
    "mixed_elliptical": Components(draw_student_t, ELLIPTICAL, moments=False),
}

SAME = {
    name: family
    for name, family in COMPONENTS.items()
    if not isinstance(family.build(family.parameters(D=family.dimension)), list)
}
"""Those of one class."""

each_components = pytest.mark.parametrize(
    "family", [pytest.param(family, id=name) for name, family in COMPONENTS.items()]
)
each_components_and_dim = pytest.mark.parametrize(
    ("family", "D"),
    [
        pytest.param(family, D, id=f"{name}-{D}")
        for name, family in COMPONENTS.items()
        for D in family.dims
    ],
)
each_transport_and_dim = pytest.mark.parametrize(
    ("family", "transport", "D"),
    [
        pytest.param(family, transport, D, id=f"{name}-{transport}-{D}")
        for name, family in COMPONENTS.items()
        for transport in family.transports
        for D in family.dims
    ],
)
each_same = pytest.mark.parametrize(
    "family", [pytest.param(family, id=name) for name, family in SAME.items()]
)


def some_components(*names: str):
    """Where what is tested is not of the family."""
    return pytest.mark.parametrize(
        "family", [pytest.param(COMPONENTS[name], id=name) for name in names]
    )


EXACT = {"rtol": 1e-10, "atol": 1e-12}


def bounded_cost(z: Tensor, event_dims: int) -> Tensor:
    """One number for each sample, of a slope that differs between coordinates."""
    z = z / (1 + z.abs())
    if event_dims == 0:
        return z.cos()
    return (z * torch.arange(1, z.shape[-1] + 1).to(z)).sum(-1).cos()


def cost_gradients(mixture: MixtureDistribution, points: Tensor, parameters: Parameters):
    """Of the samples' costs at given points."""
    z = mixture.reparameterize(points)
    return gradients(bounded_cost(z, len(mixture.event_shape)), parameters)
