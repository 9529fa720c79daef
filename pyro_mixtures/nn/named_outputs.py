"""A network whose outputs are tensors with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Size, Tensor, nn

from pyro_mixtures.numerics.validation import check_at_least

START_GAIN = 0.1
"""Of the last layer's weights, relative to torch's: outputs start near to their biases."""


class NamedOutputs(nn.Module):
    """A linear layer, or a perceptron with smooth hidden layers, from contexts to named tensors.

    Args:
        context_features: size of a context.
        shapes: of the outputs, by name.
        hidden: sizes of the hidden layers.

    Raises:
        ValueError: for sizes below one, and contexts of another size or that are no floating
            point numbers.
    """

    def __init__(
        self, context_features: int, shapes: Mapping[str, Size], hidden: Sequence[int]
    ) -> None:
        super().__init__()
        if not isinstance(hidden, Sequence):
            raise ValueError(f"Expected hidden to be a sequence of sizes, but got {hidden!r}")
        check_at_least(1, context_features=context_features)
        check_at_least(1, **{f"hidden[{place}]": size for place, size in enumerate(hidden)})
        self.context_features = context_features
        self.shapes = dict(shapes)
        layers: list[nn.Module] = []
        features = context_features
        for size in hidden:
            layers += [nn.Linear(features, size), nn.SiLU()]
            features = size
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(features, sum(shape.numel() for shape in shapes.values()))
        with torch.no_grad():
            self.output.weight.mul_(START_GAIN)

    def forward(self, context: Tensor) -> dict[str, Tensor]:
        """Of contexts ``(*B, context_features)`` the outputs, each ``(*B, *shape)``."""
        if not isinstance(context, Tensor):
            raise ValueError(f"Expected context to be a tensor, but got {type(context).__name__}")
        if not context.is_floating_point():
            raise ValueError(
                f"Expected context of a floating point dtype, but got {context.dtype}"
            )
        if context.dim() == 0 or context.shape[-1] != self.context_features:
            raise ValueError(
                f"Expected context of shape (*B, {self.context_features}), but got"
                f" {tuple(context.shape)}"
            )
        dtype = self.output.weight.dtype
        flat = self.output(self.hidden(context.to(dtype))).to(dtype)
        parts = flat.split([shape.numel() for shape in self.shapes.values()], -1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.unflatten(-1, shape) for (name, shape), part in named}

    @torch.no_grad()
    def start_at(self, values: Mapping[str, Tensor]) -> None:
        """Let the biases be these outputs."""
        flat = [values[name].expand(shape).flatten() for name, shape in self.shapes.items()]
        self.output.bias.copy_(torch.cat(flat))
