"""Marginals, conditionals and linear images of mixtures of Normals."""

import pytest
import torch
from torch.func import vmap

from pyro_mixtures.distributions import (
    AVFMixtureOfDiagNormals,
    GaussianScaleMixture,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormals,
    MixtureOfNormalsSharedCovariance,
)
from tests.pairwise import in_pairs
from tests.registry import assert_same, each_family, leaves, randn

# marginals


@each_family
@pytest.mark.parametrize("dims", [[0], [1], [1, 0]])
def test_marginal_density(family, dims):
    """Against the sum of the joint density over a grid of the coordinate left out."""
    parameters = family.parameters(D=2)
    marginal, reference = family.build(parameters).marginal(dims), family.reference(parameters)
    assert type(marginal) is family.distribution
    assert marginal.event_shape == (len(dims),)
    value = randn(5, len(dims))
    if len(dims) == 2:
        expected = reference.log_prob(value[:, [1, 0]])
    else:
        (other,) = {0, 1} - set(dims)
        step = 0.1
        axis = torch.arange(-15, 15, step, dtype=torch.float64)
        points = torch.empty(len(axis), 5, 2, dtype=torch.float64)
        points[..., dims] = value
        points[..., other] = axis.unsqueeze(-1)
        expected = (reference.log_prob(points).exp().sum(0) * step).log()
    assert_same(marginal.log_prob(value), expected, parameters)


@each_family
@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_marginal_moments(family, batch_shape):
    parameters = family.parameters(batch_shape, K=4, D=5)
    mixture = family.build(parameters)
    for dims, indices in [([3, 0], [3, 0]), ((-1, 1, 2), [4, 1, 2]), (2, [2]), (range(5),) * 2]:
        marginal = mixture.marginal(dims)
        assert marginal.batch_shape == batch_shape
        assert_same(marginal.mean, mixture.mean[..., indices], parameters)
        covariance = mixture.covariance_matrix[..., indices, :][..., indices]
        assert_same(marginal.covariance_matrix, covariance, parameters)


# conditionals


@in_pairs
@each_family
@pytest.mark.parametrize("dims", [[0], [2], [3, 1], [0, 1, 2], [-1, 0, 2]])
@pytest.mark.parametrize(
    ("batch_shape", "value_shape"),
    [((), ()), ((), (5,)), ((3,), ()), ((3,), (5, 1)), ((2, 3), (3,))],
)
def test_joint_is_marginal_times_conditional(family, dims, batch_shape, value_shape):
    parameters = family.parameters(batch_shape, D=4)
    mixture = family.build(parameters)
    z = randn(*value_shape, 4).requires_grad_()
    others = [dim for dim in range(4) if dim not in dims and dim - 4 not in dims]
    conditional = mixture.condition(dims, z[..., dims])
    assert type(conditional) is family.distribution
    assert conditional.batch_shape == torch.broadcast_shapes(value_shape, batch_shape)
    assert conditional.event_shape == (len(others),)
    marginal = mixture.marginal(dims)
    actual = marginal.log_prob(z[..., dims]) + conditional.log_prob(z[..., others])
    assert_same(actual, mixture.log_prob(z), {**parameters, "value": z})


def test_conditional_of_a_normal():
    """One component: the textbook's conditional mean and variance."""
    scale_tril = torch.tensor([[[2.0, 0.0], [1.5, 0.5]]])
    mixture = MixtureOfNormals(torch.tensor([[1.0, -1.0]]), scale_tril, torch.zeros(1))
    conditional = mixture.condition([1], torch.tensor([1.0]))
    # covariances 4, 3 and 2.5: mean 1 + 3 / 2.5 * 2, variance 4 - 9 / 2.5
    torch.testing.assert_close(conditional.mean, torch.tensor([3.4]))
    torch.testing.assert_close(conditional.variance, torch.tensor([0.4]))


@each_family
def test_conditional_of_a_component_without_weight(family):
    parameters = family.parameters((2,), D=3)
    with torch.no_grad():
        parameters["component_logits"][:, 0] = -torch.inf
    conditional = family.build(parameters).condition([0], randn(2, 1))
    assert (conditional.component_logits[:, 0] == -torch.inf).all()
    z = conditional.rsample((3,))
    z.square().sum().backward()
    assert all(value.grad.isfinite().all() for value in parameters.values())


