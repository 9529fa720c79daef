"""Mistakes of the user meet a ValueError that says which argument, what was given and expected."""

import re

import pytest
import torch

from tests.elliptical import LAWS, each_adaptive_law, each_law
from tests.registry import randn

REFUSED = (ValueError, RuntimeError)


@each_law
@pytest.mark.parametrize("kind", ["too few dimensions", "empty", "NaN", "a list", "None", "int"])
def test_each_argument(law, kind):
    parameters = law.parameters((2,), D=4)
    for name, value in parameters.items():
        letters, value = law.distribution._parameter_shapes()[name], value.detach()
        match kind:
            case "too few dimensions" if letters:
                bad = value[(0,) * (value.dim() - len(letters) + 1)]
                words = f"at least {len(letters)} dimension.* got shape"
            case "empty" if letters:
                bad, words = value[..., :0], r">= 1, .* shape \(2, .*0\)"
            case "NaN":
                bad, words = torch.full_like(value, torch.nan), "nan"
            case "a list":
                bad, words = value.tolist(), "tensor, but got list"
            case "None":
                bad, words = None, "tensor, but got NoneType"
            case "int":
                bad, words = value.long(), "of a floating point dtype.*int64"
            case _:
                continue
        with pytest.raises(ValueError, match=f"(?s){words}") as error:
            law.build({**parameters, name: bad})
        assert re.search(rf"\b{name}\b", str(error.value))


@each_law
def test_shapes_that_differ(law):
    parameters = law.parameters((2,), D=4)
    shapes = law.distribution._parameter_shapes()
    for name in ("scale_tril", "control_var"):
        if name not in parameters:
            continue
        message = (
            rf"D = 4 \(from loc\) in {name}, but its shape is .*\*B, {', '.join(shapes[name])}\)"
        )
        with pytest.raises(ValueError, match=message):
            law.build({**parameters, name: law.parameters((2,), D=3)[name]})
    for name, value in parameters.items():
        message = rf"{name} with a batch shape .*\(2,\).* \(7,\)|with \(7,\), but got \(2,\)"
        with pytest.raises(ValueError, match=message):
            law.build({**parameters, name: value[:1].expand(7, *value.shape[1:])})


@each_law
def test_a_factor_that_is_not_square(law):
    parameters = law.parameters(D=4)
    with pytest.raises(ValueError, match=r"D = 4 .* scale_tril, but its shape is \(3, 4\)"):
        law.build({**parameters, "scale_tril": torch.ones(3, 4)})


@each_adaptive_law
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 2, 4), r"control_var with a dimension of size 2, but its shape is \(3, 2, 4\)"),
        ((2, 4), r"control_var of at least 3 dimensions, but got shape \(2, 4\)"),
        ((2, 0, 4), r"M >= 1, but control_var has shape \(2, 0, 4\)"),
        ((2, 1, 3), r"D = 4 \(from loc\) in control_var, but its shape is \(2, 1, 3\)"),
    ],
)
def test_control_var(law, shape, message):
    with pytest.raises(ValueError, match=message):
        law.build({**law.parameters(D=4), "control_var": torch.ones(shape)})


@each_adaptive_law
def test_planes(law):
    with pytest.raises(ValueError, match="planes to be one of axes, rows, but got 'columns'"):
        law.distribution(**law.parameters(), planes="columns")


@each_law
@pytest.mark.parametrize("entry", ["zero", "negative", "above the diagonal"])
def test_factors(law, entry):
    parameters = law.parameters()
    factor = parameters["scale_tril"].detach().clone()
    match entry:
        case "zero":
            factor[1, 1] = 0
        case "negative":
            factor[1, 1] = -1
        case _:
            factor[0, 1] = 0.1  # would be ignored by some and not by others
    parameters["scale_tril"] = factor
    with pytest.raises(ValueError, match="(?s)scale_tril.*LowerCholesky"):
        law.build(parameters)
    assert law.build(parameters, validate_args=False)  # asked not to look


@pytest.mark.parametrize("df", [0.0, -1.0, 0, torch.tensor([1.0, 0.0]), torch.nan])
def test_degrees_of_freedom(df):
    with pytest.raises(ValueError, match="(?s)df.*GreaterThan"):
        LAWS["avf_student_t"].build({**LAWS["avf_student_t"].parameters(), "df": df})


def test_degrees_of_freedom_of_numbers():
    law = LAWS["avf_student_t"]
    parameters = law.parameters(dtype=torch.float32)
    for df in (3, 3.0, torch.tensor(3.0)):
        q = law.build({**parameters, "df": df})
        assert q.df.dtype == torch.float32
        assert float(q.df) == 3
    with pytest.raises(ValueError, match="loc to be a tensor, but got list"):
        law.build({**parameters, "df": 3.0, "loc": [0.0, 0.0, 0.0]})


@each_law
@pytest.mark.parametrize("value", [torch.zeros(5), torch.zeros(3, 2), torch.full((2,), torch.nan)])
def test_values(law, value):
    """Of a wrong event shape, of a batch shape that does not broadcast, and NaN."""
    q = law.build(law.parameters((4,), D=2))
    with pytest.raises(ValueError, match="(?i)value"):
        q.log_prob(value)
    if law.adapts:
        with pytest.raises(ValueError, match="(?i)value"):
            q.variance_gradient(value, value)


@each_adaptive_law
def test_gradients_of_another_shape(law):
    q = law.build(law.parameters())
    with pytest.raises(ValueError, match=r"grad of the shape of value, \(5, 3\), .* got \(3,\)"):
        q.variance_gradient(randn(5, 3), randn(3))


@each_law
@pytest.mark.parametrize("batch_shape", [(3,), (2, 3), ()])
def test_expand_to_a_shape_that_does_not_fit(law, batch_shape):
    with pytest.raises(REFUSED, match="expand"):
        law.build(law.parameters((4,))).expand(batch_shape)
