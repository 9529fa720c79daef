"""The search for modes, on densities whose truth is known."""

import io
import math
import re

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.mode_search import ModeSearch
from pyro_mixtures.infer.search.search_state import save


def five_normals(dimension, box=20.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    locs = box * (2 * torch.rand(5, dimension, generator=generator).double() - 1)
    raw = torch.randn(5, dimension, dimension, generator=generator).double()
    components = MultivariateNormal(locs, raw @ raw.mT + torch.eye(dimension))
    weights = torch.arange(1.0, 6.0).double() / 15

    def log_density(z):
        return (components.log_prob(z.unsqueeze(1)) + weights.log()).logsumexp(-1)

    return log_density, locs, weights


def starts(dimension, scale=12.0, count=100, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, dimension, generator=generator).double()


def measured(search, log_density, count=4000):
    """The ELBO and its standard error."""
    torch.manual_seed(0)
    mixture = search.mixture
    z = mixture.sample((count,))
    gains = log_density(z) - mixture.log_prob(z)
    return float(gains.mean()), float(gains.std()) / math.sqrt(count)


@pytest.mark.parametrize("dimension", [1, 2, 8])
def test_normals_far_apart_are_found_with_their_weights(dimension):
    log_density, locs, weights = five_normals(dimension, box=60.0)
    search = ModeSearch(log_density, starts(dimension, 40.0), seed=3)
    mixture = search.run()
    elbo, error = measured(search, log_density)
    assert elbo > -0.005 - 4 * error
    assert search.stopped == "flat"
    own = torch.cdist(mixture.locs, locs).argmin(-1)
    found = torch.zeros(5).double().index_add_(0, own, mixture.component_logits.softmax(-1))
    torch.testing.assert_close(found, weights, atol=0.01, rtol=0)
    assert len(mixture.locs) < 12


@pytest.mark.parametrize("place", [0.0, 1.7e9])
def test_ascents_to_one_optimum_are_merged_wherever_it_is(place, monkeypatch):
    """As of the time of an event, in seconds since 1970: one Hessian for each optimum."""
    counts, hessians = [], Evaluations.hessians

    def counted(self, z):
        counts.append(len(z))
        return hessians(self, z)

    monkeypatch.setattr(Evaluations, "hessians", counted)
    begin = place + starts(2, 5.0)
    search = ModeSearch(lambda z: -(((z - place).abs() - 9) ** 2).sum(-1), begin)
    search.step()
    assert sum(counts) == 4
    assert len(search.optima.points) == 4


def banana(z):
    x, y = z.unbind(-1)
    return -x.square() / 8 - (y - x.square() / 2).square() * 8 - math.log(math.pi)


def test_a_curved_density_gets_components_until_the_gap_is_small():
    search = ModeSearch(banana, starts(2, 3.0), seed=0, max_evaluations=40_000)
    search.run()
    elbo, error = measured(search, banana)
    assert -0.05 < elbo < 4 * error  # the density is normalized
    assert search.evaluations.count <= 40_000
    assert len(search.parts) > 5


def test_the_log_accounts_for_every_component():
    log_density, _, _ = five_normals(2)
    search = ModeSearch(log_density, starts(2), max_evaluations=8000)
    search.run()
    counts, kinds = [], set()
    for line in search.log:
        counts.append(int(re.search(r"K = (\d+)", line)[1]))
        change = re.search(r"(\d+) (added|doubles|needless|without weight)", line)
        if change is not None:
            kinds.add(change[2])
            by = int(change[1]) if change[2] == "added" else -int(change[1])
            assert counts[-1] == counts[-2] + by
        else:
            assert len(set(counts[-2:])) == 1
    assert counts[-1] == len(search.parts)
    assert {"added", "doubles"} <= kinds


def test_one_normal_stays_one():
    search = ModeSearch(lambda z: -z.square().sum(-1) / 2, starts(6, 5.0), seed=0)
    search.run()
    assert len(search.parts) == 1
    assert len(search.elbos) < 150


def test_one_skewed_mode_in_many_dimensions_gets_few_components():
    """None of them gains much, since each direction is a little skewed."""

    def log_density(z):
        return -(z.square().sum(-1) / 2 + (z - 1).exp().sum(-1))

    search = ModeSearch(log_density, starts(40, 3.0), seed=0)
    search.run()
    single = ModeSearch(log_density, starts(40, 3.0), seed=0, num_components=1)
    single.run()
    assert len(search.parts) <= 7
    assert search.evaluations.count < 15_000
    elbo, error = measured(search, log_density)
    of_single, single_error = measured(single, log_density)
    assert elbo > of_single - 3 * math.hypot(error, single_error)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_fixed_number_of_components_is_kept(count):
    log_density, _, _ = five_normals(2)
    search = ModeSearch(log_density, starts(2), num_components=count, max_evaluations=15_000)
    search.run()
    assert len(search.parts) == count
    elbo, error = measured(search, log_density)
    least = {1: math.log(4 / 15), 3: math.log(12 / 15), 9: 0.0}[count]
    assert elbo > least - 0.03 - 4 * error


def test_diagonal_normals_in_many_dimensions():
    dimension = 300
    sign = torch.ones(dimension).double()

    def log_density(z):
        near, far = ((z - 3 * sign).square().sum(-1), (z + 3 * sign).square().sum(-1))
        both = torch.stack([-near * 2 + math.log(0.3), -far * 2 + math.log(0.7)], -1)
        return both.logsumexp(-1) + dimension / 2 * math.log(math.pi)

    search = ModeSearch(log_density, starts(dimension, 3.0), seed=0)
    mixture = search.run()
    elbo, _ = measured(search, log_density, 500)
    assert elbo > -0.05
    high = mixture.locs[:, 0] > 0
    assert float(mixture.component_logits.softmax(-1)[high].sum()) == pytest.approx(0.3, abs=0.01)


def test_the_same_seed_has_the_same_result_and_other_random_numbers_stay():
    log_density, _, _ = five_normals(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        search = ModeSearch(log_density, starts(2), seed=seed, max_evaluations=8000)
        search.run()
        assert torch.equal(torch.rand(3), expected)
        found.append(search.mixture)
    assert torch.equal(found[0].locs, found[1].locs)
    assert found[0].locs.shape != found[2].locs.shape or not torch.equal(
        found[0].locs, found[2].locs
    )


@pytest.mark.parametrize(("after", "further"), [(0, 0), (1, 0), (7, 0), (90, 0), (0, 5), (7, 70)])
def test_a_search_goes_on_from_its_state_to_the_same_numbers(after, further, tmp_path):
    settings = {"seed": 2, "max_evaluations": 8000}
    whole = ModeSearch(banana, starts(2, 3.0), **settings)
    first = ModeSearch(banana, starts(2, 3.0), **settings)
    for _ in range(after):
        first.step()
    save(first, tmp_path / "search.pt")
    second = ModeSearch(banana, starts(2, 3.0), **settings)
    for _ in range(further):
        second.step()
    second.load_state_dict(torch.load(tmp_path / "search.pt", weights_only=True))
    whole.run()
    second.run()
    assert torch.equal(whole.mixture.locs, second.mixture.locs)
    assert torch.equal(whole.mixture.component_logits, second.mixture.component_logits)
    assert whole.elbos == second.elbos
    assert whole.log == second.log
    assert whole.evaluations.count == second.evaluations.count
    assert [path.name for path in tmp_path.iterdir()] == ["search.pt"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("seed", {"seed": 3}),
        ("max_evaluations", {"max_evaluations": 9000}),
        ("num_components", {"num_components": 2}),
        ("covariance", {"covariance": "diagonal"}),
        ("starts", {}),
    ],
)
def test_the_state_of_another_search_is_refused(name, other):
    search = ModeSearch(banana, starts(2, 3.0), max_evaluations=8000)
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    file.seek(0)
    begin = starts(2, 3.0 if name != "starts" else 4.0)
    with pytest.raises(ValueError, match=f"same {name}"):
        ModeSearch(banana, begin, **{"max_evaluations": 8000} | other).load_state_dict(
            torch.load(file, weights_only=True)
        )


@pytest.mark.parametrize("after", [1, 9])
def test_the_state_of_a_search_of_another_density_is_refused(after):
    search = ModeSearch(banana, starts(2, 3.0), max_evaluations=8000)
    for _ in range(after):
        search.step()
    other = ModeSearch(lambda z: banana(z) + 1e-4, starts(2, 3.0), max_evaluations=8000)
    with pytest.raises(ValueError, match="same log density, but got another"):
        other.load_state_dict(search.state_dict())
    assert other.parts is None
    assert other.evaluations.count == 0


def test_a_state_of_a_density_whose_gradient_is_not_finite_everywhere_is_taken():
    """The root of a negative number is not chosen, but its gradient is NaN."""

    def log_density(z):
        x = z[:, 0]
        return torch.where(x > 0, x.sqrt() - x, -50.0) - z[:, 1].square()

    first, second = (
        ModeSearch(log_density, starts(2, 3.0), max_evaluations=3000) for _ in range(2)
    )
    first.step()
    assert first.evaluations.failed > 100
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.mixture.locs, second.mixture.locs)


