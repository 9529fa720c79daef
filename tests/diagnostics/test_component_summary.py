"""Summaries of components: closed forms, all families, the dead and the doubled, errors."""

import math
import sys
from dataclasses import fields

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Categorical, Exponential, Gamma, Independent, Normal, StudentT

from pyro_mixtures import (
    GaussianScaleMixture,
    Mixture,
    MixtureOfDiagNormals,
    MixtureOfNormals,
    MixtureSameFamily,
)
from pyro_mixtures.diagnostics import component_summary
from pyro_mixtures.estimators import stratified
from pyro_mixtures.infer import AutoDiagonalNormalMixture
from pyro_mixtures.normals.bounds import bhattacharyya_distances
from tests.families.registry import each_components
from tests.pairwise import in_pairs
from tests.registry import covariance, each_family, grid

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def normals(locs, scales=None, weights=None, **options):
    locs = torch.as_tensor(locs, dtype=torch.float64).unsqueeze(-1)
    scales = torch.ones_like(locs) if scales is None else torch.tensor(scales).reshape(locs.shape)
    weights = torch.ones(len(locs)) if weights is None else torch.tensor(weights)
    return MixtureOfDiagNormals(locs, scales.double(), weights.double().log(), **options)


def assert_sound(found, batch_shape, K):
    """Shapes, and what holds for any mixture."""
    assert found.weights.shape == (*batch_shape, K)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(batch_shape).to(found.weights))
    overlaps = found.overlaps
    assert overlaps.shape == found.doubled.shape == (*batch_shape, K, K)
    assert torch.equal(overlaps, overlaps.mT)
    assert torch.equal(overlaps.diagonal(dim1=-2, dim2=-1), torch.ones_like(found.weights))
    assert ((overlaps >= 0) & (overlaps <= 1)).all()
    assert not found.doubled.diagonal(dim1=-2, dim2=-1).any()
    assert found.dead.shape == found.degenerate.shape == (*batch_shape, K)
    assert found.effective_components.shape == found.distinct_components.shape == batch_shape
    rounding = 1 + 1e-5
    assert (found.distinct_components >= 1 / rounding).all()
    assert (found.distinct_components <= found.effective_components * rounding).all()
    assert (found.effective_components <= K * rounding).all()
    assert "distinct" in str(found)


@in_pairs
@each_family
@pytest.mark.parametrize("batch_shape", [(), (2,)])
@pytest.mark.parametrize("K", [1, 3])
def test_mixtures_of_normals(family, batch_shape, K):
    parameters = family.parameters(batch_shape, K=K, D=3)
    found = component_summary(family.build(parameters))
    assert_sound(found, batch_shape, K)
    assert not any(getattr(found, field.name).requires_grad for field in fields(found))


@each_family
@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_many_components_of_normals_in_slices(family, batch_shape, monkeypatch):
    """Arrays of all pairs and coordinates stay within the memory budget."""
    mixture = family.build(family.parameters(batch_shape, K=5, D=3))
    whole, rows = component_summary(mixture).overlaps, []
    module = sys.modules[component_summary.__module__]  # the function has its name
    monkeypatch.setattr(module, "MEMORY_BUDGET", 500)

    def counted(locs, *others):
        rows.append(locs.shape[-2])
        return bhattacharyya_distances(locs, *others)

    monkeypatch.setattr(module, "bhattacharyya_distances", counted)
    torch.testing.assert_close(component_summary(mixture).overlaps, whole)
    assert sum(rows) == 5
    assert max(rows) < 5


@each_family
@pytest.mark.parametrize("D", [1, 2])
def test_overlaps_of_normals_are_their_integrals(family, D):
    parameters = family.parameters(K=3, D=D)
    reference = family.reference(parameters)
    points, volume = grid(reference)
    root = (reference.component_distribution.log_prob(points.unsqueeze(-2)) / 2).exp()  # (S, K)
    expected = (root.mT @ root * volume).detach()
    found = component_summary(family.build(parameters))
    torch.testing.assert_close(found.overlaps, expected, rtol=1e-7, atol=1e-9)


