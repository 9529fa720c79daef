"""Evaluations count, isolate bad points, and do not depend on who does them."""

import functools
import math
import multiprocessing
import pickle
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch.autograd.function import once_differentiable

from pyro_mixtures.infer.search.evaluations import Evaluations, Shipped
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from tests.infer.search.models import MODELS, SCHOOLS, X, Y, eight_schools, gaussian_process

BAD = torch.tensor([2, 3, 5, 11, 19])
GOOD = torch.tensor([row for row in range(20) if row not in BAD.tolist()])


def quadratic(z, raises=True):
    """It raises, or is not finite, where the first coordinate says so."""
    if raises and bool((z[:, 0] == 7).any()):
        raise torch.linalg.LinAlgError("no factor")
    values = -(z**2).sum(-1) / 2 * z[:, 1]
    for at, value in ((1, torch.nan), (2, torch.inf), (3, -torch.inf)):
        values = torch.where(z[:, 0] == at, value, values)
    return values


def points():
    z = torch.randn(20, 3, dtype=torch.float64)
    z[BAD, 0] = torch.tensor([1.0, 2.0, 3.0, 7.0, 7.0]).double()
    return z


def exact(z):
    """Values, gradients and Hessians of the quadratic."""
    z = z.detach().requires_grad_()
    values = quadratic(z, raises=False)
    (gradients,) = torch.autograd.grad(values.sum(), z)
    hessians = [
        torch.autograd.functional.hessian(lambda one: quadratic(one[None], False)[0], row)
        for row in z.detach()
    ]
    return values.detach(), gradients, torch.stack(hessians)


@pytest.mark.parametrize("chunk_size", [1, 3, 20, 1024])
def test_bad_points_are_counted_and_harm_no_others(chunk_size):
    z = points()
    evaluations = Evaluations(quadratic, chunk_size=chunk_size)
    found = evaluations.values_and_gradients(z)
    assert (evaluations.count, evaluations.without_mass, evaluations.failed) == (20, 1, 4)
    assert evaluations.first_failure.startswith("a log density of nan, at z = (1, ")
    values = evaluations.values(z)
    assert (evaluations.count, evaluations.without_mass, evaluations.failed) == (40, 2, 8)
    hessians = evaluations.hessians(z)
    assert (evaluations.count, evaluations.without_mass, evaluations.failed) == (100, 2, 8)
    for mine, correct in zip((*found, hessians), exact(z), strict=True):
        assert mine.dtype == torch.float64
        assert not mine.requires_grad
        torch.testing.assert_close(mine[GOOD], correct[GOOD])
    assert torch.equal(values, found[0])
    assert bool((values[BAD] == -torch.inf).all())
    assert bool((found[1][BAD] == 0).all())
    assert bool(hessians[BAD[-2:]].isnan().all())


def test_gradients_that_are_not_finite_are_failures():
    evaluations = Evaluations(lambda z: z.sum(-1).sqrt())
    values, gradients = evaluations.values_and_gradients(torch.tensor([[0.0], [4.0], [-1.0]]))
    assert values.tolist() == [-torch.inf, 2.0, -torch.inf]
    assert gradients.flatten().tolist() == [0.0, 0.25, 0.0]
    assert (evaluations.without_mass, evaluations.failed) == (0, 2)
    assert evaluations.first_failure == (
        "a log density of 0.0 and a gradient that is not, at z = (0)"
    )


def test_a_batch_that_raises_is_told_with_its_point():
    evaluations = Evaluations(quadratic)
    z = torch.ones(4, 10) * torch.tensor([[0.0], [7.0], [0.0], [7.0]])
    assert evaluations.values(z).tolist() == [0.0, -torch.inf, 0.0, -torch.inf]
    assert evaluations.first_failure == (
        "_LinAlgError: no factor, at z = (7, 7, 7, 7, 7, 7, 7, 7, ...)"
    )


def test_few_calls_find_what_raises():
    calls = []

    def log_density(z):
        calls.append(len(z))
        return quadratic(z)

    z = torch.zeros(256, 2)
    z[77, 0] = 7
    Evaluations(log_density).values(z)
    assert len(calls) == 1 + 2 * math.log2(256)


