"""Find private attributes of other objects, ``x._name``, and imports of private names.

What an object or a module does not offer may change. A function of tensors, a method of the object
itself or a public name with a docstring takes its place; where a third party leaves no choice, the
attribute stands in ``ALLOWED``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("pyro_mixtures", "experiments", "benchmarks", "tutorials", "docs/conf.py")
OWN = ("self", "cls", "super()")

ALLOWED = {
    "elbo._get_traces": "Pyro: the way to an objective's traces",
    "elbo._guess_max_plate_nesting": "Pyro: what an objective does before its traces",
    "guide._pyro_name": "Pyro: prefix of a guide's parameters",
    "guide._unpack_latent": "Pyro: the sites in a guide's vector",
    "term._pyro_dims": "Pyro: the symbols of a packed tensor's dimensions",
    "fn._mask": "Pyro: the mask of a MaskedDistribution",
    "site['fn']._mask": "Pyro: the mask of a MaskedDistribution",
    "distribution._capacitance_tril": "torch: the factor of a LowRankMultivariateNormal",
    "new._validate_args": "torch: how its own expand hands the flag on, and checks nothing",
    "new._inv": "torch: a transform's inverse, kept",
    "new._cached_x_y": "torch: a transform's last point, kept",
    "transform._cache_size": "torch: whether it keeps the last point",
    "tensor._version": "torch: how often a tensor was changed in place",
    "torch.distributions.transforms._InverseTransform": "torch: the class of ``transform.inv``",
    "torch._C": "torch: whether a graph is recorded or transformed",
    "torch._C._functorch": "torch: whether a graph is transformed",
    "torch._C._has_storage": "torch: whether a tensor has numbers of its own",
    "torch._C._len_torch_dispatch_stack": "torch: whether a mode looks at its operations",
    "forward_ad._current_level": "torch: whether derivatives go forward",
    "x._is_zerotensor": "torch: whether a tensor has no memory for its zeros",
    "torch._C._get_tracing_state": "torch: whether a graph is recorded",
    "pyro.distributions.diag_normal_mixture._MixDiagNormalSample": "Pyro: what is measured",
    "sys._getframe": "Python: who calls",
    "kept._replace": "Python: a public method of a NamedTuple",
    "term._replace": "Python: a public method of a NamedTuple",
}
"""Attributes of third parties, with their owners as they are written, and what they are."""


def is_private(name: str) -> bool:
    """Whether it is one of ``_name`` and ``__name``, not of ``__name__``."""
    return name.startswith("_") and not name.endswith("__")


def private_attributes(source: str) -> Iterator[tuple[int, str]]:
    """Lines and expressions of the private attributes of other objects and modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value) not in OWN:
                yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.ImportFrom):
            for each in node.names:
                if is_private(each.name):
                    yield node.lineno, f"{node.module}.{each.name}"


def complaints(root: Path, places: tuple[str, ...], allowed: dict[str, str]) -> Iterator[str]:
    """What is wrong below a folder, a line each."""
    unused = set(allowed)
    for place in (root / name for name in places):
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            for line, found in sorted(private_attributes(file.read_text("utf-8"))):
                unused.discard(found)
                if found not in allowed:
                    yield (
                        f"{file.relative_to(root)}:{line}: {found} is private to another object:"
                        " use a function or a public name"
                    )
    for each in sorted(unused):
        yield f"{Path(__file__).relative_to(ROOT)}: {each} is read nowhere: take it out of ALLOWED"


if __name__ == "__main__":
    found = list(complaints(ROOT, PLACES, ALLOWED))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