@each_family
def test_conditional_samples_carry_gradients_to_the_value(family):
    mixture = family.build(family.parameters(D=3, scales=(0.5, 1.5)))
    value = randn(2).requires_grad_()
    (gradient,) = torch.autograd.grad(
        mixture.condition([0, 2], value).rsample((4,)).sum(), value, materialize_grads=True
    )
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


@each_family
def test_value_is_converted(family):
    """To the dtype of the mixture, which the conditional keeps."""
    mixture = family.build(family.parameters(D=3, dtype=torch.float32))
    conditional = mixture.condition([1], randn(1))
    assert conditional.mean.dtype == torch.float32


# linear images


@each_family
@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_scaling(family, batch_shape):
    """Keeps the class, and is a change of variables."""
    parameters = family.parameters(batch_shape, D=3)
    mixture = family.build(parameters)
    scale = torch.tensor([-2.0, 0.5, 1.0]).double().requires_grad_()
    offset = randn(3).requires_grad_()
    image = mixture.affine(scale, offset)
    assert type(image) is family.distribution
    z = randn(5, *batch_shape, 3)
    actual = image.log_prob(z * scale + offset) + scale.abs().log().sum()
    everything = {**parameters, "scale": scale, "offset": offset}
    assert_same(actual, mixture.log_prob(z), everything)
    matrix = mixture.affine(scale.diag(), offset)
    assert_same(image.log_prob(z), matrix.log_prob(z), everything)


FULL = {
    MixtureOfDiagNormals: MixtureOfNormals,
    AVFMixtureOfDiagNormals: MixtureOfNormals,
    MixtureOfDiagNormalsSharedCovariance: MixtureOfNormalsSharedCovariance,
    GaussianScaleMixture: MixtureOfNormals,
    MixtureOfNormals: MixtureOfNormals,
    MixtureOfNormalsSharedCovariance: MixtureOfNormalsSharedCovariance,
}


@in_pairs
@each_family
@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_matrices(family, batch_shape, size):
    """A change of variables, with more rows for a square matrix, of which then the marginal."""
    parameters = family.parameters(batch_shape, D=3)
    mixture = family.build(parameters)
    square, offset = randn(3, 3).requires_grad_(), randn(3).requires_grad_()
    z = randn(5, *batch_shape, 3)
    full = mixture.affine(square, offset)
    everything = {**parameters, "matrix": square, "offset": offset}
    actual = full.log_prob(z @ square.mT + offset) + torch.linalg.slogdet(square).logabsdet
    assert_same(actual, mixture.log_prob(z), everything)
    image = mixture.affine(square[:size], offset[:size])
    assert type(image) is type(full) is FULL[family.distribution]
    assert image.event_shape == (size,)
    assert image.batch_shape == batch_shape
    value = z[..., :size]
    expected = full.marginal(range(size)).log_prob(value)
    assert_same(image.log_prob(value), expected, everything)


@each_family
@pytest.mark.parametrize("matrix", [torch.ones(2), torch.eye(2)])
def test_offset_of_a_batch(family, matrix):
    mixture = family.build(family.parameters((3,), D=2))
    offset = randn(4, 1, 2)
    image = mixture.affine(matrix, offset)
    assert image.batch_shape == (4, 3)
    torch.testing.assert_close(image.mean, mixture.mean + offset)
    torch.testing.assert_close(mixture.affine(matrix).mean, mixture.mean)


def test_centered_mixture_stays_so_without_an_offset():
    mixture = GaussianScaleMixture(torch.ones(2), torch.zeros(3), torch.ones(3))
    assert mixture.affine(torch.tensor([2.0, -2.0])).locs is None
    moved = mixture.affine(torch.tensor([2.0, -2.0]), torch.tensor([1.0, 3.0]))
    assert torch.equal(moved.locs, torch.tensor([1.0, 3.0]).expand(3, 2))


@each_family
@pytest.mark.parametrize("condition", [1e-6, 1e-9])
def test_nearly_degenerate_images_keep_digits(family, condition):
    """Whose covariances lose them."""
    mixture = family.build(family.parameters(D=2))
    matrix = torch.tensor([[1.0, 1.0], [1.0, 1.0 + condition]], dtype=torch.float64)
    z = randn(5, 2)
    actual = mixture.affine(matrix).log_prob(z @ matrix.mT) + torch.linalg.det(matrix).log()
    torch.testing.assert_close(actual, mixture.log_prob(z), rtol=0, atol=1e-14 / condition)


# what all of them share