@each_family
def test_distinct_components_are_a_bound_of_the_mutual_information(family):
    parameters = family.parameters(K=3, D=2, spread=2.0)
    mixture, reference = family.build(parameters), family.reference(parameters)
    found = component_summary(mixture)
    components = reference.component_distribution
    log_volume = covariance(components).logdet().detach() / 2
    within = math.log(2 * math.pi * math.e) + (found.weights * log_volume).sum()
    lower, _ = mixture.entropy_bounds()  # by the same distances
    torch.testing.assert_close(found.distinct_components.log(), lower.detach() - within, **EXACT)
    points, volume = grid(reference)
    log_q = reference.log_prob(points).detach()
    information = -(log_q.exp() * log_q).sum() * volume - within
    assert 0 < found.distinct_components.log() < information


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0, 10.0])
def test_two_unit_normals(distance):
    found = component_summary(normals([0.0, distance]))
    overlap = math.exp(-(distance**2) / 8)
    assert found.overlaps[0, 1].item() == pytest.approx(overlap, rel=1e-12)
    assert found.effective_components.item() == pytest.approx(2)
    assert found.distinct_components.item() == pytest.approx(2 / (1 + overlap), rel=1e-12)


def test_normals_of_two_scales():
    found = component_summary(normals([0.0, 0.0], scales=[1.0, 3.0]))
    assert found.overlaps[0, 1].item() == pytest.approx(math.sqrt(6 / 10), rel=1e-12)


@each_components
@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_other_families(family, batch_shape):
    _, mixture = family.example(batch_shape)
    assert_sound(component_summary(mixture, num_samples=200), batch_shape, 3)


def test_sampled_overlaps_are_within_the_error_that_is_stated():
    """5 times the bound of the standard error: a false alarm of at most 6e-7 an entry."""
    shapes, rates = torch.tensor([0.7, 2.0, 9.0]).double(), torch.tensor([1.0, 0.5, 3.0]).double()
    q = MixtureSameFamily(Categorical(torch.ones(3).double()), Gamma(shapes, rates))
    found = component_summary(q, num_samples=20_000)
    shape, rate = (shapes + shapes[:, None]) / 2, (rates + rates[:, None]) / 2
    log_roots = (shapes * rates.log() - shapes.lgamma()) / 2
    expected = log_roots + log_roots[:, None] + shape.lgamma() - shape * rate.log()
    error = (found.overlaps - expected.exp()).abs()
    assert (error < 5 / math.sqrt(8 * 20_000)).all()
    assert error.max() > 0


def test_different_families():
    components = [Gamma(1.0, 2.0), Exponential(0.5), Gamma(1.0, 0.5)]
    found = component_summary(Mixture(Categorical(torch.ones(3)), components), num_samples=20_000)
    assert found.overlaps[0, 1].item() == pytest.approx(0.8, abs=5 / 400)
    assert found.overlaps[1, 2].item() == pytest.approx(1, abs=1e-6)
    assert found.doubled.tolist() == [[False] * 3, [False, False, True], [False, True, False]]
    assert found.effective_components.item() == pytest.approx(3, rel=1e-6)
    assert found.distinct_components < 2


def test_normal_components_of_any_class_are_exact():
    """Also beyond what samples could tell."""
    locs = torch.tensor([[0.0, 0.0], [40.0, 0.0]]).double()
    weights = Categorical(torch.ones(2).double())
    components = Independent(Normal(locs, torch.ones(2, 2).double()), 1)
    full = MixtureOfNormals(locs, torch.eye(2).double().expand(2, 2, 2), torch.zeros(2).double())
    for mixture in (MixtureSameFamily(weights, components), full):
        found = component_summary(mixture)
        assert found.overlaps[0, 1].item() == pytest.approx(math.exp(-200), rel=1e-10)


