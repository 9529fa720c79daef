"""What Pyro does with a distribution: events, masks, plates, copies and score terms."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro
import torch
from pyro import poutine

from pyro_mixtures.testing.distribution_case import DistributionCase, gradients, is_discrete


def events_and_masks(case: DistributionCase) -> None:
    """Densities are summed over the one and left out by the other."""
    _, q = case.example((2, 3))
    value = q.sample(torch.Size((4,)))
    log_prob = q.log_prob(value)
    event = q.to_event(1)
    assert (event.batch_shape, event.event_shape) == ((2,), (3, *q.event_shape))
    torch.testing.assert_close(event.log_prob(value), log_prob.sum(-1))
    assert event.rsample().requires_grad
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(q.mask(mask).log_prob(value), log_prob * mask)
    assert not q.mask(False).log_prob(value).any()


def plates(case: DistributionCase) -> None:
    """A sample of its own for each place, with its density and a gradient."""
    parameters = case.draw()

    def model() -> torch.Tensor:
        with pyro.plate("outer", 4, dim=-2), pyro.plate("inner", 5, dim=-1):
            return pyro.sample("z", case.build(parameters))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site: Any = trace.nodes["z"]
    q = case.build(parameters)
    assert site["value"].shape == (4, 5, *q.event_shape)
    expected = (case.reference or case.build)(parameters)
    if not is_discrete(q):
        torch.testing.assert_close(
            site["log_prob"], expected.log_prob(site["value"]), rtol=1e-9, atol=1e-9
        )
        assert len(site["value"].detach().flatten(0, 1).unique(dim=0)) == 20
    moved = gradients(site["value"], parameters, site["value"].detach().cos())
    for name, value in moved.items():
        assert name in case.beside or value.any(), f"samples in plates do not move with {name}"


def copies(case: DistributionCase) -> None:
    """By ``copy.deepcopy`` and ``pickle``, expanded or not: the same density."""
    for q in (case.constant((2,)), case.constant((2,)).expand(torch.Size((3, 2)))):
        q.rsample()
        value = q.sample(torch.Size((4,)))
        for twin in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
            assert type(twin) is type(q)
            assert torch.equal(twin.log_prob(value), q.log_prob(value))
            assert twin.sample(torch.Size((4,))).shape == value.shape


def score_parts(case: DistributionCase) -> None:
    """Their density is ``log_prob``, of samples just drawn and of any other values."""
    for q in (case.constant((2,)), case.constant((2,)).expand(torch.Size((3, 2)))):
        z = q.rsample(torch.Size((5,)))
        # values on vertices have a density as the samples that they are
        for value in (z,) if is_discrete(q) else (z, z.detach().clone()):
            parts = q.score_parts(value)
            torch.testing.assert_close(parts.log_prob, q.log_prob(value), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(parts.entropy_term, parts.log_prob)
