"""``Trace_ELBO`` for score function terms: a baseline, and blending with transport."""

from __future__ import annotations

from typing import Any

from pyro_mixtures.infer.objectives.evidence_bound import EvidenceBound
from pyro_mixtures.infer.objectives.sample_draws import SampleDraws


class BaselinedTrace_ELBO(SampleDraws, EvidenceBound):
    r"""``Trace_ELBO`` that subtracts a baseline b from the cost of each score function term.

    The score term of a site is :math:`(f - b) \nabla S`, :math:`f = \log p - \log q`. With several
    particles b is the mean of the *other* particles' f (leave-one-out); with one particle it is a
    decaying average of f over earlier steps, which starts from an independent evaluation. Neither
    depends on the particle it is applied to, so the gradient stays unbiased. A drop-in for
    ``Trace_ELBO``; sites without a score term are untouched.

    Mixtures whose weights' gradient is ``"clustered"`` are blended: within a group of components
    the transport and the score function estimate the same gradient, and the share of each is the
    one of least variance by the moments of earlier steps
    (:class:`~pyro_mixtures.samples.blending.Blending`), whatever the current one draws. As
    the score function takes over where the transport's variance is large, a group may be a chain
    of components that overlap.

    Args:
        num_particles: particles a step.
        baseline_decay: weight of the past in the decaying average, in [0, 1).
        blending: blend, or leave the groups to the transport alone.
        blending_decay: weight of the past in the moments, in [0, 1).
        sticking_the_landing: evaluate the guide's density with its parameters detached
            (:func:`~pyro_mixtures.infer.detached`): unbiased, and without variance where the guide
            meets the posterior.
        kwargs: as for ``Trace_ELBO``.

    Raises:
        ValueError: for a decay outside [0, 1), and for a guide that lacks a latent site of the
            model.

    Reference:
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives* (2016), section 2.5,
        for the leave-one-out baseline.

    Example:
        >>> elbo = BaselinedTrace_ELBO(num_particles=8, vectorize_particles=True)
        >>> checkpoint = elbo.state_dict()  # the averages and moments learned so far
        >>> elbo.load_state_dict(checkpoint)
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        baseline_decay: float = 0.9,
        blending: bool = True,
        blending_decay: float = 0.995,
        sticking_the_landing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_particles,
            baseline_decay=baseline_decay,
            blending=blending,
            blending_decay=blending_decay,
            **kwargs,
        )
        self.sticking_the_landing = sticking_the_landing