@pytest.mark.parametrize(
    ("dimension", "count", "budget"),
    [
        (2, 300, 100_000),
        (20, 300, 100_000),
        (30, 300, 150_000),
        (500, 300, 500_000),
        (2, 3000, 600_000),  # which suffices for the ascents of all starts
    ],
)
def test_the_default_budget(dimension, count, budget):
    search = ModeSearch(lambda z: z.sum(-1), starts(dimension, count=count))
    assert search.max_evaluations == budget


def test_an_interrupted_search_has_a_mixture():
    search = ModeSearch(banana, starts(2, 3.0), max_evaluations=8000)
    search.step()
    search.interrupt()
    assert search.done
    assert search.stopped == "interrupted"
    assert bool(search.mixture.log_prob(starts(2)).isfinite().all())


def test_a_search_that_has_not_begun_has_no_mixture():
    search = ModeSearch(banana, starts(2, 3.0), max_evaluations=8000)
    with pytest.raises(ValueError, match="mixture .* after the first step"):
        _ = search.mixture


@pytest.mark.parametrize("fixed", [None, 9])
def test_what_was_added_just_before_an_interrupt_takes_no_weight_from_others(fixed):
    log_density, _, _ = five_normals(2, box=60.0, seed=2)
    begin = starts(2, 40.0, count=10)
    search = ModeSearch(log_density, begin, num_components=fixed, max_evaluations=8000)
    while len(search.elbos) < 8:
        search.step()
    assert bool((search.parts.ages == 0).any())
    before, _ = measured(search, log_density)
    search.interrupt()
    after, error = measured(search, log_density)
    assert after > before - 0.05 - 4 * error


