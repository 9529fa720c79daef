"""What the mixture guides share: starting points, the latent site and quantiles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from numbers import Integral
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero, sum_rightmost
from pyro.infer.autoguide import AutoContinuous, init_to_uniform
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_mixtures.distributions import NormalMixture
from pyro_mixtures.distributions.mixture_distribution import WEIGHT_GRADIENTS
from pyro_mixtures.distributions.validation import check_choice
from pyro_mixtures.estimators import ESTIMATORS
from pyro_mixtures.infer.site_quantiles import site_quantiles


class AutoMixture(AutoContinuous):
    """Base of the guides whose posterior is a mixture over the packed latent vector.

    A guide names its ``distribution`` and creates the component parameters of that in
    ``_setup_components(locs)`` from the starting points ``(K, D)``.

    Args:
        model: a Pyro model with continuous latent sites.
        num_components: K, at least 1.
        init_loc_fn: a per-site initialization function of Pyro. Each component starts from a draw
            of its own, moved by a Normal of scale ``init_scale``: equal components would get equal
            gradients for ever.
        init_scale: standard deviation of each component in each unconstrained coordinate.
        transport: as for the distribution.
        weight_gradient: as for the distribution. Under ``Trace_ELBO`` and ``BaselinedTrace_ELBO``
            the guide is unbiased in all three settings. Under ``RenyiELBO`` only ``"pathwise"`` is
            right for few particles; the others are consistent as their number grows, as all
            score functions there are, and for alpha = 0 leave the groups' weights untrained.
            Other objectives need ``"pathwise"``, with which this is an ordinary guide of Pyro.
        estimator: a gradient to use instead of that of ``weight_gradient``, by its name in
            :data:`~pyro_mixtures.estimators.ESTIMATORS`, or a function of the mixture such as
            ``functools.partial(gumbel_soft, temperature=0.1)``. (With that the samples follow a
            relaxed law; quantiles and ``get_posterior`` are those of the mixture.)
            ``"marginalized"`` is an objective instead:
            :class:`~pyro_mixtures.infer.MarginalizedMixture_ELBO`.

    Raises:
        ValueError: for ``num_components`` below 1, an ``init_scale`` that is not positive and
            finite, an unknown ``transport``, ``weight_gradient`` or ``estimator``, or (at the
            first call) a discrete latent site in the model or an ``estimator`` that makes no
            distribution.
        NotImplementedError: at the first call, for a class that the ``estimator`` does not serve.
    """

    distribution: ClassVar[type[NormalMixture]]
    num_components: int
    init_scale: float
    transport: str
    weight_gradient: str
    estimator: str | Callable[[Any], Any] | None

    def __init__(
        self,
        model,
        num_components: int,
        init_loc_fn=init_to_uniform,
        init_scale: float = 0.1,
        transport: str = "displacement",
        weight_gradient: str = "clustered",
        estimator: str | Callable[[Any], Any] | None = None,
    ) -> None:
        if isinstance(num_components, bool) or not isinstance(num_components, Integral):
            raise ValueError(
                f"Expected num_components to be an integer, but got {num_components!r}"
            )
        if num_components < 1:
            raise ValueError(f"Expected num_components >= 1, but got {num_components}")
        if not (isinstance(init_scale, (int, float)) and 0 < init_scale < math.inf):
            raise ValueError(f"Expected a finite init_scale > 0, but got {init_scale!r}")
        check_choice("transport", transport, tuple(self.distribution.transports))
        check_choice("weight_gradient", weight_gradient, WEIGHT_GRADIENTS)
        if estimator == "marginalized":
            raise ValueError(
                "Expected an estimator that evaluates the model once a sample, but got"
                " 'marginalized'; use MarginalizedMixture_ELBO and no estimator"
            )
        if not (estimator is None or callable(estimator)):
            names = tuple(name for name in ESTIMATORS if name != "marginalized")
            check_choice("estimator", estimator, names)
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.num_components = int(num_components)
        self.init_scale = float(init_scale)
        self.transport, self.weight_gradient = transport, weight_gradient
        self.estimator = estimator

    def _setup_components(self, locs: Tensor) -> None:
        raise NotImplementedError

    def _component_parameters(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.distribution.component_parameters}

    def _setup_prototype(self, *args, **kwargs):
        starts = []
        for _ in range(self.num_components):
            super()._setup_prototype(*args, **kwargs)
            starts.append(self._init_loc())
        nodes = self.prototype_trace.iter_stochastic_nodes()  # type: ignore[union-attr]
        sites = {name: site["fn"] for name, site in nodes}
        self._transforms = {name: biject_to(fn.support) for name, fn in sites.items()}
        self._carrier = min(sites, key=lambda name: len(self._cond_indep_stacks[name]))
        locs = torch.stack(starts)  # (K, D)
        self.component_logits = nn.Parameter(locs.new_zeros(self.num_components))
        self._setup_components(locs + self.init_scale * torch.randn_like(locs))

    def get_posterior(self, *args, **kwargs) -> NormalMixture:
        """The mixture over the packed unconstrained latent vector."""
        distribution: Callable[..., NormalMixture] = self.distribution
        return distribution(
            **self._component_parameters(),
            component_logits=self.component_logits,
            transport=self.transport,
            weight_gradient=self.weight_gradient,
        )

    @property
    def _is_pathwise(self) -> bool:
        """Whether an ordinary guide of Pyro will do."""
        return self.estimator is None and self.weight_gradient == "pathwise"

    def sample_latent(self, *args, **kwargs):
        """Sample a packed unconstrained latent vector."""
        if self._is_pathwise:
            return super().sample_latent(*args, **kwargs)
        return self._sample_latent(*args, **kwargs)[0]

    def _sample_latent(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """A latent vector and the log density that the model's sites have to carry."""
        posterior: Any = self.get_posterior(*args, **kwargs)
        if self.estimator is not None:
            given = self.estimator
            posterior = (given if callable(given) else ESTIMATORS[given])(posterior)
            if not isinstance(posterior, dist.TorchDistribution):
                raise ValueError(
                    "Expected estimator to make a distribution of a mixture, but got"
                    f" {type(posterior).__name__} from {given!r}"
                )
        site = _LatentSite(posterior)
        name = f"_{self._pyro_name}_latent"
        latent = pyro.sample(name, site, infer={"is_auxiliary": True})
        return latent, site.carried(latent)

    def forward(self, *args, **kwargs):
        """Sample all latent sites of the model.

        Pyro leaves the auxiliary latent site out of the cost that multiplies score functions,
        which is right for fully reparameterized guides only. With a score term, one of the model's
        sites (the one in the fewest plates) therefore carries the density of the mixture, and the
        auxiliary site the score function.
        """
        if self._is_pathwise:
            return super().forward(*args, **kwargs)
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        latent, carried = self._sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result: dict[str, Tensor] = {}
        for site, unconstrained in self._unpack_latent(latent):
            name, fn = site["name"], site["fn"]
            transform = self._transforms[name]
            value = transform(unconstrained)
            log_density = -transform.log_abs_det_jacobian(unconstrained, value)
            summed = log_density.dim() - value.dim() + fn.event_dim
            log_density = sum_rightmost(log_density, summed)
            if name == self._carrier:
                # the elements of plates sum up to it, scaled as Pyro does for subsamples
                frames = self._cond_indep_stacks[name]
                scale = math.prod((frame.full_size or frame.size) / frame.size for frame in frames)
                log_density = log_density + carried / (fn.batch_shape.numel() * scale)
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                delta = dist.Delta(value, log_density, event_dim=fn.event_dim)
                result[name] = pyro.sample(name, delta)
        return result

    @torch.no_grad()
    def median(self, *args, **kwargs):
        """Median of each latent site: that of the mixture in each unconstrained coordinate."""
        quantiles = self.quantiles([0.5], *args, **kwargs)
        return {name: value.squeeze(0) for name, value in quantiles.items()}

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs):
        """Quantiles of each latent site, by the distribution function of the whole mixture.

        ``quantiles`` is a list or vector of probabilities between 0 and 1, the rest are arguments
        of the model. Returns a dict from site name to values, with the quantiles along the first
        dimension.
        """
        posterior = self.get_posterior(*args, **kwargs)
        return site_quantiles(self, posterior.marginal_icdf, quantiles)