def images(mixture):
    value = torch.zeros(1, dtype=torch.float64)
    return [
        mixture.marginal([1]),
        mixture.condition([1], value),
        mixture.affine(torch.ones(2)),
        mixture.affine(torch.ones(1, 2)),
    ]


@each_family
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_options_are_kept(family, weight_gradient):
    parameters = family.parameters(D=2)
    for transport in family.distribution.transports:
        options = {"transport": transport, "weight_gradient": weight_gradient}
        mixture = family.build(parameters, **options, validate_args=False)
        for image in images(mixture):
            kept = transport if transport in image.transports else "displacement"
            assert image.transport == kept
            assert image.weight_gradient == weight_gradient
            assert not image._validate_args


def test_a_transport_that_the_new_class_lacks():
    mixture = GaussianScaleMixture(
        torch.ones(2), torch.zeros(3), torch.ones(3), transport="radial"
    )
    assert mixture.marginal([0]).transport == "radial"
    assert mixture.affine(torch.eye(2)).transport == "displacement"


@each_family
def test_half_precision(family):
    """Is kept; arithmetic has more digits."""
    parameters = family.parameters(D=2)
    mixture = family.build(leaves(parameters, torch.bfloat16))
    for image, expected in zip(images(mixture), images(family.build(parameters)), strict=True):
        assert image.mean.dtype == torch.bfloat16
        torch.testing.assert_close(image.mean.double(), expected.mean, rtol=0.05, atol=0.05)


@each_family
def test_vmap(family):
    parameters, value = family.parameters((4,), D=3), randn(4, 2)

    def density(parameters, value):
        mixture = family.build(parameters, validate_args=False)
        image = mixture.condition([2, 0], value).affine(torch.eye(1).double())
        return image.log_prob(value[:1]), mixture.entropy_bounds()

    alone = [density({name: v[b] for name, v in parameters.items()}, value[b]) for b in range(4)]
    log_prob, bounds = vmap(density)(parameters, value)
    torch.testing.assert_close(log_prob, torch.stack([one[0] for one in alone]))
    for k in range(2):
        torch.testing.assert_close(bounds[k], torch.stack([one[1][k] for one in alone]))


@in_pairs
@each_family
@pytest.mark.parametrize("method", ["marginal", "condition"])
@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ([], r"some of the 3 coordinates.*\[\]"),
        ([3], r"some of the 3 coordinates.*\[3\]"),
        ([0, -4], "some of the 3 coordinates"),
        ([0, 1, 0], "each coordinate once"),
        ([2, -1], "each coordinate once"),
        ([0.5], "integers"),
        ("ab", "integers"),
    ],
)
def test_bad_dims(family, method, dims, words):
    mixture = family.build(family.parameters(D=3))
    arguments = (torch.zeros(max(1, len(dims))),) if method == "condition" else ()
    with pytest.raises(ValueError, match=words):
        getattr(mixture, method)(dims, *arguments)


@each_family
def test_bad_values(family):
    mixture = family.build(family.parameters((2,), D=3))
    with pytest.raises(ValueError, match="leave a coordinate"):
        mixture.condition(range(3), torch.zeros(3))
    for bad in (torch.zeros(()), torch.zeros(2), torch.zeros(5, 1), [0.0]):
        with pytest.raises(
            ValueError, match=r"value of shape \(\*X, 1\) .* with \(2,\).*, but got"
        ):
            mixture.condition([0], bad)
    with pytest.raises(ValueError, match="nan"):
        mixture.condition([0], torch.tensor([torch.nan]))


@each_family
def test_bad_matrices(family):
    mixture = family.build(family.parameters((2,), D=3))
    for bad in (
        torch.ones(2),
        torch.ones(4, 3),
        torch.ones(3, 2),
        torch.ones(0, 3),
        torch.ones(()),
    ):
        with pytest.raises(ValueError, match=r"matrix of shape \(3,\), or \(D', 3\).* but got"):
            mixture.affine(bad)
    with pytest.raises(ValueError, match="tensor, but got list"):
        mixture.affine([1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="without zeros"):
        mixture.affine(torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="full rank"):
        mixture.affine(torch.ones(2, 3))
    for bad in (torch.zeros(3), torch.zeros(5, 2), torch.zeros(()), 1.0):
        with pytest.raises(ValueError, match=r"offset of shape \(\*X, 2\) .* but got"):
            mixture.affine(torch.eye(3)[:2], bad)
