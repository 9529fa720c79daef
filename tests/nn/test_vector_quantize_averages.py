"""Codes that are moving averages: the formula, clusters, restarts, what is kept, mistakes."""

import copy

import pytest
import torch

from pyro_mixtures.nn import VectorQuantize
from tests.registry import randn

DECAY = 0.9


def module(num_codes=6, dim=3, **options):
    quantize = VectorQuantize(num_codes, dim, **{"ema_decay": DECAY, **options}).double()
    quantize.codebooks.copy_(randn(*quantize.codebooks.shape))
    return quantize


def clusters(centers, count=40, spread=0.05):
    return (centers + spread * torch.randn(count, *centers.shape, dtype=centers.dtype)).flatten(
        0, 1
    )


@pytest.mark.parametrize("shape", [(20,), (4, 5), (1,)])
@pytest.mark.parametrize("num_levels", [1, 3])
def test_formula(num_levels, shape):
    """That of the paper's appendix, with its sums m: of each level, over steps."""
    quantize = module(num_levels=num_levels)
    codes = quantize.codebooks.clone()
    counts = torch.zeros(num_levels, 6).double()
    sums = torch.zeros(num_levels, 6, 3).double()
    for _ in range(7):
        x = randn(*shape, 3)
        found = quantize(x)
        rest = x.reshape(-1, 3)
        for level in range(num_levels):
            index = torch.cdist(rest, codes[level]).argmin(-1)
            assert torch.equal(found.indices[..., level].flatten(), index)
            chosen = torch.nn.functional.one_hot(index, 6).double()  # (N, K)
            counts[level] = DECAY * counts[level] + (1 - DECAY) * chosen.sum(0)
            sums[level] = DECAY * sums[level] + (1 - DECAY) * chosen.mT @ rest
            rest = rest - codes[level][index]
            used = counts[level] > 0
            codes[level][used] = sums[level][used] / counts[level][used].unsqueeze(-1)
        torch.testing.assert_close(found.quantized.flatten(0, -2), x.reshape(-1, 3) - rest)
        torch.testing.assert_close(quantize.code_counts, counts, rtol=1e-12, atol=0)
        torch.testing.assert_close(quantize.codebooks, codes, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_are_the_means_of_clusters(dtype):
    """Those of k-means from the same start, to the digits of the type, also far from zero."""
    torch.manual_seed(0)
    centers = 100 + torch.tensor([[4.0, 0.0], [-4.0, 1.0], [0.0, -5.0]], dtype=dtype)
    x = clusters(centers)
    start = centers + 1.5 * torch.randn(3, 2, dtype=dtype)
    means = start.double()
    for _ in range(20):
        index = torch.cdist(x.double(), means).argmin(-1)
        means = torch.stack([x.double()[index == k].mean(0) for k in range(3)])
    assert (means - centers).abs().max() < 0.05
    quantize = VectorQuantize(3, 2, ema_decay=0.5).to(dtype)
    quantize.codebooks[0] = start
    for _ in range(60):
        quantize(x)
    error = (quantize.codebooks[0] - means).abs().max()
    assert error < 200 * torch.finfo(dtype).eps
    assert quantize.codebooks.dtype == quantize.code_counts.dtype == dtype


def test_codes_without_use_stay():
    """For more steps than float32 has powers of the decay."""
    quantize = VectorQuantize(3, 2, ema_decay=DECAY)
    quantize.codebooks[0] = torch.tensor([[0.0, 0.0], [9.0, 9.0], [7.0, -7.0]])
    x = torch.tensor([[9.1, 8.0], [0.5, 0.0]])
    quantize(x)
    before = quantize.codebooks.clone()
    for _ in range(1500):
        quantize(x[1:])
    assert torch.equal(quantize.codebooks[0, 1:], before[0, 1:])
    assert torch.equal(before[0], torch.tensor([[0.5, 0.0], [9.1, 8.0], [7.0, -7.0]]))
    assert quantize.code_counts[0, 1] < 1e-38
    quantize(x)  # an old code without use learns like a new one
    assert torch.equal(quantize.codebooks[0, 1], x[0])


@pytest.mark.parametrize("num_levels", [1, 2])
def test_losses_and_gradients(num_levels):
    """Only the codebook loss is another: 0. Results are those before the codes moved."""
    quantize = module(num_levels=num_levels)
    by_loss = VectorQuantize(6, 3, num_levels=num_levels).double()
    by_loss.load_state_dict({"codebooks": quantize.codebooks})
    x = randn(20, 3).requires_grad_()
    found, expected = quantize(x), by_loss(x)
    assert torch.equal(found.quantized, expected.quantized)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.commitment_loss, expected.commitment_loss)
    assert found.codebook_loss == 0
    assert not list(quantize.parameters())
    gradients = []
    for result in (found, expected):
        cost = result.quantized.cos().sum() + result.commitment_loss + result.codebook_loss
        gradients.append(torch.autograd.grad(cost, x)[0])
    assert torch.equal(*gradients)
    assert not quantize.lookup(found.indices).requires_grad


