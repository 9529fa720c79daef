"""The order of the tutorials, imported by name: Sphinx cannot keep a function of conf.py."""

import re


def by_number(name: str) -> int:
    """The N of ``plot_N_NAME.py``; by letters the tenth would come second."""
    found = re.match(r"plot_(\d+)_", name)
    if found is None:
        raise ValueError(
            f"Expected a tutorial's name of the form plot_N_NAME.py, but got {name!r}"
        )
    return int(found[1])
