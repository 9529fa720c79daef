"""Compiled loops against torch's operations: values, gradients, groups, and what they refuse."""

import subprocess
import sys
import textwrap

import numpy
import pyro
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pyro_mixtures.components import compiled_normals
from pyro_mixtures.components.compiled_normals import CompiledNormals
from pyro_mixtures.distributions import (
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureSameFamily,
)
from pyro_mixtures.numerics import compiled
from tests.pairwise import in_pairs

KIND = (MixtureOfDiagNormals,)
BOTH = (MixtureOfDiagNormals, MixtureOfDiagNormalsSharedCovariance)


def parameters(kind, batch, K, D, dtype=torch.float64, spread=1.5, scales=(0.2, 5.0)):
    low, high = (torch.tensor(scale).log() for scale in scales)
    shape = (*batch, K, D) if kind is MixtureOfDiagNormals else (*batch, D)
    locs = 0.7 + spread * torch.randn(*batch, K, D, dtype=torch.float64)
    factor = (low + (high - low) * torch.rand(shape, dtype=torch.float64)).exp()
    logits = torch.randn(*batch, K, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (locs, factor, logits)]


def outcome(kind, given, sample_shape, weight_gradient, transport):
    """A sample, densities, and gradients of a cost that is not quadratic."""
    for x in given:
        x.grad = None
    torch.manual_seed(1)
    q = kind(*given, weight_gradient=weight_gradient, transport=transport)
    z = q.rsample(sample_shape)
    log_prob = q.log_prob(z)
    cost = z.sin().sum(-1) + (z[..., :1] * z).square().mean(-1) + log_prob
    score = q.score_parts(z).score_function
    if isinstance(score, torch.Tensor):
        cost = cost + score * cost.detach()
    cost.sum().backward()
    return [z.detach(), log_prob.detach(), q.groups, *(x.grad for x in given)]


def assert_same(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-3)