@each_family
def test_order_makes_no_difference(family):
    parameters = family.parameters(K=4, D=2)
    order = torch.tensor([2, 0, 3, 1])
    moved = dict(parameters)
    for name, letters in family.distribution._parameter_shapes().items():
        if "K" in letters and name in moved:
            moved[name] = moved[name].index_select(-len(letters) + letters.index("K"), order)
    first, second = (component_summary(family.build(each)) for each in (parameters, moved))
    torch.testing.assert_close(second.weights, first.weights[order], **EXACT)
    torch.testing.assert_close(second.overlaps, first.overlaps[order][:, order], **EXACT)
    torch.testing.assert_close(second.distinct_components, first.distinct_components, **EXACT)
    assert torch.equal(second.dead, first.dead[order])
    assert torch.equal(second.doubled, first.doubled[order][:, order])


def test_the_dead_and_the_doubled():
    mixture = normals([0.0, 9.0, 0.3, 20.0], weights=[0.4, 0.3, 0.276, 0.024])
    found = component_summary(mixture)
    assert found.dead.tolist() == [False, False, False, True]  # below 0.1 / 4
    assert found.doubled.nonzero().tolist() == [[0, 2], [2, 0]]
    assert not component_summary(mixture, dead_below=0.09).dead.any()
    assert not component_summary(mixture, doubled_above=0.99).doubled.any()
    assert component_summary(mixture, doubled_above=0.0).doubled[0].tolist() == [
        False,
        True,
        True,
        True,
    ]


def test_components_that_coincide_count_once():
    weights = [0.2, 0.5, 0.1, 0.2]
    found = component_summary(normals([0.0, 100.0, 0.0, 0.0], weights=weights))
    merged = component_summary(normals([0.0, 100.0], weights=[0.5, 0.5]))
    torch.testing.assert_close(found.distinct_components, merged.effective_components, **EXACT)
    assert component_summary(normals([3.0] * 5)).distinct_components.item() == pytest.approx(1)


@pytest.mark.parametrize(
    "mixture",
    [
        normals([0.0, 1.0, 50.0], weights=[0.5, 0.5, 0.0]),
        MixtureSameFamily(
            Categorical(logits=torch.tensor([0.0, 0.0, -math.inf]).double()),
            Gamma(torch.tensor([2.0, 3.0, 90.0]).double(), torch.ones(3).double()),
        ),
    ],
    ids=["normals", "gammas"],
)
def test_a_component_without_weight(mixture):
    found = component_summary(mixture, num_samples=1000)
    assert_sound(found, (), 3)
    assert found.weights[2] == 0
    assert found.dead.tolist() == [False, False, True]
    assert found.effective_components.item() == pytest.approx(2, rel=1e-6)


def test_scales_far_apart():
    scales = torch.tensor([1e-18, 1.0, 1e18])
    found = component_summary(GaussianScaleMixture(torch.ones(50), torch.zeros(3), scales))
    assert_sound(found, (), 3)
    torch.testing.assert_close(found.overlaps, torch.eye(3))
    assert found.overlaps.dtype == torch.float32


def test_a_batch_and_what_expand_adds():
    locs = torch.tensor([[[0.0], [0.0]], [[0.0], [50.0]]])
    mixture = MixtureOfDiagNormals(locs, torch.ones(2, 1), torch.zeros(2))
    found = component_summary(mixture.expand((3, 2)))
    assert_sound(found, (3, 2), 2)
    torch.testing.assert_close(found.distinct_components, torch.tensor([[1.0, 2.0]] * 3))
    assert str(found) == (
        "6 mixtures of 2 components: 2.00 to 2.00 effective, 1.00 to 2.00 distinct"
    )


def test_a_shared_scale_and_a_lonely_logit_broadcast():
    components = Normal(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.ones(2))
    found = component_summary(MixtureSameFamily(Categorical(torch.ones(2)), components))
    assert_sound(found, (2,), 2)


def test_the_posterior_of_a_guide():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    with pyro.get_param_store().scope():  # nothing is left for other tests
        guide = AutoDiagonalNormalMixture(model, 4)
        guide()
        assert_sound(component_summary(guide.get_posterior()), (), 4)


