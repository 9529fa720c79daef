"""All that a mixture can do works for every family that has what it takes; else it is named."""

import re

import pytest
import torch
from torch.distributions import Distribution

from pyro_mixtures import kl_bounds
from pyro_mixtures.components import Normals
from pyro_mixtures.diagnostics import component_summary
from pyro_mixtures.estimators import (
    expectation,
    graves,
    gumbel_hard,
    gumbel_soft,
    implicit,
    marginalized,
)
from pyro_mixtures.estimators.strata import component_samples
from tests.families.registry import EXACT, bounded_cost, each_components
from tests.registry import gradients, relative_error
from tests.samples.test_blending import knowing

PIECES = {
    "marginal": lambda q: q.marginal([0]),
    "condition": lambda q: q.condition([0], torch.zeros(1)),
    "affine": lambda q: q.affine(torch.ones(q.event_shape.numel())),
    "covariance_matrix": lambda q: q.covariance_matrix,
    "entropy_bounds": lambda q: q.entropy_bounds(),
    "kl_bounds": lambda q: kl_bounds(q, q),
    "implicit": implicit,
    "graves": graves,
    "gumbel_soft": gumbel_soft,
    "gumbel_hard": gumbel_hard,
}


@each_components
@pytest.mark.parametrize("expand", [False, True])
def test_what_is_refused(family, expand):
    """Of components that are not Normal, with the names of the piece and of the families."""
    _, q = family.example((2,))
    q = q.expand((3, 2)) if expand else q
    if isinstance(q.components, Normals):
        return
    for name, piece in PIECES.items():
        if name == "condition" and q.event_shape.numel() == 1:
            continue
        with pytest.raises(NotImplementedError) as caught:
            piece(q)
        words = str(caught.value)
        assert re.search(rf"(?<!\w){name}(?!\w)", words), words
        for each in q.components.distributions:
            assert type(innermost(each)).__name__ in words


def innermost(distribution: Distribution) -> Distribution:
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return distribution


def clustered(q):
    return q.with_weight_gradient("clustered")


def blended(q):
    return clustered(q).blended(knowing([0.8, 0.3, 0.6], [1.0, 1.0, 1.0]))


WAYS = {
    "pathwise": lambda q: q.with_weight_gradient("pathwise"),
    "clustered": clustered,
    "hybrid": lambda q: q.with_weight_gradient("hybrid"),
    "blended": blended,
}


@each_components
def test_expanded_ones_are_samples_of_the_same(family):
    """Whatever the gradient of the weights; in a loss that uses the score term."""
    parameters, q = family.example((2,), spread=2.0)
    points = q.sample((6,))
    for name, way in WAYS.items():
        results = []
        for each, shape in (
            (way(q), (6, 2)),
            (way(q).expand((3, 2)), (2, 3, 2)),
            (way(q.expand((3, 2))), (2, 3, 2)),
        ):
            z = each.reparameterize(points.reshape(shape + q.event_shape))
            cost = bounded_cost(z, len(q.event_shape))
            score = each.score_parts(z).score_function
            loss = (cost + cost.detach() * score).sum() + each.log_prob(z).sum()
            results.append(gradients(loss, parameters))
        for result in results[1:]:
            assert relative_error(result, results[0]) < 1e-9, name


@each_components
@pytest.mark.parametrize("expand", [False, True])
def test_what_is_offered(family, expand):
    """By all: densities of the parts, groups, stratified samples, summaries, and strata."""
    parameters, q = family.example((2,))
    q = q.expand((3, 2)) if expand else q
    z, event_dims = q.sample((4,)), len(q.event_shape)
    parts = q.component_log_prob(z)
    torch.testing.assert_close(parts, family.component_log_prob(parameters, z), **EXACT)
    joint = parts + q.log_weights
    torch.testing.assert_close(q.log_prob(z), joint.logsumexp(-1), **EXACT)
    torch.testing.assert_close(q.responsibilities(z), joint.softmax(-1), **EXACT)
    assert q.groups.shape == (*q.batch_shape, 3)
    assert component_summary(q, num_samples=20).overlaps.shape == (*q.batch_shape, 3, 3)

    def cost(z):
        return bounded_cost(z, event_dims)

    for estimator in ("stratified", "score", blended):
        loss = expectation(q, cost, estimator=estimator, num_samples=4)
        assert loss.shape == q.batch_shape
        assert all(x.isfinite().all() for x in gradients(loss.sum(), parameters).values())
    if not isinstance(q.components, Normals) and not all(
        each.has_rsample for each in q.components.distributions
    ):
        for function in (
            component_samples,
            lambda q: marginalized(q, cost, num_samples=3),
        ):
            with pytest.raises(NotImplementedError, match="VonMises, which has none"):
                function(q)
        return
    strata = component_samples(q, (5,))
    assert strata.shape == (5, 3, *q.batch_shape, *q.event_shape)
    marginal = marginalized(q, cost, num_samples=3)
    assert marginal.shape == q.batch_shape
    for result in (cost(strata).sum(), marginal.sum()):
        values = gradients(result, parameters)
        assert all(x.isfinite().all() for x in values.values())
