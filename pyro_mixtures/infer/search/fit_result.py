"""What a search for the modes of a model's posterior gives back."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_value
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer.guides.auto_diagonal_normal_mixture import AutoDiagonalNormalMixture
from pyro_mixtures.infer.guides.auto_multivariate_normal_mixture import (
    AutoMultivariateNormalMixture,
)
from pyro_mixtures.infer.search.findings import alarms, notes, trusted, weightless
from pyro_mixtures.infer.search.fit_summary import FitSummary
from pyro_mixtures.infer.search.label_expansion import (
    copy_groups,
    expanded,
    is_symmetric,
    label_report,
)
from pyro_mixtures.infer.search.mixture_draws import mixture_draws
from pyro_mixtures.infer.search.mode_groups import NormalMixture, mode_groups
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from pyro_mixtures.infer.search.model_runs import random_numbers_kept
from pyro_mixtures.infer.search.modes import Mode, modes_of
from pyro_mixtures.infer.search.symmetries import LabelSymmetry, label_symmetries
from pyro_mixtures.numerics.pareto import FEWEST_SAMPLES
from pyro_mixtures.numerics.validation import check_at_least
from pyro_mixtures.numerics.weighing import Weighing, weigh

SAMPLES = 4000
"""Draws by which a fit is judged, unless another number is asked for."""

CHUNK = 500
"""Draws of which the mixture's log density is taken at once."""


class _Weighed(NamedTuple):
    """Draws ``(S, D)`` with their importance weights, and how many have no density."""

    draws: Tensor
    weighing: Weighing
    without_density: int


