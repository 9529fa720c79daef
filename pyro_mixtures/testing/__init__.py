"""What every distribution keeps, as checks that run without pytest, for those of your own."""

from pyro_mixtures.testing.contract import CHECKS, check
from pyro_mixtures.testing.distribution_case import DistributionCase

__all__ = ["CHECKS", "DistributionCase", "check"]
