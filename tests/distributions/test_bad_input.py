"""Mistakes of the user meet a ValueError that says which argument, what was given and expected."""

import re

import pytest
import torch

from tests.pairwise import in_pairs
from tests.registry import each_family


def broken(value, letters, kind):
    """A bad value for one argument of shape ``(2, *letters)`` and what the message must say."""
    match kind:
        case "too few dimensions":
            return value[(0,) * (value.dim() - len(letters) + 1)], rf"{len(letters)} dimensions"
        case "empty":
            return value[..., :0], rf"{letters[-1]} >= 1, .* shape \(2, .*0\)"
        case "NaN":
            return torch.full_like(value, torch.nan), "nan"
        case _:
            return value.tolist(), "tensor, but got list"


@each_family
@pytest.mark.parametrize("kind", ["too few dimensions", "empty", "NaN", "not a tensor"])
def test_each_argument(family, kind):
    parameters = family.parameters((2,), K=3, D=4)
    for name, value in parameters.items():
        letters = family.distribution._parameter_shapes()[name]
        bad, words = broken(value.detach(), letters, kind)
        with pytest.raises(ValueError, match=f"(?s){words}") as error:
            family.build({**parameters, name: bad})
        assert re.search(rf"\b{name}\b", str(error.value))


@each_family
def test_messages_of_shapes(family):
    parameters = family.parameters((2,), K=3, D=4)
    with pytest.raises(
        ValueError, match=r"K = 3 .* component_logits.* shape is \(2, 5\).*\(\*B, K"
    ):
        family.build({**parameters, "component_logits": torch.zeros(2, 5)})
    shapes = family.distribution._parameter_shapes()
    described = ", ".join(rf"{name} \(\*B, {', '.join(shapes[name])}\)" for name in parameters)
    for name, value in parameters.items():
        if name == "component_logits" or "K" not in shapes[name]:
            continue
        too_many = torch.cat([value] * 2, shapes[name].index("K") - len(shapes[name])).detach()
        message = rf"K = [36] \(from \w+\) in \w+, but its shape .*; .* are {described}"
        with pytest.raises(ValueError, match=message):
            family.build({**parameters, name: too_many})
    with pytest.raises(ValueError, match=r"component_logits .*broadcasts with \(2,\).* \(7,\)"):
        family.build({**parameters, "component_logits": torch.zeros(7, 3)})


@each_family
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_scales(family, bad):
    parameters = family.parameters()
    names = [name for name in parameters if "scale" in name]
    for name in names:
        value = parameters[name].detach().clone()
        value[(0,) * value.dim()] = bad
        with pytest.raises(ValueError, match=name):
            family.build({**parameters, name: value})


@each_family
def test_factors(family):
    """Nothing above the diagonal, which would be ignored."""
    parameters = family.parameters()
    for name, letters in family.distribution.component_parameters.items():
        if letters.endswith("DD"):
            value = parameters[name].detach().clone()
            value[..., 0, 1] = 0.1
            with pytest.raises(ValueError, match=name):
                family.build({**parameters, name: value})


@each_family
@pytest.mark.parametrize(
    "logits", [[-torch.inf] * 3, [torch.inf, 0.0, 0.0], [torch.nan, 0.0, 0.0]]
)
def test_logits(family, logits):
    parameters = {**family.parameters(), "component_logits": torch.tensor(logits)}
    with pytest.raises(ValueError, match="component_logits"):
        family.build(parameters)
    assert family.build(parameters, validate_args=False)  # asked not to look


@each_family
def test_choices(family):
    parameters = family.parameters()
    with pytest.raises(ValueError, match="transport to be one of auto, displ.* got 'teleport'"):
        family.build(parameters, transport="teleport")
    with pytest.raises(
        ValueError,
        match="weight_gradient to be one of clustered, pathwise, hybrid.* got 'exact'",
    ):
        family.build(parameters, weight_gradient="exact")


@in_pairs
@each_family
@pytest.mark.parametrize("method", ["log_prob", "component_log_prob", "responsibilities"])
@pytest.mark.parametrize("value", [torch.zeros(5), torch.zeros(3, 2), torch.full((2,), torch.nan)])
def test_values(family, method, value):
    """Of a wrong event shape, of a batch shape that does not broadcast, and NaN."""
    mixture = family.build(family.parameters((4,), D=2))
    with pytest.raises(ValueError, match="(?i)value"):
        getattr(mixture, method)(value)


@each_family
@pytest.mark.parametrize("batch_shape", [(3,), (2, 3), ()])
def test_expand_to_a_shape_that_does_not_fit(family, batch_shape):
    with pytest.raises((ValueError, RuntimeError), match="expand"):
        family.build(family.parameters((4,))).expand(batch_shape)


@each_family
def test_integers_are_refused(family):
    parameters = family.parameters()
    for name, value in parameters.items():
        with pytest.raises(ValueError, match=f"{name} of a floating point dtype.*int64"):
            family.build({**parameters, name: value.long()})