@pytest.mark.parametrize("num_levels", [1, 2])
def test_dead_codes_restart_at_inputs(num_levels):
    """And those in use do not change by it."""
    quantize = module(8, 3, num_levels=num_levels, restart_below=0.3)
    quantize.codebooks[:, 5:] += 100
    twin = copy.deepcopy(quantize)
    twin.restart_below = None
    starts = twin.codebooks.clone()
    residual = randn(30, 3)
    quantize(residual)
    found = twin(residual).indices
    for level in range(num_levels):
        codes, counts = twin.codebooks[level], twin.code_counts[level]
        dead = counts < 0.3 * counts.mean()
        assert dead[5:].all()
        assert not dead.all()
        assert torch.equal(quantize.codebooks[level][~dead], codes[~dead])
        assert torch.equal(quantize.code_counts[level][~dead], counts[~dead])
        assert (quantize.code_counts[level][dead] == counts.mean()).all()
        fresh = quantize.codebooks[level][dead]
        origins = (fresh.unsqueeze(1) - residual).abs().amax(-1) < 1e-12  # (dead, N)
        assert (origins.sum(-1) == 1).all()
        assert (origins.sum(0) <= 1).all()
        residual = residual - starts[level][found[:, level]]


def test_restarts_end_when_all_codes_are_in_use():
    """Every cluster gets a code, where all codes have started in one place."""
    torch.manual_seed(0)
    angles = torch.arange(8) * torch.pi / 4
    centers = 5 * torch.stack([angles.cos(), angles.sin()], -1)
    quantize = VectorQuantize(16, 2, ema_decay=DECAY, restart_below=0.1)
    stuck = VectorQuantize(16, 2, ema_decay=DECAY)
    for codebook in (quantize, stuck):
        codebook.codebooks.fill_(20.0)
        codebook.codebooks[0, 0] = 0.0
        for _ in range(100):
            x = clusters(centers)
            codebook(x)
    distance = torch.cdist(centers, quantize.codebooks[0]).amin(-1)
    assert distance.max() < 0.1
    assert quantize.perplexity(quantize(x).indices) > 8
    assert stuck.perplexity(stuck(x).indices) == 1


def test_more_codes_than_inputs():
    quantize = module(8, 3, restart_below=0.1)
    quantize.codebooks[0, :2] = torch.tensor([[5.0], [-5.0]])
    x = quantize.codebooks[0, :2] + randn(2, 3)  # one for each of these
    quantize(x)
    origins = (quantize.codebooks[0].unsqueeze(1) - x).abs().amax(-1) < 1e-12
    assert (origins.sum(-1) == 1).all()


def test_none_at_all():
    quantize = module(num_levels=2, restart_below=0.1)
    state = copy.deepcopy(quantize.state_dict())
    assert quantize(randn(0, 3)).quantized.shape == (0, 3)
    assert all(torch.equal(state[name], x) for name, x in quantize.state_dict().items())


