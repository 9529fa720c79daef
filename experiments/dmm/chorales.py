"""Chorales of Bach as piano rolls of ragged lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.lab.datasets import data_file

LOWEST, HIGHEST = 21, 108
"""Notes of a piano, as MIDI numbers them."""
NOTES = HIGHEST - LOWEST + 1
JITTER = 0.05
"""Of the logarithm of lengths, by which sequences are sorted into batches."""


class Rolls(TensorDataset):
    """Piano rolls ``(N, T, 88)`` of zeros and ones, padded with zeros, and lengths ``(N,)``.

    Several of them, by their places, are as long as the longest of these.
    """

    def __init__(self, rolls: Tensor, lengths: Tensor) -> None:
        super().__init__(rolls, lengths)
        self.rolls, self.lengths = rolls, lengths

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        lengths = self.lengths[index]
        return self.rolls[index][..., : int(lengths.max()), :], lengths

    def first(self, count: int | None) -> Rolls:
        """So many of them, or all."""
        return Rolls(*self[:count])

    def sorted(self) -> Rolls:
        """From the longest to the shortest, so that batches of neighbors have little padding."""
        order = self.lengths.argsort(descending=True, stable=True)
        return Rolls(self.rolls[order], self.lengths[order])


class Batches(TensorDataset):
    """Batches of sequences that are about equally long, each as one datum.

    Sequences are sorted by their lengths times some noise and cut into batches, anew for each
    pass. The batches of all passes are the data, so that a loader with ``batch_size=1`` sees
    each sequence once for each pass.

    Args:
        data: the sequences.
        batch_size: sequences of a batch.
        passes: over the data.
        seed: of the noise.

    Raises:
        ValueError: for sizes below one.
    """

    def __init__(self, data: Rolls, batch_size: int, passes: int, seed: int) -> None:
        if min(batch_size, passes) < 1:
            raise ValueError(
                f"Expected batch_size and passes >= 1, but got {batch_size} and {passes}"
            )
        super().__init__(data.rolls, data.lengths)
        self.data = data
        generator = torch.Generator().manual_seed(seed)
        logs = data.lengths.log()
        noise = JITTER * torch.randn(passes, len(data), generator=generator)
        self.batches = [
            batch for each in logs + noise for batch in each.argsort().split(batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        (place,) = index
        return self.data[self.batches[place]]


@dataclass(frozen=True)
class Chorales:
    """Sequences to train with, to choose by and to judge by."""

    train: Rolls
    validation: Rolls
    test: Rolls


def load() -> Chorales:
    """The split of Boulanger-Lewandowski et al. at quarter notes: 229, 76 and 77 chorales.

    Raises:
        ValueError: for a missing file, and for sequences and notes that :func:`piano_rolls`
            refuses.
    """
    with data_file("jsb_chorales.json").open() as file:
        splits = json.load(file)
    train, validation, test = (
        piano_rolls(splits[name], name) for name in ("train", "valid", "test")
    )
    return Chorales(train, validation.sorted(), test.sorted())


def made_up(seed: int = 0) -> Chorales:
    """Short sequences of chords that move by steps, some notes missing: for a quick run."""
    generator = torch.Generator().manual_seed(seed)

    def sequence(length: int) -> list[list[int]]:
        moves = torch.randint(-1, 2, (length,), generator=generator).cumsum(0)
        heard = torch.rand(length, 3, generator=generator) < 0.9
        chords = (60 + 2 * moves).unsqueeze(-1) + torch.tensor([0, 4, 7])
        return [chord[there].tolist() for chord, there in zip(chords, heard, strict=True)]

    def split(count: int) -> Rolls:
        lengths = torch.randint(4, 13, (count,), generator=generator).tolist()
        return piano_rolls([sequence(length) for length in lengths], "made_up")

    return Chorales(split(24), split(6).sorted(), split(6).sorted())


def piano_rolls(sequences: Sequence[Sequence[Sequence[int]]], name: str) -> Rolls:
    """Sequences of chords, which are lists of MIDI notes, as piano rolls.

    Args:
        sequences: each of at least one time step; a chord without notes is silence.
        name: of the sequences, for errors.

    Raises:
        ValueError: for no sequence at all, one without time steps, and notes outside 21 to 108
            or that are no integers; the place is named.

    Example:
        >>> data = piano_rolls([[[60, 64]], [[60], [], [62]]], "train")
        >>> data.rolls.shape, data.lengths.tolist(), data.rolls[1, :, 60 - 21].tolist()
        (torch.Size([2, 3, 88]), [1, 3], [1.0, 0.0, 0.0])
    """
    if not sequences:
        raise ValueError(f"Expected at least one sequence in {name}, but got none")
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    if not bool(lengths.all()):
        place = lengths.tolist().index(0)
        raise ValueError(
            f"Expected sequences of at least one time step, but sequence {place} of {name} has"
            " length 0"
        )
    rolls = torch.zeros(len(sequences), int(lengths.max()), NOTES)
    for place, sequence in enumerate(sequences):
        for step, chord in enumerate(sequence):
            for note in chord:
                if not (isinstance(note, int) and LOWEST <= note <= HIGHEST):
                    raise ValueError(
                        f"Expected notes from {LOWEST} to {HIGHEST}, but got {note!r} at step"
                        f" {step} of sequence {place} of {name}"
                    )
                rolls[place, step, note - LOWEST] = 1.0
    return Rolls(rolls, lengths)


def there(rolls: Tensor, lengths: Tensor) -> Tensor:
    """Which time steps are not padding, ``(N, T)``.

    Raises:
        ValueError: for shapes that do not fit, and lengths outside 1 to T.
    """
    if rolls.dim() != 3 or lengths.shape != rolls.shape[:1]:
        raise ValueError(
            f"Expected rolls (N, T, notes) and lengths (N,), but got shapes {tuple(rolls.shape)}"
            f" and {tuple(lengths.shape)}"
        )
    least, greatest = int(lengths.min()), int(lengths.max())
    if not 1 <= least <= greatest <= rolls.shape[1]:
        raise ValueError(
            f"Expected lengths from 1 to {rolls.shape[1]}, but got {least} to {greatest}"
        )
    return torch.arange(rolls.shape[1], device=lengths.device) < lengths.unsqueeze(-1)
