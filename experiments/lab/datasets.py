"""Data files: from the folder that an environment variable names, or downloaded once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pooch

VARIABLE = "PYRO_MIXTURES_DATA"


@dataclass(frozen=True)
class Origin:
    """Where a file is downloaded from, and its sha256; None where it has to be provided."""

    address: str
    sha256: str | None


ORIGINS = {
    "jsb_chorales.json": Origin(
        "https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/"
        "9a7f733ddb4ed91f48da64ac7f0f621c34aadd4d/jsb-chorales-quarter.json",
        "2db9329f1881a1d3f49703ec556bf1d6f84b4f6c1d702c156536e93cf31e1c91",
    ),
    "mnist.npz": Origin(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ),
    # three MATLAB files there, which become `train`, `valid` and `test`, (N, 28, 28) of 0 and 1
    "mnist_binarized.npz": Origin(
        "https://github.com/mingzhang-yin/ARM-gradient/tree/9b5f74da", None
    ),
    # images of 105 x 105 there, reduced to 28 x 28 by the mean of the ink in each cell: `images`,
    # (N, 28, 28) of 0 to 255, and `drawer`, (N,) of 1 to 20
    "omniglot28.npz": Origin("https://github.com/brendenlake/omniglot", None),
    # those of posteriordb are zipped there: a folder has to hold them
    **{
        f"posteriordb/{name}.data.json": Origin(
            "https://github.com/stan-dev/posteriordb/raw/28f8d3d6/posterior_database/data/data/"
            f"{name}.json.zip",
            None,
        )
        for name in (
            "eight_schools",
            "low_dim_gauss_mix",
            "low_dim_gauss_mix_collapse",
            "normal_2",
            "normal_5",
        )
    },
}


def data_file(name: str) -> Path:
    """The path of a data file.

    It is in the folder that the environment variable ``PYRO_MIXTURES_DATA`` names. Without the
    variable it is downloaded into the user's cache, where it stays.

    Args:
        name: of a file in :data:`ORIGINS`.

    Raises:
        ValueError: when the file is not in the folder, cannot be downloaded, or was downloaded and
            is not the one that was expected; the file, the variable and the address are named.
    """
    origin = ORIGINS[name]
    if folder := os.environ.get(VARIABLE):
        path = Path(folder) / name
        if not path.is_file():
            raise ValueError(
                f"Expected {path} (folder from the environment variable {VARIABLE}), but there is"
                f" no such file: provide it, or unset {VARIABLE} to download it from"
                f" {origin.address}"
            )
        return path
    if origin.sha256 is None:
        raise ValueError(
            f"Expected {name} in a folder that the environment variable {VARIABLE} names, but"
            f" {VARIABLE} is not set: make it of {origin.address}"
        )
    try:
        found = pooch.retrieve(
            origin.address,
            known_hash=f"sha256:{origin.sha256}",
            fname=name,
            path=pooch.os_cache("pyro_mixtures"),
            progressbar=True,
        )
    except (OSError, ValueError) as error:  # no connection, or another file
        raise ValueError(
            f"Expected to download {name} from {origin.address}, but got: {error}. Provide the"
            f" file in a folder that the environment variable {VARIABLE} names"
        ) from error
    return Path(found)
