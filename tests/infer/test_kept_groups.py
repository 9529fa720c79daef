"""Groups of many components are kept over steps while the components stay near."""

import copy
import pickle
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_mixtures.components.compiled_normals import CompiledNormals
from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO
from pyro_mixtures.numerics.linkage import MANY
from pyro_mixtures.samples import groups as grouping
from pyro_mixtures.samples.blending import Blending
from pyro_mixtures.samples.groups import PATIENCE, KeptGroups
from tests.distributions.test_unbiased_grid import TOLERANCE, some, worst_error
from tests.infer.mixture_guides import MIXTURES as GUIDES
from tests.infer.mixture_guides import AutoSquashedMixture
from tests.registry import FAMILIES

SERVES = MANY // PATIENCE


def model():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.fixture(autouse=True)
def _new_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def found(monkeypatch):
    """The kinds of the groups that were found, one after another."""
    kinds = []

    def watched(name):
        linkage = getattr(grouping, name)

        def find(*arguments):
            kinds.append(name)
            return linkage(*arguments)

        find.__name__ = name
        return find

    monkeypatch.setattr(CompiledNormals, "groups", lambda *_: None)  # which find them at once
    for name in ("complete_linkage", "single_linkage"):
        monkeypatch.setattr(grouping, name, watched(name))
    return kinds


def make(guide_class=AutoDiagonalNormalMixture, count=MANY):
    guide = guide_class(model, count)
    with torch.no_grad():
        guide()
    return guide


def groups(guide):
    return mixture_of(guide).groups


def mixture_of(guide):
    posterior = guide.get_posterior()
    return getattr(posterior, "base_dist", posterior)  # below a flow


@pytest.mark.parametrize("guide_class", GUIDES)
@pytest.mark.parametrize("elbo", [Trace_ELBO, BaselinedTrace_ELBO])
def test_found_anew_after_some_steps(found, guide_class, elbo):
    guide = make(guide_class)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-6}), elbo())
    counts = []
    for _ in range(2 * SERVES + 1):
        svi.step()
        counts.append(len(found))
    assert counts == [1] * SERVES + [2] * SERVES + [3]


def test_components_whose_places_are_not_known(found):
    """They make one group, which is found each time."""
    guide = make(AutoSquashedMixture)
    for step in range(3):
        assert not groups(guide).any()
        assert len(found) == step + 1


def test_few_components_are_grouped_each_time(found):
    guide = make(count=MANY - 1)
    for step in range(4):
        groups(guide)
        assert len(found) == step + 1


def change(guide):
    guide.locs.data = guide.locs + 2.0


def load(guide):
    state = guide.state_dict()
    guide.load_state_dict({**state, "locs": 3 * state["locs"]})


def widen(guide):
    guide.coord_scale = 5 * guide.coord_scale.detach()


def other_dtype(guide):
    guide.double()


@pytest.mark.parametrize("by_hand", [change, load, widen, other_dtype])
@pytest.mark.parametrize("guide_class", GUIDES)
def test_found_anew_for_other_parameters(found, guide_class, by_hand):
    guide = make(guide_class)
    first = groups(guide)
    assert groups(guide) is first
    by_hand(guide)
    pyro.clear_param_store()
    second = groups(guide)
    assert len(found) == 2
    fresh = mixture_of(guide)
    fresh.kept_groups = None
    assert torch.equal(second, fresh.groups)
    assert groups(guide) is second


def test_small_moves_keep_the_groups(found):
    guide = make()
    first = groups(guide)
    with torch.no_grad():
        guide.locs += 0.01 * guide.coord_scale
    assert groups(guide) is first
    assert len(found) == 1


def test_other_shapes_and_values_that_are_not_finite(found):
    kept = KeptGroups()

    def mixture(count, dim, value=0.0):
        locs = torch.full((count, dim), value)
        q = MixtureOfDiagNormals(
            locs, torch.ones_like(locs), torch.zeros(count), validate_args=False
        )
        q.kept_groups = kept
        return q

    for number, shape in enumerate([(MANY, 2), (MANY + 1, 2), (MANY, 3), (MANY, 3, torch.nan)]):
        assert mixture(*shape).groups.shape == shape[:1]
        assert len(found) == number + 1


def test_each_kind_of_groups_is_kept(found):
    guide = make()
    steps = [
        SVI(model, guide, pyro.optim.SGD({"lr": 1e-6}), elbo).step
        for elbo in (Trace_ELBO(), BaselinedTrace_ELBO())
    ]
    for _ in range(SERVES):
        for step in steps:
            step()
    assert found == ["complete_linkage", "single_linkage"]


def test_each_guide_keeps_its_own(found):
    guide = make()
    first = groups(guide)
    pyro.clear_param_store()
    copied, other = copy.deepcopy(guide), make()
    loaded = pickle.loads(pickle.dumps(guide))
    with torch.no_grad():
        other.locs += 5.0
        copied.locs += 10.0
        loaded.locs -= 10.0
    found.clear()
    for another in (other, copied, loaded):
        assert groups(another) is not first
    assert len(found) == 3
    assert groups(guide) is first
    assert guide.state_dict().keys() == {
        "locs",
        "coord_scale_unconstrained",
        "component_logits",
    }


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_recorded_graphs_find_their_own():
    """What is kept would be a constant there."""
    kept = KeptGroups()

    def labels(locs):
        q = MixtureOfDiagNormals(locs, torch.ones_like(locs), locs[:, 0], validate_args=False)
        q.kept_groups = kept
        return q.groups

    near = torch.zeros(MANY, 1)
    assert not labels(near).any()
    function = torch.jit.trace(labels, near, check_trace=False)
    far = 50 * torch.arange(float(MANY)).unsqueeze(-1)
    assert torch.equal(function(far), torch.arange(MANY))
    assert not labels(near).any()


@pytest.mark.parametrize("blends", [False, True])
def test_unbiased_when_the_parameters_have_moved(monkeypatch, blends):
    """By integration on a grid: the groups are no longer those that would be found."""
    monkeypatch.setattr(grouping, "MANY", 1)
    monkeypatch.setattr(grouping, "PATIENCE", 0.001)
    family, kept, blending = FAMILIES["diag_normals"], KeptGroups(), Blending()
    blending.load_state_dict(
        {"moments": torch.tensor([[0.3] * 4, [1.0] * 4]).double(), "num_draws": 10**9}
    )

    def learning(**options):
        q = MixtureOfDiagNormals(**options)
        q.kept_groups = kept
        return q.blended(blending) if blends else q

    logits = torch.tensor([0.3, -0.2, 0.1, 0.5]).double()
    before = {
        "locs": torch.tensor([[0.0], [1.9], [5.0], [7.1]]).double(),
        "coord_scale": torch.ones(4, 1).double(),
        "component_logits": logits,
    }
    assert learning(**before).groups.tolist() == [0, 0, 2, 3]
    moved = {**before, "locs": torch.tensor([[-0.1], [2.0], [5.1], [7.0]]).double()}
    moved = {name: value.requires_grad_() for name, value in moved.items()}
    assert MixtureOfDiagNormals(**moved).groups.tolist() == [0, 1, 2, 2]
    assert learning(**moved).groups.tolist() == [0, 0, 2, 3]
    errors = worst_error(
        replace(family, distribution=learning), moved, some("cosine", "quartic", "cubic")
    )
    assert max(errors.values()) < TOLERANCE, errors
    assert learning(**moved).groups.tolist() == [0, 0, 2, 3]