class FitResult:
    """The posterior that a fit has found: draws, a guide, its modes, and a verdict.

    Args:
        search: the search, at its end.
        density: of the model.
        model: the Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        seconds: that the search took.
        posterior: a mixture in place of that of the search.
        groups: indices of the components of each mode, where they are known.

    Attributes:
        posterior: the mixture of Normals over the unconstrained vector, packed as Pyro's
            ``AutoContinuous`` does it, in float64: full covariances, or for many coordinates
            diagonal ones.
        search: as given, with its evaluations and optima.
        density: as given.
        seconds: as given.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_mixtures as pm
        >>> def model(distance):  # the data leave the sign of x open
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=distance)
        >>> result = pm.fit(model, torch.tensor(3.0), max_evaluations=10_000, progress=False)
        >>> sorted(round(float(mode.location["x"]), 1) for mode in result.modes)
        [-2.9, 2.9]
        >>> result.draws(1000)["x"].shape
        torch.Size([1000])
        >>> result.summary().passed_checks
        True
        >>> print(result.summary().notes[-1])
        cannot be known: whether there are modes that no start leads to; of modes whose basin
        holds 0.99 % of the prior, 300 starts miss one in 20, and of smaller basins more
    """

    posterior: NormalMixture

    def __init__(
        self,
        search: Any,
        density: ModelLogDensity,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seconds: float,
        *,
        posterior: NormalMixture | None = None,
        groups: list[Tensor] | None = None,
    ) -> None:
        self.search, self.density, self.seconds = search, density, seconds
        self.posterior = search.mixture if posterior is None else posterior
        self._call, self._known_groups = (model, args, kwargs), groups
        self._weighed: dict[int, _Weighed] = {}
        self._summaries: dict[int, FitSummary] = {}

    @functools.cached_property
    def guide(self) -> AutoMultivariateNormalMixture | AutoDiagonalNormalMixture:
        """A guide of the model whose posterior is this mixture, in the dtype of the model.

        ``Predictive``, ``quantiles`` and further steps of ``SVI`` go on from it. It is made once,
        with names of its own in Pyro's store: guides of other results share no parameters with it.
        Of a model with discrete sites, which are summed out here, it is a guide of the others.
        """
        model, args, kwargs = self._call
        is_diagonal = isinstance(self.posterior, MixtureOfDiagNormals)
        kind = AutoDiagonalNormalMixture if is_diagonal else AutoMultivariateNormalMixture
        somewhere = self._constrain(self.posterior.locs.detach()[:1])
        guide = kind(
            poutine.block(model, hide_fn=self._is_summed_out),
            self.posterior.num_components,
            # for a run of the model on sites that cannot be drawn, as ImproperUniform
            init_to_value(values={name: value[0] for name, value in somewhere.items()}),
        )
        guide.keep_apart()
        guide.set_posterior(self.posterior)
        with random_numbers_kept(), poutine.block():
            guide(*args, **kwargs)
        return guide

    def _is_summed_out(self, message: Any) -> bool:
        """Whether a site is latent, and not among those of the posterior."""
        latent = message["type"] == "sample" and not message["is_observed"]
        known = message["name"] in self.density.site_slices
        return latent and not known and not site_is_subsample(message)

    def draws(
        self, num_samples: int, *, resample: bool = False, seed: int = 0
    ) -> dict[str, Tensor]:
        """Draws of the posterior in the model's own terms.

        Args:
            num_samples: how many.
            resample: draw with replacement from at least 4000 draws of the mixture, by their
                importance weights, which brings them nearer to the posterior where the weights
                can be trusted. Many more than ``summary().effective_sample_size`` are mostly
                repetitions.
            seed: of random numbers; those of torch are left as they are.

        Returns:
            From the name of each latent site to ``(num_samples, *shape)``.

        Raises:
            ValueError: for ``num_samples < 1``.
        """
        check_at_least(1, num_samples=num_samples)
        generator = torch.Generator().manual_seed(seed)
        if not resample:
            return self._constrain(mixture_draws(self.posterior, num_samples, generator))
        known = self._weigh(max(SAMPLES, num_samples))
        if not trusted(known.weighing):
            warnings.warn(
                f"Importance weights with a k-hat of {known.weighing.khat:.2f} do not mend draws:"
                " summary() tells more",
                stacklevel=2,
            )
        weights = known.weighing.log_weights.exp().cpu()
        index = torch.multinomial(weights, num_samples, replacement=True, generator=generator)
        return self._constrain(known.draws[index.to(known.draws.device)])

    def summary(self, num_samples: int = SAMPLES) -> FitSummary:
        """Figures and a verdict: how good the fit is, and how far to trust it.

        The log density is evaluated at that many draws of the mixture, always the same ones, and
        at some points between modes, which all count as evaluations. A second call with the same
        number returns what is known.

        Args:
            num_samples: draws of the mixture, at least 25.

        Raises:
            ValueError: for ``num_samples < 25``.
        """
        if num_samples not in self._summaries:
            self._summaries[num_samples] = self._summarized(num_samples)
        return self._summaries[num_samples]

    @property
    def modes(self) -> list[Mode]:
        """The modes, the heaviest first, as in :meth:`summary`.

        A mode is a group of components that no valley separates, where the density falls to less
        than half of that at the lower peak (:func:`~.mode_groups.mode_groups` has the rule).
        """
        return self.summary().modes

    def expand_labels(self) -> FitResult:
        """The same with all copies of the modes that an exchange of labels makes.

        A mixture model whose K clusters have the same prior has K! copies of each mode, of which a
        search finds some. ``summary()`` tells of labels that can be exchanged. All components are
        moved to one copy, where together they fit it better than each alone, and from there to
        every other one.

        The modes of the result are the copies.

        Returns:
            Another result; this one, if no labels can be exchanged or none of their copies is
            missing.

        Raises:
            ValueError: for labels with more permutations than a mixture can have components.
        """
        mixture, groups = self.posterior, None
        for symmetry in self._symmetries:
            if not is_symmetric(mixture, symmetry):
                mixture = expanded(mixture, symmetry, self.search.evaluations).mixture
                groups = copy_groups(mixture, symmetry)
        if groups is None:
            return self
        given = self.search, self.density, *self._call, self.seconds
        return FitResult(*given, posterior=mixture, groups=groups)

    @functools.cached_property
    def _symmetries(self) -> tuple[LabelSymmetry, ...]:
        if isinstance(self.posterior, MixtureOfDiagNormals):
            return ()
        return label_symmetries(self.density, self.search.evaluations)

    @property
    def log(self) -> list[str]:
        """What the search has added and left out, and when."""
        return self.search.log

    def to_arviz(self, num_samples: int = SAMPLES, *, seed: int = 0) -> Any:
        """Draws as ArviZ takes them: an ``xarray.DataTree`` with a group ``posterior``.

        They are one chain of independent draws, resampled by importance weights where these can
        be trusted. The attribute ``resampled`` of the group tells whether they are.

        Args:
            num_samples: how many.
            seed: of random numbers.

        Raises:
            ImportError: without ``arviz-base``.
        """
        try:
            import arviz_base
        except ImportError as error:
            raise ImportError(
                "to_arviz needs arviz-base: pip install 'pyro-mixtures[arviz]'"
            ) from error
        resampled = trusted(self._weigh(SAMPLES).weighing)
        draws = self.draws(num_samples, resample=resampled, seed=seed)
        posterior = {name: values.cpu().numpy()[None] for name, values in draws.items()}
        attributes = {"inference_library": "pyro_mixtures", "resampled": int(resampled)}
        return arviz_base.from_dict({"posterior": posterior}, attrs={"posterior": attributes})

    def __repr__(self) -> str:
        count, size = self.posterior.num_components, self.density.dimension
        return f"FitResult of {count} components over {size} coordinates: print(result.summary())"

    def _summarized(self, num_samples: int) -> FitSummary:
        draws, weighing, without_density = self._weigh(num_samples)
        modes = modes_of(
            self.posterior,
            self._groups,
            self._constrain,
            draws,
            weighing.log_weights if trusted(weighing) else None,
        )
        told = weighing, without_density
        symmetries = [label_report(self.posterior, each) for each in self._symmetries]
        evaluations = self.search.evaluations
        return FitSummary(
            elbo=weighing.elbo,
            elbo_error=weighing.elbo_error,
            log_evidence=weighing.log_evidence,
            log_evidence_error=weighing.log_evidence_error,
            khat=weighing.khat,
            effective_sample_size=weighing.effective_sample_size,
            num_samples=num_samples,
            num_components=self.posterior.num_components,
            modes=modes,
            evaluations=evaluations.count,
            without_mass=evaluations.without_mass,
            failed=evaluations.failed,
            seconds=self.seconds,
            alarms=alarms(self.search, self.density, self.posterior, *told),
            symmetries=symmetries,
            notes=notes(self.search, self.density, *told),
        )

    def _constrain(self, z: Tensor) -> dict[str, Tensor]:
        return self.density.constrain(z.to(self.density.device))

    @functools.cached_property
    def _groups(self) -> list[Tensor]:
        if self._known_groups is not None:
            return self._known_groups
        return mode_groups(self.posterior, self.search.evaluations.values)

    def _weigh(self, num_samples: int) -> _Weighed:
        """Draws with importance weights, always the same ones for a number."""
        check_at_least(FEWEST_SAMPLES, num_samples=num_samples)
        if num_samples not in self._weighed:
            generator = torch.Generator().manual_seed(0)
            draws = mixture_draws(self.posterior, num_samples, generator)
            with torch.no_grad():
                log_q = torch.cat([self.posterior.log_prob(each) for each in draws.split(CHUNK)])
            log_p = self.search.evaluations.values(draws)
            without_density = int((log_p == -math.inf).sum())
            useless = without_density == num_samples
            weighing = weightless(num_samples) if useless else weigh(log_p - log_q)
            self._weighed[num_samples] = _Weighed(draws, weighing, without_density)
        return self._weighed[num_samples]
