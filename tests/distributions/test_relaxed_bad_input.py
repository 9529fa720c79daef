"""Mistakes of the user meet a ValueError that says which argument, what was given and expected."""

import math

import pytest
import torch

from tests.pairwise import in_pairs
from tests.relaxed import LAWS, each_law

REFUSED = (ValueError, RuntimeError)


@each_law
def test_one_of_probs_and_logits(law):
    logits = law.parameters((2,))["logits"]
    with pytest.raises(ValueError, match="one of probs and logits, but got both of them"):
        law.distribution(1.0, logits.softmax(-1), logits)
    with pytest.raises(ValueError, match="one of probs and logits, but got none of them"):
        law.distribution(1.0)


@in_pairs
@each_law
@pytest.mark.parametrize("name", ["temperature", "logits", "probs"])
@pytest.mark.parametrize("kind", ["a list", "None", "int", "NaN", "too few dimensions", "empty"])
def test_each_argument(law, name, kind):
    parameters = {"temperature": torch.ones(2), "logits": torch.zeros(2, *law.event_shape())}
    if name == "probs":
        parameters["probs"] = parameters.pop("logits").softmax(-1)
    value = parameters[name]
    many = law.is_categorical and name != "temperature"
    match kind:
        case "a list":
            bad, words = value.tolist(), f"{name} to be a tensor, but got list"
        case "None" if name == "temperature":
            bad, words = None, "temperature to be a tensor, but got NoneType"
        case "int":
            bad, words = value.long(), f"{name} of a floating point dtype, but got torch.int64"
        case "NaN":
            bad, words = torch.full_like(value, torch.nan), rf"{name}\b.*nan"
        case "too few dimensions" if many:
            bad, words = value[0, 0], f"{name} of at least 1 dimensions, but got shape"
        case "empty" if many:
            bad, words = value[..., :0], rf"K >= 1, but {name} has shape \(2, 0\)"
        case _:
            pytest.skip("right for this argument")
    with pytest.raises(ValueError, match=f"(?s){words}"):
        law.distribution(**{**parameters, name: bad})


@each_law
@pytest.mark.parametrize("temperature", [0.0, -1.0, 0, torch.tensor([1.0, 0.0]), torch.nan])
def test_temperatures(law, temperature):
    logits = torch.zeros(2, *law.event_shape())
    with pytest.raises(ValueError, match="(?s)temperature.*GreaterThan"):
        law.distribution(temperature, logits=logits)
    assert law.distribution(temperature, logits=logits, validate_args=False)  # asked not to look


@each_law
def test_shapes_that_differ(law):
    logits = torch.zeros(2, *law.event_shape())
    message = r"logits with a batch shape that broadcasts with \(7,\), but got \(2,\)"
    with pytest.raises(ValueError, match=message):
        law.distribution(torch.ones(7), logits=logits)
    with pytest.raises(REFUSED, match="expand"):
        law.distribution(1.0, logits=logits).expand((3,))


@pytest.mark.parametrize("name", ["exp_categorical", "categorical", "hard_categorical"])
@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("logits", [0.0, math.inf], "logits below .inf with a finite entry"),
        ("logits", [-math.inf, -math.inf], "logits below .inf with a finite entry"),
        ("probs", [0.5, -0.1], "probs of finite numbers >= 0 with a positive one"),
        ("probs", [0.0, 0.0], "probs of finite numbers >= 0 with a positive one"),
        ("probs", [1.0, math.inf], "probs of finite numbers >= 0 with a positive one"),
    ],
)
def test_weights(name, argument, value, words):
    value = torch.tensor([[0.5, 0.5], value])
    with pytest.raises(ValueError, match=words):
        LAWS[name].distribution(1.0, **{argument: value})


@pytest.mark.parametrize("name", ["bernoulli", "hard_bernoulli"])
@pytest.mark.parametrize("probs", [-0.1, 1.1, torch.tensor([0.5, torch.nan])])
def test_probabilities(name, probs):
    with pytest.raises(ValueError, match="probs between 0 and 1, but got"):
        LAWS[name].distribution(1.0, probs=probs)


@each_law
def test_values(law):
    """Of a wrong event shape or batch shape, off the support, and NaN."""
    q = law.build(law.parameters((4,)))
    good = q.sample().clone()
    bad = [good[:3], torch.full_like(good, torch.nan), good + 1.5]
    if law.is_categorical:
        bad.append(good[..., :2])
    for value in bad:
        with pytest.raises(ValueError, match="(?i)value"):
            q.log_prob(value)


@each_law
def test_samples_of_other_shapes(law):
    """Their coordinates are not taken for those of this law."""
    q = law.build(law.parameters((4,), K=3))
    other = LAWS["bernoulli" if law.is_categorical else "categorical"]
    with pytest.raises(ValueError, match="(?i)value"):
        q.log_prob(other.build(other.parameters((5,), K=5)).sample())
