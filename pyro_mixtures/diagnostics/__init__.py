"""What to look at when a fit is noisy, and how far to trust it when it is done."""

from pyro_mixtures.diagnostics.component_summary import ComponentSummary, component_summary
from pyro_mixtures.diagnostics.distribution_gradients import gradient_variance
from pyro_mixtures.diagnostics.elbo_gradients import elbo_gradient_variance
from pyro_mixtures.diagnostics.elbo_terms import ELBOTerms, elbo_terms
from pyro_mixtures.diagnostics.evaluate import Evaluation, evaluate
from pyro_mixtures.diagnostics.evaluate_data import evaluate_data
from pyro_mixtures.diagnostics.moments import GradientVariance
from pyro_mixtures.diagnostics.nonfinite_sites import nonfinite_gradient, nonfinite_site
from pyro_mixtures.diagnostics.psis import PSIS, psis
from pyro_mixtures.numerics.pareto import pareto_smoothed

__all__ = [
    "PSIS",
    "ComponentSummary",
    "ELBOTerms",
    "Evaluation",
    "GradientVariance",
    "component_summary",
    "elbo_gradient_variance",
    "elbo_terms",
    "evaluate",
    "evaluate_data",
    "gradient_variance",
    "nonfinite_gradient",
    "nonfinite_site",
    "pareto_smoothed",
    "psis",
]