def test_points_without_mass_and_failures_harm_no_other():
    """A half plane where the density is zero, and a strip in which it is not a number."""

    def log_density(z):
        value = -(z - 1.0).square().sum(-1) / 2
        value = torch.where(z[:, 0] < 0, -math.inf, value)
        return torch.where((z[:, 1] > 2.0) & (z[:, 1] < 2.1), math.nan, value)

    search = ModeSearch(log_density, starts(2, 3.0), max_evaluations=10_000)
    mixture = search.run()
    assert search.evaluations.without_mass > 0
    assert search.evaluations.failed > 0
    z = mixture.sample((2000,))
    inside = (z[:, 0] > 0).double().mean()
    assert inside > 0.97
    # a Normal across the strip pays for it, those beyond are found less well
    torch.testing.assert_close(mixture.mean[1], torch.ones(()).double(), atol=0.3, rtol=0)


def test_a_density_all_of_whose_first_components_reach_out_of_its_support_is_fitted():
    """It is highest in a corner of its support, where no Hessian is negative."""

    def log_density(z):
        return torch.where((z > 0).all(-1), 3 * math.log(50) - 50 * z.sum(-1), -math.inf)

    search = ModeSearch(log_density, starts(3), max_evaluations=10_000)
    search.step()
    assert len(search.optima.points) == 0
    assert bool(search.parts.log_weights.isfinite().all())
    mixture = search.run()
    mean = mixture.sample((2000,)).mean(0)
    torch.testing.assert_close(mean, torch.full_like(mean, 1 / 50), atol=0.01, rtol=0)


def test_an_improper_density_is_found_out():
    search = ModeSearch(lambda z: -z[:, 0].square() / 2 + 0 * z[:, 1], starts(2, 1.0))
    search.run()
    assert search.stopped == "improper"
    assert search.improper == [1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_components": 0}, "num_components"),
        ({"max_evaluations": 10}, "max_evaluations"),
        ({"covariance": "round"}, "covariance"),
        ({"starts": torch.zeros(5)}, "starts"),
        ({"starts": torch.zeros(1, 2)}, "starts"),
        ({"starts": torch.full((3, 2), math.nan)}, "starts"),
        ({"starts": torch.zeros(3, 0)}, "starts"),
        ({"starts": starts(2) * torch.tensor([1.0, 0.0])}, r"differ in each .* same in \[1\]"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        ModeSearch(banana, **{"starts": starts(2)} | change)


def test_starts_without_any_mass_are_named():
    search = ModeSearch(lambda z: torch.full((len(z),), -math.inf) + 0 * z.sum(-1), starts(2))
    with pytest.raises(ValueError, match="mass at one of the starts"):
        search.step()
