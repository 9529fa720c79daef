"""What cannot be moved by a velocity is refused with a way out, and nothing else is."""

import pytest
import torch
from pyro.distributions import MultivariateStudentT
from pyro.distributions.transforms import LowerCholeskyAffine
from torch.distributions import (
    AbsTransform,
    AffineTransform,
    Bernoulli,
    Cauchy,
    Exponential,
    ExpTransform,
    Gamma,
    HalfCauchy,
    Independent,
    InverseGamma,
    Laplace,
    LKJCholesky,
    Multinomial,
    MultivariateNormal,
    Normal,
    Pareto,
    Poisson,
    RelaxedOneHotCategorical,
    SoftmaxTransform,
    StudentT,
    Uniform,
    Weibull,
    Wishart,
)

from pyro_mixtures import MixtureSameFamily
from tests.families.refusing import (
    EYE,
    ONE,
    TWO,
    VECTORS,
    assert_refused,
    mixed,
    refused,
    same,
    transformed,
    weights,
)
from tests.registry import same_group

NO_VELOCITY = {
    "discrete": (lambda: same(Poisson(ONE)), ["Poisson", "discrete", "TraceEnum_ELBO"]),
    "categorical": (lambda: same(weights(2, 3)), ["Categorical", "discrete"]),
    "vectors of counts": (lambda: same(Multinomial(3, EYE[:2])), ["Multinomial", "discrete"]),
    "discrete in Independent": (
        lambda: same(Independent(Bernoulli(torch.full((2, 3), 0.5)), 1)),
        ["discrete", "pyro.distributions.MixtureSameFamily"],
    ),
    "one of several discrete": (
        lambda: mixed(Gamma(1.0, 1.0), Poisson(1.0)),
        ["Poisson", "discrete"],
    ),
    "relaxed categories": (
        lambda: same(RelaxedOneHotCategorical(torch.tensor(1.0), logits=torch.zeros(2, 3))),
        ["ExpRelaxedCategorical", "no rule", "register_velocity"],
    ),
    "Wishart": (
        lambda: same(Wishart(torch.tensor([4.0, 4.0]), EYE.expand(2, 3, 3))),
        ["Wishart", "no rule", "register_velocity"],
    ),
    "matrices in one of several": (
        lambda: mixed(LKJCholesky(3), LKJCholesky(3)),
        ["LKJCholesky", "register_velocity"],
    ),
    "no inverse": (
        lambda: same(transformed(Normal(ONE, 1.0), AbsTransform())),
        ["AbsTransform()", "invertible", "register_velocity"],
    ),
    "no inverse within Independent": (
        lambda: same(
            Independent(transformed(Normal(EYE[:2], 1.0), ExpTransform(), AbsTransform()), 1)
        ),
        ["AbsTransform()", "invertible"],
    ),
    "no inverse of vectors": (
        lambda: same(transformed(VECTORS, SoftmaxTransform())),
        ["SoftmaxTransform()", "invertible"],
    ),
    "a map for each component": (
        lambda: same(
            transformed(VECTORS, LowerCholeskyAffine(torch.zeros(2, 3), EYE.expand(2, 3, 3)))
        ),
        ["LowerCholeskyAffine", "share", "parameters for each", "weight_gradient='hybrid'"],
    ),
    "different maps": (
        lambda: mixed(
            *(
                transformed(VECTORS.expand((2,)), LowerCholeskyAffine(torch.zeros(3), scale * EYE))
                for scale in (1.0, 2.0)
            ),
        ),
        ["LowerCholeskyAffine", "share their transforms"],
    ),
    "elliptical beside others": (
        lambda: mixed(
            MultivariateNormal(torch.zeros(3), EYE), Independent(Normal(torch.zeros(3), 1.0), 1)
        ),
        ["same coordinates", "MultivariateNormal, Independent", "weight_gradient='hybrid'"],
    ),
}


@refused(NO_VELOCITY)
def test_no_way_to_move(build, words):
    assert_refused(NotImplementedError, build, words)


@pytest.mark.parametrize(
    "components",
    [
        Cauchy(10 * TWO, 1.0),
        StudentT(ONE, 10 * TWO, 1.0),
        Independent(Cauchy(10 * torch.eye(2, 3), 1.0), 1),
        MultivariateStudentT(ONE, 10 * torch.eye(2, 3), EYE.expand(2, 3, 3)),
    ],
    ids=lambda components: type(components).__name__,
)
def test_clustered_without_finite_moments(components):
    """By location and scale where the family has them."""
    q = same(components, weight_gradient="clustered")
    assert q.rsample((5,)).shape == (5, *components.event_shape)
    assert same_group(q).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    "components",
    [
        HalfCauchy(TWO),
        InverseGamma(TWO, 1.0),
        transformed(Laplace(ONE, 1.0), AffineTransform(0.0, 2.0)),
    ],
    ids=lambda components: type(components).__name__,
)
def test_clustered_without_any_moments(components):
    """Makes one group, of which the transport carries all."""
    q = same(components, weight_gradient="clustered")
    assert same_group(q).all()
    assert q.score_parts(q.rsample((5,))).score_function == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: same(Pareto(ONE, TWO)),
        lambda: same(Uniform(0.5 * ONE, 2 * ONE)),
        lambda: same(Uniform(torch.tensor([[0.0], [1.0]]).expand(2, 2), torch.full((2, 2), 3.0))),
        lambda: same(transformed(Exponential(ONE), AffineTransform(ONE, TWO))),
        lambda: same(transformed(Exponential(ONE), AffineTransform(ONE, -TWO))),
        lambda: same(transformed(VECTORS, LowerCholeskyAffine(torch.zeros(3), EYE))),
        lambda: same(
            transformed(
                Independent(Uniform(torch.zeros(2, 3), 2 * torch.ones(2, 3)), 1),
                LowerCholeskyAffine(torch.zeros(3), EYE),
            )
        ),
        lambda: mixed(Uniform(0.0, 1.0), transformed(Uniform(0.0, 2.0), AffineTransform(0, 0.5))),
        lambda: mixed(
            Gamma(1.0, 1.0), Weibull(1.0, 1.0), transformed(Normal(0.0, 1.0), ExpTransform())
        ),
        lambda: MixtureSameFamily(weights(1), Uniform(torch.zeros(1), torch.ones(1))),
    ],
)
def test_nothing_else_is_refused(build):
    """Equal ends, ends that differ in the batch only, transforms onto the same support."""
    assert build().batch_shape in {(), (1,), (2,)}
