"""Mixtures of diagonal Normals by compiled loops, where arrays are small."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy
import torch
from torch import Tensor

from pyro_mixtures.numerics.compiled import Loops, serves
from pyro_mixtures.numerics.pathwise_function import needs_gradient
from pyro_mixtures.velocity.diagonal_components import diag_normal_log_prob
from pyro_mixtures.velocity.displacement import NODES

CPU = torch.device("cpu")
"""Where arrays of the loops are, whatever torch's default is."""

UNITS = {torch.float32: numpy.float32(1), torch.float64: 1.0}

LOOPS = Loops("pyro_mixtures.components.normal_loops")

FIELDS = {"none": 0, "displacement": 1, "telescoping": 2}
"""How the loops call the fields that move weight."""

Densities = tuple[Tensor, Tensor]


class CompiledNormals:
    """What mixtures of diagonal Normals do, by compiled loops.

    Whether they serve the tensors, :func:`~pyro_mixtures.numerics.compiled.serves` has said.
    Results are None where numba turns out not to compile, or the logits are of another kind.

    Args:
        locs: ``(*B, K, D)``.
        factor: standard deviations, ``(*B, K, D)``, or ``(*B, D)`` of all components.
        transports: those that the loops compute, by their names.
    """

    def __init__(
        self, locs: Tensor, factor: Tensor, transports: Mapping[str, Callable[..., Tensor]]
    ) -> None:
        self.given, self._transports = (locs, factor), transports
        *self._batch, self._K, self._D = locs.shape
        self._R = self._K if factor.dim() == locs.dim() else 1
        self._locs, self._factor = locs.contiguous(), factor.contiguous()

    def _run(self, name: str, *given: Tensor | float | None, count: int | None = None):
        """Call a loop with tensors, numbers, and tensors that are not there."""
        passed = [x.data_ptr() if isinstance(x, Tensor) else 0 if x is None else x for x in given]
        rows = math.prod(self._batch)
        sizes = (self._D,) if count is None else (count, self._D)
        arguments = (*passed, rows, self._R, self._K, *sizes)
        elements = rows * self._K * self._D * (count or 1)
        return LOOPS.run(name, UNITS[self._locs.dtype], arguments, rows, elements)

    def _serve(self, logits: Tensor) -> bool:
        """Whether the logits are of the same mixtures, and of the same dtype."""
        return logits.shape == (*self._batch, self._K) and serves(self._locs, logits)

    def are_valid(self, logits: Tensor) -> bool:
        """Whether means are numbers, scales positive, and some logit of each mixture finite."""
        if not self._serve(logits):
            return False
        return self._run("valid", self._locs, self._factor, logits.contiguous()) == 0

    def draw(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        """Samples ``(*B, count, D)``, and the components that they are of, ``(*B, count)``."""
        if not self._serve(logits):
            return None
        shape = *self._batch, count
        uniform = torch.rand(shape, dtype=torch.float64, device=CPU)
        noise = torch.randn(*shape, self._D, dtype=self._locs.dtype, device=CPU)
        z, index = torch.empty_like(noise), torch.empty(shape, dtype=torch.int64, device=CPU)
        given = self._locs, self._factor, logits.contiguous(), uniform, noise, z, index
        return None if self._run("draw", *given, count=count) is None else (z, index)

    def evaluate(self, logits: Tensor, z: Tensor) -> Densities | None:
        r"""Logarithms of :math:`\pi_j q_j` and of q without gradient, in float64.

        ``(*B, S, D) -> (*B, S, K), (*B, S, 1)``.
        """
        if not self._serve(logits):
            return None
        count = z.shape[-2]
        log_joint = torch.empty(*self._batch, count, self._K, dtype=torch.float64, device=CPU)
        log_prob = torch.empty(*self._batch, count, 1, dtype=torch.float64, device=CPU)
        given = z.contiguous(), self._locs, self._factor, logits.contiguous(), log_joint, log_prob
        status = self._run("densities", *given, count=count)
        return None if status is None else (log_joint, log_prob)

    def densities(self, logits: Tensor, z: Tensor) -> Densities | None:
        """The same with gradients."""
        known = self.evaluate(logits, z)
        if known is None or torch.is_inference_mode_enabled():
            return known
        if not needs_gradient(z, logits, *self.given):
            return known
        return _Densities.apply(self, z, logits, *self.given, *known)

    def density_gradients(
        self, logits: Tensor, z: Tensor, known: Densities, grads: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...] | None:
        """Of z, the logits, the means and the factor, by those of both densities."""
        made = [x if x is None else x.contiguous() for x in grads]
        z, logits = z.contiguous(), logits.contiguous()
        result = [torch.empty_like(x) for x in (z, self._locs, self._factor, logits)]
        kept = [x.contiguous() for x in known]  # hooks of saved tensors may turn them
        given = z, self._locs, self._factor, logits, *kept, *made, *result
        if self._run("density_gradients", *given, count=z.shape[-2]) is None:
            return None
        by_z, by_locs, by_factor, by_logits = result
        return by_z, by_logits, by_locs, by_factor

    def sample_gradients(
        self,
        logits: Tensor,
        z: Tensor,
        grad: Tensor,
        known: Densities | None,
        groups: Tensor | None,
        transport: Callable[..., Tensor] | None,
    ) -> tuple[tuple[Tensor, ...], Tensor] | None:
        """Of the logits, the means and the factor, by those at samples.

        Args:
            logits: ``(*B, K)``.
            z: ``(*B, S, D)``.
            grad: ``(*B, S, D)``.
            known: the densities of z, or None.
            groups: labels, ``(*B, K)``, or None for one group.
            transport: that moves weight within groups; None if the logits get no gradient.

        Returns:
            The gradients, and the contributions of the weights at each sample, ``(*B, S, K)``,
            zero where they have no part; or None if the loops do not compute the transport, or a
            path is too long for them.
        """
        computed = ((name, self._transports.get(name)) for name in FIELDS)
        field = next((name for name, field in computed if field is transport), None)
        if field is None or not self._serve(logits):
            return None
        if groups is not None and groups.shape != logits.shape:
            return None
        known = self.evaluate(logits, z) if known is None else known
        if known is None:
            return None
        z, grad, logits = z.contiguous(), grad.contiguous(), logits.contiguous()
        log_joint, log_prob = (x.to(torch.float64).contiguous() for x in known)
        labels = groups if groups is None else groups.contiguous()
        rule = FIELDS[field], *map(float, NODES[z.dtype])
        result = [torch.empty_like(x) for x in (log_joint, self._locs, self._factor, logits)]
        here = z, grad, self._locs, self._factor, logits, log_joint, log_prob, labels
        if self._run("sample_gradients", *here, *rule, *result, count=z.shape[-2]) != 0:
            return None
        moved, by_locs, by_factor, by_logits = result
        return (by_logits, by_locs, by_factor), moved

    def groups(self, cut: float, chained: bool) -> Tensor | None:
        """Labels of groups of overlapping components, or of chains of them, ``(*B, K)``."""
        labels = torch.empty(*self._batch, self._K, dtype=torch.int64, device=CPU)
        status = self._run("linkage", self._locs, self._factor, labels, cut, int(chained))
        return None if status is None else labels


def reference(z: Tensor, logits: Tensor, locs: Tensor, factor: Tensor) -> Densities:
    """The densities by operations of torch, which can be differentiated again."""
    scales = factor if factor.dim() == locs.dim() else factor.unsqueeze(-2).expand_as(locs)
    log_weights = logits.log_softmax(-1)
    log_joint = log_weights.unsqueeze(-2) + diag_normal_log_prob(z, log_weights, locs, scales)
    return log_joint, log_joint.logsumexp(-1, keepdim=True)


class _Densities(torch.autograd.Function):
    @staticmethod
    def forward(ctx, compiled, *tensors):
        ctx.set_materialize_grads(False)
        ctx.compiled = compiled
        ctx.save_for_backward(*tensors)
        *_, log_joint, log_prob = tensors
        return log_joint.detach(), log_prob.detach()

    @staticmethod
    def backward(ctx, *grads):
        z, *parameters, log_joint, log_prob = ctx.saved_tensors
        slopes = [x for x in grads if x is not None]
        if not slopes:
            return (None,) * 7
        if not torch.is_grad_enabled() and serves(*slopes):
            known = log_joint, log_prob
            found = ctx.compiled.density_gradients(parameters[0], z, known, grads)
            if found is not None:
                return None, *found, None, None
        wanted = ctx.needs_input_grad[1:5]
        with torch.enable_grad():
            # views, for one may depend on another, a sample on what it was drawn with
            given = [x.view_as(x) for x in (z, *parameters)]
            densities = reference(*(x.double() for x in given))
        needed = [x for x, needs in zip(given, wanted, strict=True) if needs]
        outputs = [x for x, slope in zip(densities, grads, strict=True) if slope is not None]
        left = iter(torch.autograd.grad(outputs, needed, slopes, create_graph=True))
        return None, *(next(left) if needs else None for needs in wanted), None, None