def test_points_without_a_gradient_have_none():
    evaluations = Evaluations(lambda z: torch.zeros(len(z)))
    z = torch.zeros(3, 2)
    assert not evaluations.values_and_gradients(z)[1].any()
    assert not evaluations.hessians(z).any()
    assert not Evaluations(lambda z: z.sum(-1)).hessians(z).any()
    empty = evaluations.values_and_gradients(torch.zeros(0, 2))
    assert [tuple(each.shape) for each in empty] == [(0,), (0, 2)]
    assert evaluations.hessians(torch.zeros(0, 2)).shape == (0, 2, 2)


def test_a_log_density_of_a_wrong_shape_is_refused():
    for method in ("values", "values_and_gradients", "hessians"):
        for wrong in (lambda z: z, lambda z: z.sum()):
            with pytest.raises(ValueError, match="one value for each of 4 points"):
                getattr(Evaluations(wrong), method)(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="chunk_size to be at least 1, but got 0"):
        Evaluations(quadratic, chunk_size=0)


class Cube(torch.autograd.Function):
    """Whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class SilentCube(Cube):
    """Whose gradient has another derivative than it should have."""

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * grad


@pytest.mark.parametrize("function", [Cube, SilentCube])
def test_gradients_without_derivatives_have_differences(function):
    def log_density(z):
        if bool((z[:, 0] == 7).any()):
            raise ValueError("no factor")
        return function.apply(z).sum(-1) + z.prod(-1)

    z = torch.randn(6, 2, dtype=torch.float64)
    z[4, 0] = 7
    hessians = Evaluations(log_density).hessians(z)
    expected = torch.diag_embed(6 * z) + torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    good = [0, 1, 2, 3, 5]
    torch.testing.assert_close(hessians[good], expected[good], atol=1e-7, rtol=1e-7)
    assert bool(hessians[4].isnan().all())


def test_differences_know_the_precision_of_the_model():
    """In float32 too small a step is all rounding."""

    class Single:
        dtype = torch.float32

        def __call__(self, z):
            z = z.float()
            return (Cube.apply(z).sum(-1) + 5).double()

    z = torch.tensor([[1.5, -0.7]]).double()
    hessians = Evaluations(Single()).hessians(z)
    torch.testing.assert_close(hessians[0], torch.diag(6 * z[0]), atol=0.01, rtol=0.01)


@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float64, 1e-3), (torch.float64, 1e-9), (torch.float32, 1e-3)]
)
def test_hessians_of_narrow_densities_are_those_of_autograd(dtype, width):
    """At steps of one size for all, gradients differ from what the Hessian at the point says."""

    class Narrow:
        def __init__(self):
            self.dtype = dtype

        def __call__(self, z):
            x, y = (z.to(dtype) / width).unbind(-1)
            return (-x.square() / 8 - (y - x.square() / 2).square() * 8).double()

    z = width * torch.tensor([[0.5, 0.125], [-1.0, 0.0]]).double()
    expected = torch.tensor([[[-4.25, 8.0], [8.0, -16.0]], [[-24.25, -16.0], [-16.0, -16.0]]])
    found = Evaluations(Narrow()).hessians(z) * width**2
    torch.testing.assert_close(found, expected.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["eight schools", "regression", "hidden Markov", "mixture prior"])
def test_hessians_of_models(name):
    model, args, kwargs, _ = MODELS[name]
    log_density = ModelLogDensity(model, args, kwargs)
    z = log_density.prior_draws(4).clamp(-1.5, 1.5)
    hessians = Evaluations(log_density).hessians(z)
    step = 0.02
    gradients = Evaluations(log_density).values_and_gradients
    for index in range(log_density.dimension):
        move = step * torch.eye(log_density.dimension)[index]
        differences = (gradients(z + move)[1] - gradients(z - move)[1]) / (2 * step)
        scale = 1 + hessians.abs().amax((1, 2))[:, None]
        assert bool(((hessians[:, index] - differences).abs() < 0.02 * scale).all())
    torch.testing.assert_close(hessians, hessians.mT, atol=0, rtol=0)


@pytest.mark.parametrize("way", ["plate", "vmap", "loop"])
def test_matrices_without_a_factor_are_points_without_mass(way):
    """Of a batch in one run of the model, they would raise for all."""
    runs = []

    def model():
        runs.append(1)
        gaussian_process(X[:, 0].double(), Y.double())

    log_density = ModelLogDensity(model, way=way)
    evaluations = Evaluations(log_density)
    z = torch.tensor([[0.0], [40.0], [-1.0], [60.0], [0.5]])
    runs.clear()
    values, gradients = evaluations.values_and_gradients(z)
    assert len(runs) <= (7 if way == "loop" else 2)
    assert values.isfinite().tolist() == [True, False, True, False, True]
    good = [0, 2, 4]
    alone = [Evaluations(log_density).values_and_gradients(row[None]) for row in z[good]]
    torch.testing.assert_close(values[good], torch.cat([each for each, _ in alone]))
    torch.testing.assert_close(gradients[good], torch.cat([each for _, each in alone]))
    assert evaluations.failed == 2
    hessians = evaluations.hessians(z)
    assert hessians.isfinite().flatten(1).all(1).tolist() == [True, False, True, False, True]


def all_of(evaluations, z):
    values, gradients = evaluations.values_and_gradients(z)
    counts = evaluations.count, evaluations.without_mass, evaluations.failed
    return [values, gradients, evaluations.hessians(z)], counts, evaluations.first_failure


def same(log_density, executor, z):
    """Whether the executor gives what no executor does, to the last digit."""
    expected, *others = all_of(Evaluations(log_density, chunk_size=6), z)
    found, *rest = all_of(Evaluations(log_density, executor=executor, chunk_size=6), z)
    assert rest == others
    for mine, correct in zip(found, expected, strict=True):
        assert torch.equal(mine.nan_to_num(nan=1e9), correct.nan_to_num(nan=1e9))


@pytest.mark.parametrize("workers", [1, 4])
def test_threads_give_the_same_numbers(workers):
    log_density = ModelLogDensity(eight_schools, SCHOOLS)
    with ThreadPoolExecutor(workers) as pool:
        same(quadratic, pool, points())
        same(log_density, pool, log_density.prior_draws(20))


def test_processes_give_the_same_numbers():
    log_density = ModelLogDensity(eight_schools, SCHOOLS)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        same(quadratic, pool, points())
        same(log_density, pool, log_density.prior_draws(20))


def test_dask_gives_the_same_numbers():
    import distributed

    log_density = ModelLogDensity(eight_schools, SCHOOLS)
    with (
        distributed.LocalCluster(1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as pool,
    ):
        same(quadratic, pool, points())
        same(log_density, pool, log_density.prior_draws(20))


class Broken(ThreadPoolExecutor):
    """Which loses every task but the first."""

    lost: Future | None = None

    def submit(self, function, *args):
        if self.lost is None:
            self.lost = Future()
            return super().submit(function, *args)
        self.lost.set_exception(OSError("a machine is gone")) if not self.lost.done() else None
        return self.lost


def test_an_executor_that_fails_is_told_with_the_chunk():
    with Broken(1) as pool:
        evaluations = Evaluations(quadratic, executor=pool, chunk_size=6)
        with pytest.raises(
            RuntimeError, match=r"4 chunks, but got OSError for chunk 1, .*6 to 11"
        ):
            evaluations.values(points())


def test_a_log_density_is_pickled_once():
    pickled = []

    class Counted:
        def __reduce__(self):
            pickled.append(self)
            return functools.partial, (quadratic,)

    shipped = Shipped(Counted())
    first, second = (pickle.loads(pickle.dumps(shipped)) for _ in range(2))
    assert len(pickled) == 1
    assert first is second
    assert first.log_density.func is quadratic


def test_executors_get_small_chunks_and_a_machine_large_ones():
    sizes = []

    def log_density(z):
        sizes.append(len(z))
        return z.sum(-1)

    Evaluations(log_density).values(torch.zeros(1500, 1))
    assert sizes == [1024, 476]
    sizes.clear()
    with ThreadPoolExecutor(1) as pool:
        Evaluations(log_density, executor=pool).values(torch.zeros(40, 1))
    assert sizes == [16, 16, 8]