def test_evaluation_changes_nothing():
    quantize = module(num_levels=2, restart_below=0.1)
    quantize(randn(20, 3))
    state = copy.deepcopy(quantize.state_dict())
    quantize.eval()
    x, random_state = randn(20, 3), torch.get_rng_state()
    first = quantize(x)
    assert all(torch.equal(state[name], x) for name, x in quantize.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.equal(quantize.lookup(first.indices), first.quantized)


def test_resumed_training_is_unbroken():
    batches = [randn(20, 3) for _ in range(10)]
    whole = module(num_levels=2, restart_below=0.3)
    torch.manual_seed(0)
    for batch in batches[:5]:
        whole(batch)
    state, random_state = copy.deepcopy(whole.state_dict()), torch.get_rng_state()
    for batch in batches[5:]:
        whole(batch)
    twin = VectorQuantize(6, 3, num_levels=2, ema_decay=DECAY, restart_below=0.3).double()
    twin.load_state_dict(state)
    torch.set_rng_state(random_state)
    for batch in batches[5:]:
        twin(batch)
    expected = whole.state_dict()
    assert set(expected) == {"codebooks", "code_counts"}
    assert all(torch.equal(expected[name], x) for name, x in twin.state_dict().items())
    assert "num_levels=2, ema_decay=0.9, restart_below=0.3" in repr(twin)


@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_compiled():
    quantize = module(num_levels=2)
    twin = copy.deepcopy(quantize)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = randn(20, 3)
        torch.testing.assert_close(compiled(x), quantize(x))
    torch.testing.assert_close(twin.state_dict(), quantize.state_dict())


def test_half_precision():
    """Averages of a batch are made in more digits than the codes have."""
    quantize = VectorQuantize(2, 1, ema_decay=DECAY).to(torch.bfloat16)
    quantize.codebooks[0] = torch.tensor([[-1.0], [1.0]])
    x = torch.tensor([-2.0, 2.0]).repeat(5000).unsqueeze(-1).bfloat16()
    quantize(x)
    torch.testing.assert_close(quantize.codebooks[0], torch.tensor([[-2.0], [2.0]]).bfloat16())
    torch.testing.assert_close(quantize.code_counts, torch.full((1, 2), 500.0).bfloat16())
    assert quantize.perplexity(quantize(x).indices) == pytest.approx(2)


def test_perplexity():
    quantize = module(num_codes=4, num_levels=2)
    uniform = torch.arange(4).repeat(3)
    one = torch.full((12,), 2)
    indices = torch.stack([uniform, one], -1).reshape(3, 4, 2)
    expected = torch.tensor([4.0, 1.0]).double()
    torch.testing.assert_close(quantize.perplexity(indices), expected)
    skewed = torch.tensor([[0, 1], [0, 1], [0, 2], [3, 2]])
    shares = torch.tensor([0.75, 0.25]).double()
    expected = torch.stack([(-(shares * shares.log()).sum()).exp(), torch.tensor(2.0).double()])
    torch.testing.assert_close(quantize.perplexity(skewed), expected)
    assert VectorQuantize(4, 3).perplexity(indices[..., :1]).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ema_decay": 0.0}, "0 < ema_decay < 1, but got 0.0"),
        ({"ema_decay": 1.0}, "0 < ema_decay < 1, but got 1.0"),
        ({"ema_decay": float("nan")}, "0 < ema_decay < 1, but got nan"),
        ({"ema_decay": 0.9, "restart_below": 0}, "0 < restart_below < 1, but got 0"),
        ({"ema_decay": 0.9, "restart_below": 1.5}, "0 < restart_below < 1, but got 1.5"),
        ({"restart_below": 0.1}, "ema_decay with restart_below, but got restart_below=0.1 alone"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        VectorQuantize(4, 3, **options)


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        (torch.zeros(5, 1).long(), r"indices of shape \(\*X, 2\), but got \(5, 1\)"),
        (torch.tensor([0, 6]), r"indices from 0 to 5, but got tensor\(\[0, 6\]\)"),
        (torch.zeros(0, 2).long(), r"indices of one vector or more, but got shape \(0, 2\)"),
    ],
)
def test_bad_indices(indices, words):
    with pytest.raises(ValueError, match=words):
        module(num_levels=2).perplexity(indices)
