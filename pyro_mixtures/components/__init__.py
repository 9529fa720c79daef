"""What mixtures are made of: K distributions as a value, with what they can do."""

from pyro_mixtures.components.apart import Apart
from pyro_mixtures.components.base import Components
from pyro_mixtures.components.family import Family
from pyro_mixtures.components.normals import LearnedHub, Normals
from pyro_mixtures.components.scale import Cholesky, Diagonal
from pyro_mixtures.components.several import Several
from pyro_mixtures.components.shared import Shared, Sized

__all__ = [
    "Apart",
    "Cholesky",
    "Components",
    "Diagonal",
    "Family",
    "LearnedHub",
    "Normals",
    "Several",
    "Shared",
    "Sized",
]