class _LatentSite(dist.TorchDistribution):
    """The auxiliary site: samples of the mixture, of which it carries the score function S only.

    Its ``log_prob`` has the value zero and the gradient of S; what the model's sites carry is the
    mixture's log density less that. ``Trace_ELBO`` takes the gradient of S times the cost, and the
    S at the model's sites has mean zero. ``RenyiELBO`` cannot have a score and an entropy at one
    site: it adds alpha / (1 - alpha) times this ``log_prob``, which with the S at the model's
    sites makes the 1 / (1 - alpha) that is due.
    """

    arg_constraints = {}
    has_rsample = True

    def __init__(self, mixture: Any) -> None:
        # shared by expanded copies, which hold samples of one mixture: also the parts of the last
        # value, for which forward and the trace both ask
        self._shared = {"mixture": mixture}
        super().__init__(mixture.batch_shape, mixture.event_shape, validate_args=False)

    @property
    def mixture(self) -> Any:
        return self._shared["mixture"]

    def replace_mixture(self, mixture: Any) -> None:
        """Have this site and its copies draw from another mixture."""
        self._shared["mixture"] = mixture

    @property
    def support(self):
        return self.mixture.support

    def expand(self, batch_shape, _instance=None):
        new = copy.copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def rsample(self, sample_shape=torch.Size()):
        own = self.mixture.batch_shape
        added = self.batch_shape[: len(self.batch_shape) - len(own)]
        if self.batch_shape != added + own:
            return self.mixture.expand(self.batch_shape).rsample(sample_shape)
        return self.mixture.rsample(torch.Size(sample_shape) + added)

    def log_prob(self, value):
        return self.score_parts(value).log_prob

    def score_parts(self, x, *args, **kwargs):
        log_prob, score, _ = self._mixture_parts(x)
        zero = torch.zeros_like(log_prob) if isinstance(score, int) else score - score.detach()
        return ScoreParts(zero, score, 0)  # type: ignore[arg-type]

    def carried(self, value: Tensor) -> Tensor:
        """The log density for the model's sites, ``(*X,)``."""
        return self._mixture_parts(value).log_prob - self.log_prob(value)

    def has_redundant_score(self, value: Tensor) -> bool:
        """Whether the density at the model's sites carries the S of mean zero."""
        return not is_identically_zero(self._mixture_parts(value).entropy_term)

    def _mixture_parts(self, value: Tensor) -> ScoreParts:
        if self._shared.get("value") is not value:
            self._shared.update(value=value, parts=self.mixture.score_parts(value))
        return self._shared["parts"]
