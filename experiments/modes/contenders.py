"""Ways of inference that are compared.

A contender takes a target, a seed and a budget of evaluations, and yields what it has found as it
goes on; its last state is its result. The clock stands still while a state is judged. Another
contender is a function of this form, and a line in :data:`CONTENDERS`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pyro
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoMultivariateNormal,
)
from pyro.optim import ExponentialLR  # type: ignore[attr-defined]
from torch import Tensor

from experiments.modes.judgement import State
from experiments.modes.targets import Target
from pyro_mixtures.infer import (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    BaselinedTrace_ELBO,
    MarginalizedMixture_ELBO,
    ModeSearch,
)
from pyro_mixtures.infer.search.mode_groups import NormalMixture, normal_scales

Contender = Callable[[Target, int, int], Iterator[State]]

COMPONENTS = 20
PARTICLES = 20
LOOKS = 8
"""Times at which a contender is judged."""
STARTS = 300
"""Draws of the prior from which ``fit`` ascends, unless the budget is for fewer."""
GROWTH = 1.4
"""Of the evaluations of ``fit`` between two times at which it is judged."""
CHUNK = 500
"""Draws of which the log density of a large mixture is taken at once."""


def schedule(steps: int) -> list[int]:
    """Steps after which a contender is judged: denser at first, the last among them."""
    return sorted({max(1, round(steps * 2.0**-k)) for k in range(LOOKS)})


def _number_alive(guide: AutoContinuous) -> int | None:
    logits = getattr(guide, "component_logits", None)
    return None if logits is None else int((logits.softmax(-1) > 1e-3).sum())


def fit(target: Target, seed: int, budget: int) -> Iterator[State]:
    """The search behind ``pyro_mixtures.fit``, which mostly ends before the budget.

    It is judged after its starts, now and then while it grows, before its last steps, and at its
    end.

    Args:
        target: the density.
        seed: of the starts, the search, and the draws by which it is judged.
        budget: evaluations up to 20 dimensions, from which on it grows as the default does.
    """
    pyro.set_rng_seed(seed)
    starts = target.prior_draws(
        max(2, min(STARTS, budget // 10)), torch.Generator().manual_seed(seed)
    )
    most = int(budget * max(1.0, min(target.dimension, 100) / 20))
    search = ModeSearch(target.log_density, starts, max_evaluations=most, seed=seed)
    look = 0.0
    while not search.done:
        growing = search.stopped is None
        search.step()
        settles = growing and search.stopped is not None
        if search.done or settles or (growing and search.evaluations.count >= look):
            look = GROWTH * search.evaluations.count
            yield _as_found(search.evaluations.count, search.mixture)


def _as_found(evaluations: int, mixture: NormalMixture) -> State:
    def log_density(z: Tensor) -> Tensor:
        return torch.cat([mixture.log_prob(part) for part in z.split(CHUNK)])

    return State(
        evaluations, functools.partial(_even_draws, mixture), log_density, mixture.num_components
    )


def _even_draws(mixture: NormalMixture, count: int) -> Tensor:
    """Draws of which each component has its share, up to one: masses of modes without noise."""
    locs, scales = mixture.locs, normal_scales(mixture)
    places = (torch.arange(count) + torch.rand(1)) / count
    edges = mixture.log_weights.exp().cumsum(-1)
    own = torch.searchsorted(edges, places).clamp(max=len(edges) - 1)[torch.randperm(count)]
    noise = torch.randn(count, locs.shape[-1], dtype=locs.dtype)
    if scales.dim() == locs.dim():
        return locs[own] + scales[own] * noise
    z = torch.empty_like(noise)
    for each in own.unique():  # a factor for each draw would be much memory
        z[own == each] = locs[each] + noise[own == each] @ scales[each].mT
    return z


def svi(
    target: Target,
    seed: int,
    budget: int,
    *,
    make: Callable[[Any], AutoContinuous],
    objective: Callable[[], Any],
    rate: float = 0.02,
) -> Iterator[State]:
    """A guide by Adam, whose rate falls to a twentieth.

    Args:
        target: the posterior.
        seed: of the random numbers.
        budget: evaluations, :data:`PARTICLES` a step.
        make: the guide of a model.
        objective: the loss.
        rate: of Adam at the start.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = make(target.model)
    steps = max(1, budget // PARTICLES)
    optimizer = ExponentialLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": rate},
            "gamma": 0.05 ** (1 / steps),
        }
    )
    inference = SVI(target.model, guide, optimizer, objective())
    looks = schedule(steps)
    for step in range(1, steps + 1):
        loss = inference.step()
        if math.isnan(loss):
            raise FloatingPointError(f"the loss is NaN at step {step}")
        optimizer.step()
        if step in looks:
            posterior = guide.get_posterior()
            yield State(
                step * PARTICLES,
                lambda count, posterior=posterior: posterior.sample((count,)),  # type: ignore[misc]
                posterior.log_prob,
                _number_alive(guide),
            )


