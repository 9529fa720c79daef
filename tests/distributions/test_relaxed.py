"""What relaxed distributions keep beyond the contract: arguments, types, and torch's samples."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import constraints

from pyro_mixtures.distributions import ExpRelaxedCategorical
from tests.pairwise import in_pairs
from tests.registry import gradients, relative_error, repeated
from tests.relaxed import drawn, each_law

EXACT = {"rtol": 1e-10, "atol": 1e-12}


@in_pairs
@each_law
@pytest.mark.parametrize("sample_shape", [(), (5,), (5, 2)])
@pytest.mark.parametrize(
    ("temperature_shape", "logits_shape"),
    [((), ()), ((), (2,)), ((2,), ()), ((3, 1), (2,)), ((1,), (3, 2)), ((2,), (3, 1))],
)
def test_shapes_and_broadcasting(law, sample_shape, temperature_shape, logits_shape):
    """Parameters that broadcast equal those repeated in full: samples, density, gradients."""
    parameters = {
        "temperature": law.parameters(temperature_shape)["temperature"],
        "logits": law.parameters(logits_shape)["logits"],
    }
    batch_shape = torch.broadcast_shapes(temperature_shape, logits_shape)
    q, full = law.build(parameters), repeated(parameters, batch_shape, law)
    assert (q.batch_shape, q.event_shape) == (batch_shape, law.event_shape())
    z, explicit = drawn(q, sample_shape), drawn(law.build(full), sample_shape)
    assert z.shape == (*sample_shape, *batch_shape, *law.event_shape())
    assert torch.equal(z, explicit)
    density = q.log_prob(z)
    assert density.shape == (*sample_shape, *batch_shape)
    for output, repeat in ((density, law.build(full).log_prob(explicit)), (z, explicit)):
        torch.testing.assert_close(output, repeat, **EXACT)
        actual = gradients(output, parameters, output.detach().cos())
        expected = gradients(repeat, full, output.detach().cos())
        expected = {k: v.sum_to_size(actual[k].shape) for k, v in expected.items()}
        assert relative_error(actual, expected, size=1.0) < 1e-9


@each_law
@pytest.mark.parametrize(
    ("batch_shape", "expanded"),
    [((), (4,)), ((2,), (3, 2)), ((3, 1), (3, 4)), ((3, 1), (2, 3, 4)), ((2,), (2,))],
)
def test_expand(law, batch_shape, expanded):
    parameters = law.parameters(batch_shape)
    q = law.build(parameters).expand(expanded)
    explicit = law.build(repeated(parameters, expanded, law))
    assert type(q) is law.distribution
    assert (q.batch_shape, q.temperature.shape) == (expanded, expanded)
    z = drawn(q, (5,))
    assert torch.equal(z, drawn(explicit, (5,)))
    assert torch.equal(q.log_prob(z), explicit.log_prob(z))
    assert torch.equal(q.probs, explicit.probs)
    assert q.expand((7, *expanded)).rsample().shape == (7, *expanded, *law.event_shape())


@each_law
def test_samples_and_signature_are_those_of_torch(law):
    """With the same random numbers in float64, so that results can be compared."""
    parameters = law.parameters((2,), temperature=0.7)
    temperature, logits = parameters["temperature"][0], parameters["logits"]
    probs = logits.softmax(-1) if law.is_categorical else logits.sigmoid()
    for q, reference in (
        (law.distribution(temperature, probs), law.reference(temperature, probs)),
        (
            law.distribution(temperature, None, logits),
            law.reference(temperature, None, logits),
        ),
    ):
        actual, expected = drawn(q, (50,)), drawn(reference, (50,))
        if law.snaps and law.is_categorical:
            expected = (expected == expected.amax(-1, keepdim=True)).double()
        elif law.snaps:
            expected = expected.round()
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(q.probs, reference.probs)
        torch.testing.assert_close(q.logits, reference.logits)


@each_law
def test_numbers_and_types(law):
    """Samples are like the logits; the temperature may be any number or tensor."""
    for dtype in (torch.float32, torch.float64):
        logits = law.parameters((2,), dtype=dtype)["logits"]
        for temperature in (1, 1.0, torch.tensor(1.0), torch.ones(2).double()):
            q = law.distribution(temperature, logits=logits)
            z = q.rsample((3,))
            assert q.temperature.dtype == z.dtype == q.log_prob(z).dtype == dtype
            assert (q.temperature == 1).all()
    if not law.is_categorical:
        q = law.distribution(0.5, probs=0.2)
        assert (q.batch_shape, q.event_shape) == ((), ())
        torch.testing.assert_close(q.probs, torch.tensor(0.2))


@each_law
def test_unnormalized_probabilities(law):
    if not law.is_categorical:
        pytest.skip("those of a Bernoulli variable are of no sum")
    weights = torch.tensor([1.0, 2.0, 5.0])
    torch.testing.assert_close(law.distribution(1.0, weights).probs, weights / 8)


@each_law
def test_constraints(law):
    q = law.build(law.parameters((2,)))
    assert set(q.arg_constraints) == {"temperature", "logits", "probs"}
    for name, constraint in q.arg_constraints.items():
        assert constraint.check(getattr(q, name)).all()
    assert q.support.check(q.sample((10,))).all()
    assert q.event_dim == q.support.event_dim == len(law.event_shape())
    assert q.support.is_discrete == law.snaps
    if law.distribution is not ExpRelaxedCategorical and not law.snaps:
        assert q.support in (constraints.simplex, constraints.unit_interval)


@each_law
def test_infer_shapes(law):
    event = law.event_shape()
    for name in ("logits", "probs"):
        actual = law.distribution.infer_shapes(temperature=(3, 1), **{name: (2, *event)})
        assert actual == ((3, 2), event)


@each_law
def test_in_variational_inference(law):
    """The guide's samples keep their coordinates in the model: where both laws are equal, their
    log densities cancel, at temperatures at which values alone tell nothing."""
    pyro.clear_param_store()
    prior = law.parameters((3,), K=10, temperature=0.01, dtype=torch.float32)
    prior = {name: value.detach() for name, value in prior.items()}

    def model():
        with pyro.plate("data", 3):
            pyro.sample("z", law.build(prior))

    def guide():
        logits = pyro.param("logits", prior["logits"].clone())
        with pyro.plate("data", 3):
            pyro.sample("z", law.distribution(prior["temperature"], logits=logits))

    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-6}), Trace_ELBO(num_particles=20))
    # normalized anew, the guide's logits may differ by rounding
    assert abs(svi.step()) < 1e-2
    assert pyro.param("logits").isfinite().all()


@each_law
def test_saved_samples(law, tmp_path):
    """Are values like any other."""
    q = law.build({name: value.detach() for name, value in law.parameters((2,)).items()})
    value = q.sample((4,))
    torch.save(value, tmp_path / "sample.pt")
    again = torch.load(tmp_path / "sample.pt", weights_only=True)
    assert torch.equal(again, value)


@each_law
def test_inference_mode(law):
    """Validation loops ask for an ELBO there, too."""
    q = law.build(law.parameters((2,), temperature=0.01))
    torch.manual_seed(1)
    with torch.inference_mode():
        density = q.log_prob(q.sample((50,)))
    torch.manual_seed(1)
    torch.testing.assert_close(density, q.log_prob(q.sample((50,))))


@each_law
def test_in_place_of_pyro(law):
    """A model that names Pyro's class need only change the import."""
    if law.distribution is ExpRelaxedCategorical:
        pytest.skip("Pyro has none")
    name = law.distribution.__name__.replace("RelaxedCategorical", "RelaxedOneHotCategorical")
    peer = getattr(dist, name)
    logits = law.parameters((2,), dtype=torch.float32)["logits"]
    for options in ({"logits": logits}, {"probs": law.distribution(1.0, logits=logits).probs}):
        actual = law.distribution(temperature=torch.tensor(0.5), **options)
        expected = peer(temperature=torch.tensor(0.5), **options)
        assert actual.batch_shape == expected.batch_shape
        assert actual.event_shape == expected.event_shape
        assert actual.rsample((3,)).shape == expected.rsample((3,)).shape
