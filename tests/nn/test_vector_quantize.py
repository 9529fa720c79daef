"""Vector quantization: nearest codes, gradients, losses, and mistakes."""

import copy

import pytest
import torch
from torch.func import grad, vmap

from pyro_mixtures.nn import VectorQuantize
from pyro_mixtures.numerics import chunks
from tests.registry import randn

SHAPES = [(), (7,), (3, 5)]


def module(num_codes=6, dim=3, **options):
    quantize = VectorQuantize(num_codes, dim, **options).double()
    with torch.no_grad():
        quantize.codebooks.copy_(randn(*quantize.codebooks.shape))
    return quantize


def nearest(x, codebook):
    """By all differences, one by one."""
    rows = [int(((codebook - row) ** 2).sum(-1).argmin()) for row in x.reshape(-1, x.shape[-1])]
    return torch.tensor(rows).reshape(x.shape[:-1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_levels", [1, 3])
def test_values(shape, num_levels):
    quantize = module(num_levels=num_levels)
    x = randn(*shape, 3)
    quantized, indices, codebook_loss, commitment_loss = quantize(x)
    assert indices.shape == (*shape, num_levels)
    rest, losses = x, []
    for level, codebook in enumerate(quantize.codebooks.detach()):
        assert torch.equal(indices[..., level], nearest(rest, codebook))
        rest = rest - codebook[indices[..., level]]
        losses.append(rest.square().sum(-1).mean())
    torch.testing.assert_close(quantized, x - rest)
    torch.testing.assert_close(codebook_loss, sum(losses))
    torch.testing.assert_close(commitment_loss, 0.25 * sum(losses))
    assert torch.equal(quantize.lookup(indices), quantized)


@pytest.mark.parametrize("num_levels", [1, 3])
def test_gradients(num_levels):
    """Straight through to the input, and each loss to its own side, in closed form."""
    quantize = module(num_levels=num_levels, commitment=0.5)
    x = randn(7, 3).requires_grad_()
    quantized, indices, codebook_loss, commitment_loss = quantize(x)
    weights = randn(7, 3)

    def both(output, scale=None):
        return torch.autograd.grad(
            output, (x, quantize.codebooks), scale, retain_graph=True, materialize_grads=True
        )

    to_x, to_codes = both(quantized, weights)
    assert torch.equal(to_x, weights)
    assert (to_codes == 0).all()

    codes = quantize.codebooks.detach()
    chosen = torch.stack([codes[level][indices[:, level]] for level in range(num_levels)])
    rests = x.detach() - chosen.cumsum(0)  # (num_levels, 7, 3), after each level
    to_x, to_codes = both(codebook_loss)
    assert (to_x == 0).all()
    expected = torch.zeros_like(codes)
    for level in range(num_levels):
        expected[level].index_add_(0, indices[:, level], -2 / 7 * rests[level])
    torch.testing.assert_close(to_codes, expected)

    to_x, to_codes = both(commitment_loss)
    assert (to_codes == 0).all()
    torch.testing.assert_close(to_x, 0.5 * 2 / 7 * rests.sum(0))


def test_levels_refine():
    """Each level that has learned brings the sum closer: codes of several sizes."""
    quantize = module(num_codes=16, dim=2, num_levels=4)
    with torch.no_grad():
        quantize.codebooks *= torch.tensor([1.0, 0.4, 0.2, 0.1]).reshape(4, 1, 1)
    x = randn(200, 2)
    found = quantize(x).indices
    errors, codes = [], quantize.codebooks.detach()
    for level in range(4):
        sums = codes[torch.arange(level + 1), found[:, : level + 1]].sum(-2)
        errors.append(float((x - sums).square().sum(-1).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


def test_training():
    """Codes find the clusters of their inputs."""
    centers = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -3.0]])
    x = centers.repeat(50, 1) + 0.05 * torch.randn(150, 2)
    quantize = VectorQuantize(3, 2)
    with torch.no_grad():
        quantize.codebooks[0] = x[:3] + 0.5
    optimizer = torch.optim.SGD(quantize.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        result = quantize(x)
        (result.codebook_loss + result.commitment_loss).backward()
        optimizer.step()
    torch.testing.assert_close(quantize.codebooks[0].detach(), centers, atol=0.03, rtol=0)


def test_digits_far_from_zero():
    """In float32 expanded squares would tell these codes apart by chance."""
    quantize = VectorQuantize(50, 4)
    with torch.no_grad():
        quantize.codebooks.copy_(1e3 + 1e-2 * torch.randn(1, 50, 4))
    x = 1e3 + 1e-2 * torch.randn(200, 4)
    exact = nearest(x.double(), quantize.codebooks[0].detach().double())
    assert torch.equal(quantize(x).indices[..., 0], exact)


def test_chunks(monkeypatch):
    quantize, x = module(num_levels=2), randn(30, 3).requires_grad_()
    whole = quantize(x)
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 6 * 8 * 4)  # four rows
    parts = quantize(x)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert torch.equal(torch.autograd.grad(parts.quantized.sum(), x)[0], torch.ones(30, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(dtype):
    """Inputs are converted to the type of the codes, their gradient to that of the inputs."""
    quantize = VectorQuantize(5, 3)
    x = torch.randn(4, 3).to(dtype).requires_grad_()
    result = quantize(x)
    assert result.quantized.dtype == torch.float32
    result.quantized.sum().backward()
    assert x.grad.dtype == dtype
    half = copy.deepcopy(quantize).to(torch.bfloat16)
    assert half(x).quantized.dtype == torch.bfloat16


def test_none_at_all():
    quantized, indices, *losses = module(num_levels=2)(randn(0, 3))
    assert (quantized.shape, indices.shape) == ((0, 3), (0, 2))
    assert losses == [0, 0]
    assert module(num_levels=2).lookup(indices).shape == (0, 3)


def test_one_code_and_one_dimension():
    quantize = module(num_codes=1, dim=1)
    quantized, indices, *_ = quantize(randn(4, 1))
    assert (indices == 0).all()
    assert torch.equal(quantized, quantize.codebooks[0].detach().expand(4, 1))


def test_lookup_has_gradients():
    quantize = module(num_levels=2)
    indices = torch.tensor([[0, 1], [0, 2]])
    quantize.lookup(indices).sum().backward()
    expected = torch.zeros_like(quantize.codebooks)
    expected[0, 0], expected[1, 1], expected[1, 2] = 2, 1, 1
    assert torch.equal(quantize.codebooks.grad, expected)


def test_state_and_repr():
    quantize = module(num_levels=2)
    twin = VectorQuantize(6, 3, num_levels=2).double()
    twin.load_state_dict(quantize.state_dict())
    x = randn(5, 3)
    assert torch.equal(twin(x).quantized, quantize(x).quantized)
    assert "num_codes=6, dim=3, commitment=0.25, num_levels=2" in repr(quantize)
    bound = VectorQuantize(10, 3).codebooks.detach().abs().amax()
    assert 0.05 < bound <= 0.1


@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_transforms():
    quantize, x = module(num_levels=2), randn(5, 3)

    def cost(x):
        result = quantize(x)
        return result.quantized.cos().sum() + result.commitment_loss

    expected = torch.stack([grad(cost)(row) for row in x])
    torch.testing.assert_close(vmap(grad(cost))(x), expected)
    torch._dynamo.reset()
    compiled = torch.compile(cost, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(compiled(leaf), cost(x))
    actual = torch.autograd.grad(compiled(leaf), leaf)[0]
    torch.testing.assert_close(actual, torch.autograd.grad(cost(leaf), leaf)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_codes": 0}, "num_codes to be an integer >= 1, but got 0"),
        ({"dim": -1}, "dim to be an integer >= 1, but got -1"),
        ({"num_levels": 0}, "num_levels to be an integer >= 1, but got 0"),
        ({"commitment": -0.1}, "finite commitment >= 0, but got -0.1"),
        ({"commitment": float("nan")}, "finite commitment >= 0, but got nan"),
        ({"commitment": float("inf")}, "finite commitment >= 0, but got inf"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        VectorQuantize(**{"num_codes": 4, "dim": 3, **options})


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(5, 2), r"x of shape \(\*X, 3\), but got \(5, 2\)"),
        (torch.zeros(()), r"x of shape \(\*X, 3\), but got \(\)"),
        (torch.zeros(5, 3).long(), "x of a floating point dtype, but got torch.int64"),
    ],
)
def test_bad_inputs(x, words):
    with pytest.raises(ValueError, match=words):
        module()(x)


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        (torch.zeros(5, 1).long(), r"indices of shape \(\*X, 2\), but got \(5, 1\)"),
        (torch.zeros(5, 2), "indices of dtype int64, but got torch.float32"),
        (torch.tensor([0, 6]), r"indices from 0 to 5, but got tensor\(\[0, 6\]\)"),
        (torch.tensor([0, -1]), "indices from 0 to 5, but got"),
    ],
)
def test_bad_indices(indices, words):
    with pytest.raises(ValueError, match=words):
        module(num_levels=2).lookup(indices)
