"""Compiled loops beside what torch offers: derivatives of derivatives, modes, devices."""

import importlib.metadata
from pathlib import Path

import pyro
import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from pyro_mixtures.components import compiled_normals, normal_loops
from pyro_mixtures.components.normals import Normals
from pyro_mixtures.components.scale import Diagonal
from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.numerics import compiled, loops
from tests.components.test_compiled_normals import KIND, assert_same, outcome, parameters

BACKWARD = "density_gradients", "sample_gradients"


@pytest.mark.parametrize("depends", ["point", "logits"])
def test_derivatives_where_arguments_depend_on_each_other(depends):
    """What a graph is recorded for counts each way once."""
    locs, scales, logits = parameters(*KIND, (2,), 3, 2)
    z = torch.randn(4, 2, 2, dtype=torch.float64)
    if depends == "point":
        z = z + locs.mean(-2)
    else:
        logits = locs.sin().sum(-1)
    value = MixtureOfDiagNormals(locs, scales, logits).log_prob(z).square().sum()
    expected = torch.autograd.grad(value, [locs, scales], retain_graph=True)
    actual = torch.autograd.grad(value, [locs, scales], create_graph=True)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    with pyro.settings.context(compiled_mixtures=False):
        again = MixtureOfDiagNormals(locs, scales, logits).log_prob(z).square().sum()
        slopes = torch.autograd.grad(again, [locs, scales], create_graph=True)
    second, reference = (
        torch.autograd.grad(
            sum(x.square().sum() for x in first), [locs, scales], retain_graph=True
        )
        for first in (actual, slopes)
    )
    for a, b in zip(second, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_another_default_device():
    """Arrays of the loops are where their mixture is."""
    given = parameters(*KIND, (2,), 3, 2)
    z = torch.zeros(2, 2, dtype=torch.float64)
    with torch.device("meta"):
        q = MixtureOfDiagNormals(*given)
        sample, log_prob = q.rsample((2,)), q.log_prob(z)
        (sample.sum() + log_prob.sum()).backward()
        groups = q.groups
    for x in (sample, log_prob, groups, *(x.grad for x in given)):
        assert x.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own
def test_forward_derivatives():
    locs, scales, logits = (x.detach() for x in parameters(*KIND, (2,), 3, 2))
    z, tangent = torch.randn(2, 2, dtype=torch.float64), torch.randn_like(locs)

    def log_prob(locs):
        return MixtureOfDiagNormals(locs, scales, logits).log_prob(z)

    with forward_ad.dual_level():
        actual = forward_ad.unpack_dual(log_prob(forward_ad.make_dual(locs, tangent))).tangent
    (gradients,) = torch.autograd.functional.jacobian(log_prob, (locs,))  # (2, *locs.shape)
    expected = (gradients * tangent).sum((1, 2, 3))
    torch.testing.assert_close(actual, expected)


def test_tensors_whose_numbers_are_not_in_memory():
    """Some stand for minus what is there, some for zeros that are nowhere."""
    locs, scales, logits = parameters(*KIND, (2,), 3, 2)
    z = torch.ones(2, 2, dtype=torch.float64)
    turned = torch._neg_view(locs.detach())
    actual = MixtureOfDiagNormals(turned, scales, logits).log_prob(z)
    expected = MixtureOfDiagNormals(-locs.detach(), scales, logits).log_prob(z)
    torch.testing.assert_close(actual, expected)
    q, nothing = MixtureOfDiagNormals(locs, scales, logits), torch._efficientzerotensor
    torch.testing.assert_close(q.log_prob(nothing(2, 2, dtype=torch.float64)), q.log_prob(0 * z))
    q.log_prob(z).backward(nothing(2, dtype=torch.float64))
    assert not any(x.grad.any() for x in (locs, scales, logits))


def test_a_numba_that_cannot_be_imported(monkeypatch):
    """Its own error is part of the one warning, with its version."""
    monkeypatch.setattr(compiled, "ENABLED", True)
    monkeypatch.setattr(compiled_normals, "LOOPS", compiled.Loops("tests.components.any_loops"))
    asked = []

    def refused(name):
        asked.append(name)
        raise ImportError("Numba needs NumPy 2.2 or less")

    monkeypatch.setattr(compiled.importlib, "import_module", refused)
    version = importlib.metadata.version("numba")
    with pytest.warns(RuntimeWarning, match=rf"numba {version} cannot .*needs NumPy 2.2 or less"):
        q = MixtureOfDiagNormals(*parameters(*KIND, (3,), 3, 2))
    assert asked == ["tests.components.any_loops"]
    assert q.rsample().isfinite().all()


@pytest.mark.parametrize("loop", ["valid", "linkage", "densities", *BACKWARD])
def test_loops_that_do_not_compile_when_others_have(monkeypatch, loop):
    given = parameters(*KIND, (2,), 3, 2)
    with pyro.settings.context(compiled_mixtures=False):
        expected = outcome(*KIND, given, (2,), "clustered", "displacement")
    monkeypatch.setattr(compiled, "ENABLED", True)
    find = compiled.Loops._function

    def found(self, name, *arguments):
        if name == loop:
            monkeypatch.setattr(compiled, "ENABLED", False)
            return None
        return find(self, name, *arguments)

    monkeypatch.setattr(compiled.Loops, "_function", found)
    actual = outcome(*KIND, given, (2,), "clustered", "displacement")
    assert not compiled.ENABLED
    assert_same(actual, expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["far", "farther", "wide", "nowhere", "none"])
def test_densities_of_zero_and_infinite_numbers(dtype, case):
    """What is infinitely improbable has a logarithm, and so has what a wide component says."""
    locs, scales, logits = parameters(*KIND, (2,), 3, 2, dtype)
    z = torch.zeros(2, 2, dtype=dtype)
    with torch.no_grad():
        if case == "far":
            z[0, 0] = torch.finfo(dtype).max ** 0.6
        elif case == "farther":
            z[0, 0] = -torch.inf
        elif case == "wide":
            scales[0, 1, 0] = torch.inf
        elif case == "nowhere":
            locs[0, 1, 0] = torch.inf
        else:
            logits[0] = -torch.inf
    found = []
    for on in (True, False):
        with pyro.settings.context(compiled_mixtures=on):
            q = MixtureOfDiagNormals(locs, scales, logits, validate_args=False)
            log_prob = q.log_prob(z)
            gradients = torch.autograd.grad(log_prob[1], [locs, scales, logits])
            found.append([log_prob.detach(), *(x[1] for x in gradients)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    assert found[0][0].isnan().tolist() == [case == "none", False]


@pytest.mark.parametrize("shape", [(3, 1, 2), (1, 3, 2), (3, 2)])
def test_scales_that_components_have_in_common(shape):
    """The loops take one for each, or those that all of a mixture share by their kind."""
    locs, _, logits = (x.detach() for x in parameters(*KIND, (3,), 3, 2))
    factor = torch.tensor([1.0, 2.0], dtype=torch.float64).expand(shape)
    z = torch.randn(3, 1, 2, dtype=torch.float64)
    normals = Normals(locs, Diagonal(factor))
    assert normals.compiled() is None
    expected = Normals(locs, Diagonal(factor.expand_as(locs))).log_prob(z, logits)
    torch.testing.assert_close(normals.log_prob(z, logits), expected)


def test_groups_of_another_batch():
    locs, scales, logits = (x.detach() for x in parameters(*KIND, (3,), 3, 2))
    components = MixtureOfDiagNormals(locs, scales, logits).components
    z = torch.randn(3, 1, 2, dtype=torch.float64)
    loops, field = components.compiled(z), components.transports["displacement"]
    groups = torch.zeros(3, dtype=torch.int64)
    assert loops.sample_gradients(logits, z, z, None, groups.expand(3, 3), field) is not None
    assert loops.sample_gradients(logits, z, z, None, groups, field) is None


def test_threads_are_kept():
    """Batches of several sizes share them."""
    most = compiled._threads(3)
    assert compiled._threads(2) is most
    assert compiled._threads(4) is not most


def test_what_is_kept_on_disk_is_of_these_sources(tmp_path):
    """Numba would go on with what it has compiled when a loop that is called has changed."""
    for name in ("some_loops.py", "displacement.py", "others.py"):
        (tmp_path / name).write_text("A = 1")
    stamps = [loops.stamp(tmp_path)]
    for name in ("others.py", "some_loops.py", "displacement.py"):
        (tmp_path / name).write_text("A = 2")
        stamps.append(loops.stamp(tmp_path))
    assert stamps[0] == stamps[1]
    assert len(set(stamps)) == 3
    assert loops.stamp(Path(loops.__file__).parents[1]) == loops.STAMP
    for function in (normal_loops.densities, loops.exp):
        assert function.py_func.__qualname__.endswith(loops.STAMP)


def test_saved_tensors_of_other_strides():
    """Hooks may keep them in any layout."""
    given = parameters(*KIND, (2,), 3, 2)
    z = torch.randn(5, 2, 2, dtype=torch.float64)
    log_prob = MixtureOfDiagNormals(*given).log_prob(z)
    expected = torch.autograd.grad(log_prob.square().sum(), given)

    def turned(x):
        return x.mT.contiguous().mT if x.dim() > 1 else x

    with saved_tensors_hooks(turned, lambda x: x):
        log_prob = MixtureOfDiagNormals(*given).log_prob(z)
    actual = torch.autograd.grad(log_prob.square().sum(), given)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