def chains(target: Target, seed: int, budget: int, *, count: int = 4) -> Iterator[State]:
    """NUTS with several chains from draws of the prior, one after another.

    A chain whose warm-up takes its share of the budget gives the second half of that.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    starts = target.prior_draws(count, torch.Generator().manual_seed(seed))
    used, kept = 0, []

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        nonlocal used
        used += 1
        return -target.log_density(parameters["z"].unsqueeze(0)).squeeze(0)

    for chain, start in enumerate(starts):
        limit = (chain + 1) * budget // count
        warm: list[Tensor] = []
        draws: list[Tensor] = []

        def keep(kernel, parameters, stage, step, draws=draws, warm=warm, limit=limit):
            points = draws if stage == "Sample" else warm
            points.append(parameters["z"].detach().clone())
            if used >= limit:
                raise _Enough

        kernel = NUTS(potential_fn=potential, max_tree_depth=8)
        warmup = max(1, min(300, budget // (count * 40)))
        sampler = MCMC(
            kernel,
            num_samples=max(1, limit),
            warmup_steps=warmup,
            initial_params={"z": start},
            disable_progbar=True,
            hook_fn=keep,
        )
        try:
            sampler.run()
        except _Enough:
            pass
        kept.append(torch.stack(draws or warm[len(warm) // 2 :]))
        yield State(used, functools.partial(_resample, torch.cat(kept)), None)


class _Enough(Exception):
    """The budget is spent."""


def _resample(points: Tensor, count: int) -> Tensor:
    return points[torch.randint(len(points), (count,))]


def vbmc(target: Target, seed: int, budget: int) -> Iterator[State]:
    """PyVBMC, whose budget is its own: it is made for densities that take seconds.

    Raises:
        NotImplementedError: without pyvbmc, and for more dimensions than it is made for.
    """
    if target.dimension > 6:
        raise NotImplementedError(
            f"Expected at most 6 dimensions for PyVBMC, but {target.name} has {target.dimension}"
        )
    try:
        from pyvbmc import VBMC
    except ImportError as error:
        raise NotImplementedError("Expected pyvbmc to be installed: pip install pyvbmc") from error
    numpy.random.seed(seed)
    starts = target.prior_draws(1000, torch.Generator().manual_seed(seed)).numpy()
    used = 0

    def log_density(z: Any) -> float:
        nonlocal used
        used += 1
        with torch.no_grad():
            point = torch.from_numpy(numpy.atleast_2d(z))
            return target.log_density(point).item()

    low, high = numpy.quantile(starts, [0.1, 0.9], axis=0)
    inside = ((starts > low) & (starts < high)).all(1)  # where it wants its first point
    start = starts[inside.argmax()][None]
    options = {"display": "off", "max_fun_evals": min(budget, 50 * (target.dimension + 2))}
    search = VBMC(log_density, start, None, None, low[None], high[None], options=options)
    posterior, _ = search.optimize()
    yield State(
        used,
        lambda count: torch.from_numpy(posterior.sample(count)[0]),
        lambda z: torch.from_numpy(posterior.log_pdf(z.numpy())).reshape(-1),
        int((posterior.w > 1e-3).sum()),
    )


def _trace() -> Trace_ELBO:
    return Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=0)


def _baselined(*, sticking_the_landing: bool) -> BaselinedTrace_ELBO:
    return BaselinedTrace_ELBO(
        num_particles=PARTICLES,
        vectorize_particles=True,
        max_plate_nesting=0,
        sticking_the_landing=sticking_the_landing,
    )


CONTENDERS: dict[str, Contender] = {
    "fit": fit,
    "diagonal-mixture": functools.partial(
        svi,
        make=functools.partial(AutoDiagonalNormalMixture, num_components=COMPONENTS),
        objective=functools.partial(_baselined, sticking_the_landing=False),
    ),
    "full-mixture": functools.partial(
        svi,
        make=functools.partial(AutoMultivariateNormalMixture, num_components=COMPONENTS),
        objective=functools.partial(_baselined, sticking_the_landing=True),
    ),
    "marginalized": functools.partial(  # a draw of each component is as many evaluations a step
        svi,
        make=functools.partial(AutoMultivariateNormalMixture, num_components=COMPONENTS),
        objective=functools.partial(
            MarginalizedMixture_ELBO, max_plate_nesting=0, sticking_the_landing=True
        ),
    ),
    "diagonal-normal": functools.partial(svi, make=AutoDiagonalNormal, objective=_trace),
    "normal": functools.partial(svi, make=AutoMultivariateNormal, objective=_trace),
    "flow": functools.partial(
        svi,
        make=functools.partial(AutoIAFNormal, num_transforms=2),
        objective=_trace,
        rate=0.005,
    ),
    "nuts": chains,
    "pyvbmc": vbmc,
}
"""Contenders by the names of their rows."""
