"""Memory: what is in it at once, and that a smaller budget changes nothing but that."""

from unittest import mock

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_mixtures.numerics import chunks
from tests.pairwise import in_pairs
from tests.registry import (
    each_transport,
    each_transport_in_turn,
    gradients,
    relative_error,
    sample_at,
)


class Arrays(TorchDispatchMode):
    """Watch the memory of the results of all operations, forward and backward."""

    def __init__(self):
        super().__init__()
        self.largest = self.peak = 0
        self._alive = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._record(tensor)
        return result

    def _record(self, tensor):
        storage = tensor.untyped_storage()
        self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
        self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: x for key, x in self._alive.items() if not x[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))


def step(family, parameters, count, **options):
    """Draw, evaluate and differentiate, as a step of variational inference does."""
    mixture = family.build(parameters, validate_args=False, **options)
    with Arrays() as arrays:
        z = mixture.rsample((count,))
        gradients(z.cos().sum() - mixture.log_prob(z).sum(), parameters)
    return arrays


def overlapping(family, K, D):
    """Short paths, so that the arrays of the nodes are small."""
    options = {"scales": (0.95, 1.05), "spread": 0.05, "dtype": torch.float32}
    return family.parameters(K=K, D=D, **options)


@each_transport
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_largest_array(family, transport, weight_gradient):
    """None of ``S K K D`` elements; with matrix products alone not even one of ``S K D``."""
    S, K, D = 50, 20, 30
    parameters = overlapping(family, K, D)
    options = {"transport": transport, "weight_gradient": weight_gradient}
    largest = step(family, parameters, S, **options).largest
    assert S * D <= largest < S * K * K * D
    if transport == "displacement" and not family.has_full_factors:
        assert largest < S * K * D


@pytest.mark.slow
@each_transport
def test_each_peak(monkeypatch, family, transport):
    test_peak(monkeypatch, family, transport)


@each_transport_in_turn
def test_peak(monkeypatch, family, transport):
    """A few times what comes in and goes out, in float64, and arrays of the budget's size."""
    S, K, D = 2000, 20, 50
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 2**19)
    parameters = overlapping(family, K, D)
    factors = K * D * D if family.has_full_factors else K * D
    bound = 8 * (5 * S * (K + D) + 10 * factors) + 8 * chunks.MEMORY_BUDGET
    assert bound < 8 * S * K * D
    assert step(family, parameters, S, transport=transport).peak < bound


@in_pairs
@each_transport
@pytest.mark.parametrize(("spread", "tolerance"), [(1.0, 1e-10), (5e4, 1e-5)])
@pytest.mark.parametrize("sample_shape", [(), (50,)])
def test_budget_changes_no_result(monkeypatch, family, transport, spread, tolerance, sample_shape):
    """Neither for expanded squares nor, far apart, for differences in slices. (There products of
    other shapes round otherwise: 1e-16 of squares of 1e9 and more.)"""
    parameters = family.parameters((2,), K=3, D=4, spread=spread)
    mixture = family.build(parameters, transport=transport)
    points = mixture.sample(sample_shape)

    def elbo_gradient():
        z = sample_at(mixture, points)
        elbo = z.cos().sum() - mixture.log_prob(z).sum()
        with mock.patch.object(torch, "rand", return_value=torch.tensor(0.3)):  # offset of nodes
            return gradients(elbo, parameters)

    whole = elbo_gradient()
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 1000)
    assert relative_error(elbo_gradient(), whole) < tolerance