@in_pairs
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("transport", ["displacement", "telescoping"])
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("sample_shape", [(), (1,), (6,), (2, 2)])
@pytest.mark.parametrize(("K", "D"), [(1, 3), (2, 1), (3, 2), (4, 33), (20, 5)])
@pytest.mark.parametrize("spread", [0.3, 6.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_they_say_what_torch_says(
    kind, transport, weight_gradient, batch, sample_shape, K, D, spread, dtype, tolerance
):
    given = parameters(kind, batch, K, D, dtype, spread)
    arguments = kind, given, sample_shape, weight_gradient, transport
    with pyro.settings.context(compiled_mixtures=False):
        expected = outcome(*arguments)
    assert_same(outcome(*arguments), expected, tolerance)


def counted(monkeypatch):
    """The loops that run."""
    names = []
    run = compiled.Loops.run

    def recorded(self, name, *args):
        names.append(name)
        return run(self, name, *args)

    monkeypatch.setattr(compiled.Loops, "run", recorded)
    return names


def test_a_step_is_six_loops(monkeypatch):
    names = counted(monkeypatch)
    q = MixtureOfDiagNormals(*parameters(*KIND, (4,), 3, 2))
    z = q.rsample()
    (z.sin().sum() + sum(part.sum() for part in q.score_parts(z)[:2])).backward()
    expected = ["valid", "draw", "linkage", "densities"]
    assert names == [*expected, "density_gradients", "sample_gradients"]


@pytest.mark.parametrize(
    "case", ["zero weight", "far apart", "equal", "tiny and huge", "one wide", "long path"]
)
def test_extremes(case):
    given = parameters(*KIND, (3,), 3, 4, spread=0.5)
    with torch.no_grad():
        locs, scales, logits = given
        if case == "zero weight":
            logits[:, 1] = -torch.inf
            locs[:, 1] = 1e8
        elif case == "far apart":
            locs[:, 0] += 1e6
        elif case == "equal":
            locs[:] = locs[:, :1].clone()
            scales[:] = scales[:, :1].clone()
        elif case == "tiny and huge":
            scales[:, 0] *= 1e-6
            scales[:, 1] *= 1e6
        elif case == "one wide":
            scales[:, 2] *= 40
        elif case == "long path":  # that no rule of the loops is long enough for
            locs[:, 0] += 100
    arguments = *KIND, given, (3,), "pathwise", "displacement"
    with pyro.settings.context(compiled_mixtures=False):
        expected = outcome(*arguments)
    actual = outcome(*arguments)
    for a, b in zip(actual, expected, strict=True):
        assert a.isfinite().all()
        # torch's expanded squares have lost that much
        assert (a - b).abs().max() <= 1e-7 * b.abs().max() + 1e-12


def test_nan_stays_nan():
    given = parameters(*KIND, (2,), 3, 2)
    with torch.no_grad():
        given[0][1, 0, 0] = torch.nan
    q = MixtureOfDiagNormals(*given, validate_args=False)
    z = torch.zeros(2, 2, dtype=torch.float64)
    log_prob = q.log_prob(z)
    assert log_prob.isnan().tolist() == [False, True]
    q.reparameterize(z).sum().backward()
    assert given[0].grad[1].isnan().any()
    assert given[0].grad[0].isfinite().all()


@pytest.mark.parametrize("name", ["locs", "coord_scale", "component_logits"])
@pytest.mark.parametrize("value", [torch.nan, -1.0, torch.inf])
def test_invalid_parameters_meet_the_same_error(name, value):
    names = "locs", "coord_scale", "component_logits"
    given = dict(zip(names, parameters(*KIND, (2,), 3, 2), strict=True))
    with torch.no_grad():
        given[name].view(-1)[3] = value
    messages = []
    for on in (True, False):
        with pyro.settings.context(compiled_mixtures=on):
            try:
                MixtureOfDiagNormals(**given)
                messages.append("")
            except ValueError as error:
                messages.append(str(error))
    assert messages[0] == messages[1]
    if (name, value) in (("coord_scale", -1.0), ("component_logits", torch.inf)):
        assert messages[0]


def test_layouts():
    """Not contiguous, expanded with a stride of zero, empty."""
    locs, scales, logits = parameters(*KIND, (4,), 3, 5)
    turned = locs.detach().mT.contiguous().mT.requires_grad_()
    assert not turned.is_contiguous()
    same = outcome(*KIND, [locs, scales, logits], (2,), "clustered", "displacement")
    assert_same(
        outcome(*KIND, [turned, scales, logits], (2,), "clustered", "displacement"), same, 1e-14
    )
    one = [x[0].detach().clone().requires_grad_() for x in (locs, scales, logits)]
    whole = [x.expand(6, *x.shape) for x in one]
    torch.manual_seed(1)
    z = MixtureOfDiagNormals(*whole).rsample()
    z.sin().sum().backward()
    torch.manual_seed(1)
    copies = [x.detach().clone().requires_grad_() for x in whole]
    MixtureOfDiagNormals(*copies).rsample().sin().sum().backward()
    for x, y in zip(one, copies, strict=True):
        torch.testing.assert_close(x.grad, y.grad.sum(0))
    empty = [x[:0].detach().requires_grad_() for x in (locs, scales, logits)]
    q = MixtureOfDiagNormals(*empty)
    z = q.rsample((2,))
    assert z.shape == (2, 0, 5)
    (z.sum() + q.log_prob(z).sum()).backward()
    assert empty[0].grad.shape == (0, 3, 5)


def test_derivatives_of_densities():
    """Of any order, by torch's operations, and many backward passes at once."""
    given = [x.detach() for x in parameters(*KIND, (), 3, 2)]
    z = torch.randn(4, 2, dtype=torch.float64)

    def log_prob(z, *given):
        return MixtureOfDiagNormals(*given).log_prob(z)

    leaves = [x.clone().requires_grad_() for x in (z, *given)]
    assert torch.autograd.gradcheck(log_prob, leaves)
    assert torch.autograd.gradgradcheck(log_prob, leaves)
    value = log_prob(*leaves)
    rows = torch.autograd.grad(
        value, leaves[1], torch.eye(4, dtype=torch.float64), is_grads_batched=True
    )[0]
    for row, slope in zip(rows, torch.eye(4, dtype=torch.float64), strict=True):
        expected = torch.autograd.grad(log_prob(*leaves), leaves[1], slope)[0]
        torch.testing.assert_close(row, expected)


def test_component_densities_have_gradients():
    given = parameters(*KIND, (2,), 3, 2)
    z = torch.randn(5, 2, 2, dtype=torch.float64)
    slope = torch.randn(5, 2, 3, dtype=torch.float64)
    each = MixtureOfDiagNormals(*given).component_log_prob(z)
    actual = torch.autograd.grad((each * slope).sum(), given[:2])
    joint = MixtureOfDiagNormals(*given).record(z).densities[0].movedim(-2, 0)
    expected = torch.autograd.grad((joint * slope).sum(), given[:2])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_threads(monkeypatch):
    """Parts of a batch in threads of their own change nothing."""
    given = parameters(*KIND, (64,), 3, 5)
    arguments = *KIND, given, (), "clustered", "displacement"
    alone = outcome(*arguments)
    count = torch.get_num_threads()
    monkeypatch.setattr(compiled, "WORTH_A_THREAD", 10)
    torch.set_num_threads(3)
    try:
        several = outcome(*arguments)
    finally:
        torch.set_num_threads(count)
    for a, b in zip(several, alone, strict=True):
        assert torch.equal(a, b)


def test_the_same_numbers_wherever_they_lie():
    """In arrays as small as these, which lie near each other here and there."""
    given = parameters(*KIND, (6,), 3, 5)
    kept = [outcome(*KIND, given, (), "clustered", "displacement")]
    heap = []
    for size in range(40):
        heap.append(numpy.empty(7 * size % 60 + 1))
        kept.append(outcome(*KIND, given, (), "clustered", "displacement"))
        assert all(map(torch.equal, kept[0], kept[-1]))


def test_large_arrays_are_torchs(monkeypatch):
    names = counted(monkeypatch)
    q = MixtureOfDiagNormals(*parameters(*KIND, (), 20, 100), validate_args=False)
    q.log_prob(torch.zeros(1000, 100, dtype=torch.float64))
    assert names == []


def test_others_are_torchs():
    """Other precisions, other devices, those that look over torch's shoulder."""
    locs, scales, _ = (x.detach() for x in parameters(*KIND, (), 3, 2))
    components = MixtureOfDiagNormals(locs, scales, torch.zeros(3)).components
    assert isinstance(components.compiled(), CompiledNormals)
    assert components.compiled(locs.float().unsqueeze(0)) is None
    assert components.compiled(locs.to("meta")) is None
    half = MixtureOfDiagNormals(locs.half(), scales.half(), torch.zeros(3).half())
    assert half.components.compiled() is None
    with FlopCounterMode(display=False):
        assert components.compiled() is None
    seen = []
    torch.func.vmap(lambda x: seen.append(components.compiled(x.unsqueeze(0))) or x)(locs)
    assert seen == [None]


@pytest.mark.parametrize("kind", ["one for all", "another dtype", "another batch"])
def test_logits_and_points_of_another_kind(kind):
    """The loops know nothing of shapes: what does not fit is torch's."""
    locs, scales, logits = (x.detach() for x in parameters(*KIND, (4,), 3, 2))
    components = MixtureOfDiagNormals(locs, scales, logits).components
    z = torch.randn(4, 1, 2, dtype=torch.float64)
    if kind == "another batch":
        assert components.compiled(z[:1]) is None
        assert components.compiled(z[..., :1]) is None
        return
    other = logits[:1] if kind == "one for all" else logits.float()
    loops = components.compiled(z)
    assert loops.draw(other, 1) is None
    assert loops.evaluate(other, z) is None
    assert loops.sample_gradients(other, z, z, None, None, None) is None
    weights = torch.distributions.Categorical(logits=other.expand(4, 3))
    normals = torch.distributions.Independent(torch.distributions.Normal(locs, scales), 1)
    expected = torch.distributions.MixtureSameFamily(weights, normals).log_prob(z.squeeze(-2))
    actual = MixtureSameFamily(weights, normals).log_prob(z.squeeze(-2))
    torch.testing.assert_close(actual, expected, check_dtype=False)


def test_setting():
    assert pyro.settings.get("compiled_mixtures")
    with pytest.raises(ValueError, match="compiled_mixtures to be True or False, but got 'no'"):
        pyro.settings.set(compiled_mixtures="no")
    given = parameters(*KIND, (), 3, 2)
    with pyro.settings.context(compiled_mixtures=False):
        assert MixtureOfDiagNormals(*given).components.compiled() is None
    assert MixtureOfDiagNormals(*given).components.compiled() is not None


def test_what_numba_cannot_compile(monkeypatch):
    """One warning that names its version; then torch does the work."""
    monkeypatch.setattr(compiled, "ENABLED", True)
    monkeypatch.setattr(compiled_normals, "LOOPS", compiled.Loops("tests.components.no_loops"))
    given = parameters(*KIND, (3,), 3, 2)
    with pytest.warns(RuntimeWarning, match=r"numba .* cannot compile .*ModuleNotFoundError"):
        q = MixtureOfDiagNormals(*given)
    assert not pyro.settings.get("compiled_mixtures")
    z = q.rsample()
    (z.sum() + q.log_prob(z).sum()).backward()
    assert given[0].grad.isfinite().all()


SCRIPT = """
import sys
{before}
import torch
from pyro_mixtures.distributions import MixtureOfDiagNormals
locs = torch.randn(3, 2, 4, requires_grad=True)
q = MixtureOfDiagNormals(locs, torch.ones(2, 4), torch.zeros(2))
z = q.rsample()
(z.sum() + q.log_prob(z).sum()).backward()
print(q.components.compiled() is not None, bool(locs.grad.isfinite().all()))
"""


def run(before, **environment):
    script = textwrap.dedent(SCRIPT).format(before=before)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_without_numba():
    hidden = "import importlib.util as u; f = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *x: None if name == 'numba' else f(name, *x)"
    assert run(hidden + "\nsys.modules['numba'] = None") == ["False", "True"]


def test_nowhere_to_keep_what_is_compiled():
    nowhere = "import numba.core.caching as c; c.CacheImpl._locator_classes = []"
    assert run(nowhere) == ["True", "True"]