def test_the_table():
    text = str(component_summary(normals([0.0, 0.1, 50.0, 99.0], weights=[0.3, 0.2, 0.49, 0.01])))
    lines = text.splitlines()
    assert lines[0].split() == ["component", "weight", "nearest", "overlap"]
    assert [line.split()[0] for line in lines[1:5]] == ["2", "0", "1", "3"]
    assert lines[2].split() == ["0", "0.300", "1", "0.999", "doubled"]
    assert lines[4].split() == ["3", "0.010", "2", "0.000", "dead"]
    assert lines[5].startswith("4 components: ")
    alone = str(component_summary(normals([0.0]))).splitlines()
    assert alone[1].split() == ["0", "1.000", "-", "-"]
    assert alone[2] == "1 component: 1.00 effective, 1.00 distinct"


def test_components_that_do_not_touch_have_no_nearest():
    lines = str(component_summary(normals([0.0, 1e4, 2e4]))).splitlines()
    assert [line.split()[2:] for line in lines[1:4]] == [["-", "-"]] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["long", "zero", "nan", "infinite"])
def test_a_dead_component_that_is_ill_conditioned(kind, dtype):
    """That of a fit in 20 dimensions which lost it: the rest is as without it."""
    torch.manual_seed(0)
    locs = torch.randn(4, 20, dtype=dtype)
    scale_tril = 0.3 * torch.randn(4, 20, 20, dtype=dtype).tril(-1) + torch.eye(20, dtype=dtype)
    if kind == "long":
        scale_tril[1].diagonal().copy_(torch.logspace(-10, 10, 20))
    else:
        scale_tril[1] *= {"zero": 0.0, "nan": math.nan, "infinite": math.inf}[kind]
    logits = torch.tensor([0.0, -30.0, 0.0, 0.0], dtype=dtype)
    found = component_summary(MixtureOfNormals(locs, scale_tril, logits, validate_args=False))
    kept = [0, 2, 3]
    others = component_summary(MixtureOfNormals(locs[kept], scale_tril[kept], logits[kept]))
    assert_sound(found, (), 4)
    assert others.degenerate.tolist() == [False] * 3
    torch.testing.assert_close(found.overlaps[kept][:, kept], others.overlaps)
    torch.testing.assert_close(found.distinct_components, others.distinct_components)
    assert found.dead.tolist() == [False, True, False, False]
    assert found.degenerate.tolist() == [False, kind != "long", False, False]
    remarks = str(found).splitlines()[4].split()[4:]
    assert remarks == (["dead"] if kind == "long" else ["dead,", "degenerate"])


def test_families_without_density_are_degenerate_too():
    scales = torch.tensor([1.0, math.nan, 2.0])
    components = StudentT(torch.full((3,), 5.0), torch.zeros(3), scales, validate_args=False)
    mixture = MixtureSameFamily(Categorical(torch.ones(3)), components, validate_args=False)
    found = component_summary(mixture, num_samples=100)
    assert_sound(found, (), 3)
    assert found.degenerate.tolist() == [False, True, False]
    assert found.overlaps[1].tolist() == [0, 1, 0]
    assert found.overlaps[0, 2] > 0.5


def test_random_numbers_are_not_drawn_for_closed_forms():
    before = torch.get_rng_state()
    component_summary(normals([0.0, 1.0]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("mixture", "options", "message"),
    [
        (Normal(0.0, 1.0), {}, "Expected mixture .* but got Normal"),
        (stratified(normals([0.0])), {}, "Expected mixture .* but got StratifiedMixture"),
        (normals([0.0]), {"dead_below": -0.1}, "dead_below between 0 and 1, but got -0.1"),
        (normals([0.0]), {"doubled_above": 1.1}, "doubled_above between 0 and 1, but got 1.1"),
        (normals([0.0]), {"num_samples": 0}, "num_samples to be an integer >= 1, but got 0"),
    ],
)
def test_mistakes(mixture, options, message):
    with pytest.raises(ValueError, match=message):
        component_summary(mixture, **options)
