"""The objectives of this package, which tests of guides cross with them."""

from pyro_mixtures.infer import (
    SIWAE_ELBO,
    BaselinedTrace_ELBO,
    ImportanceWeighted_ELBO,
    MarginalizedMixture_ELBO,
)

OBJECTIVES = (
    BaselinedTrace_ELBO,
    MarginalizedMixture_ELBO,
    SIWAE_ELBO,
    ImportanceWeighted_ELBO,
)
