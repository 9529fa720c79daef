"""Sphinx settings: `make docs` builds the site in docs/_build/html."""

import inspect
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # for gallery_order

project = "pyro_mixtures"
copyright = "the pyro_mixtures developers"
release = version = installed_version("pyro-mixtures")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
if not tags.has("without_sources"):  # noqa: F821 -- Sphinx's own name
    extensions.append("sphinx.ext.viewcode")
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "pyro_mixtures"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
pygments_dark_style = "github-dark"  # the usual one underlines modules

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what torch says of its methods stands there
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Reference"]

# Without a network the empty inventory stands in: `-W` takes one that cannot be had for an error.
intersphinx_timeout = 5
intersphinx_mapping = {
    name: (address, (None, "offline.inv"))
    for name, address in {
        "python": "https://docs.python.org/3",
        "torch": "https://docs.pytorch.org/docs/stable",
        "pyro": "https://docs.pyro.ai/en/stable",
    }.items()
}

# Every reference has to resolve, but to other libraries only if their inventory is there.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|pyro|numpy|matplotlib|collections|concurrent|pathlib)\..*"),
    ("py:class", r"Tensor|Distribution|Transform|Categorical"),  # as some annotations have them
    ("py:class", r"pyro_mixtures\..*\.\w+T"),  # type variables
    ("py:class", r"pyro_mixtures\.estimators\.\w+\.\w+Mixture"),  # known as EstimatedMixture
]

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "tutorials",
    "within_subsection_order": "gallery_order.by_number",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
}


def skip_member(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what is Pyro's, constants of modules, and fields that only tell their index."""
    foreign = not (getattr(obj, "__module__", None) or "pyro_mixtures").startswith("pyro_mixtures")
    constant = what == "module" and not callable(obj)
    field = (inspect.getdoc(obj) or "").startswith("Alias for field number")
    return True if foreign or constant or field else None


def show_public_bases(app: Sphinx, name: str, obj: type, options: Any, bases: list[type]) -> None:
    """Show the bases of a private base in its place."""
    while private := [base for base in bases if base.__name__.startswith("_")]:
        index = bases.index(private[0])
        bases[index : index + 1] = private[0].__bases__


def setup(app: Sphinx) -> None:
    """Connect the settings that are functions."""
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-bases", show_public_bases)
