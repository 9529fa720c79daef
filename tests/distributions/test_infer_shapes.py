"""Shapes that are told by those of the arguments."""

import pytest

from tests.every import KINDS

BATCHES = [(), (4,), (2, 1)]


@pytest.mark.parametrize("batch_shape", BATCHES, ids=str)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=name) for name, kind in KINDS.items() if kind.of_tensors]
)
def test_infer_shapes(kind, batch_shape):
    """Of arguments that broadcast, as those of the instance."""
    one, many = kind.parameters(()), kind.parameters(batch_shape)
    for name in many:
        for parameters in (many, {**one, name: many[name]}):
            law = kind.build(parameters)
            shapes = {key: value.shape for key, value in parameters.items()}
            assert type(law).infer_shapes(**shapes) == (law.batch_shape, law.event_shape)
            as_tuples = {key: tuple(shape) for key, shape in shapes.items()}
            assert type(law).infer_shapes(**as_tuples) == (law.batch_shape, law.event_shape)
