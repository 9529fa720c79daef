"""Every guide of the matrix with the objectives that draw each component: finite differences.

With the same random numbers their losses are smooth functions of the parameters.
"""

import pyro
import pytest
import torch

from pyro_mixtures.infer import SIWAE_ELBO, MarginalizedMixture_ELBO
from tests.infer.matrix import fresh, nesting
from tests.infer.matrix_guides import GUIDES
from tests.pairwise import in_pairs

STEP = 1e-5


@in_pairs
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("vectorized", [True, False])
def test_gradients_are_those_of_the_loss(guide, objective, particles, vectorized):
    with fresh(torch.float64):
        case = GUIDES[guide](reference=False)
        case.guide()  # the first call of some sets them up
        elbo = objective(
            particles, vectorize_particles=vectorized, max_plate_nesting=nesting(guide) - 1
        )

        def loss(moved):
            with torch.no_grad():
                for leaf, shift in zip(case.leaves, directions, strict=True):
                    leaf += moved * shift
            pyro.set_rng_seed(1)
            try:
                return elbo.loss(case.model, case.guide)
            finally:
                with torch.no_grad():
                    for leaf, shift in zip(case.leaves, directions, strict=True):
                        leaf -= moved * shift

        directions = [torch.randn_like(leaf) for leaf in case.leaves]
        for leaf in case.leaves:
            leaf.grad = None
        pyro.set_rng_seed(1)
        value = elbo.loss_and_grads(case.model, case.guide)
        assert value == pytest.approx(loss(0.0), rel=1e-12)
        slope = sum((x.grad * v).sum() for x, v in zip(case.leaves, directions, strict=True))
        difference = (loss(STEP) - loss(-STEP)) / (2 * STEP)
        assert slope.item() == pytest.approx(difference, rel=1e-5, abs=1e-6)
