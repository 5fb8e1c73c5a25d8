"""Samples of several sources in given proportions, which may change as training goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.config.data import PhaseConfig, SourceConfig
from megaqk.data.dataset import Dataset
from megaqk.data.pattern import Pattern
from megaqk.errors import UserError


@dataclass(frozen=True)
class Phase:
    """Proportions from a point of the run on."""

    start: int  # the first global sample position
    weights: tuple[float, ...]  # one a source, in their order; at least one positive


def resolve_phases(
    sources: Sequence[SourceConfig],
    configured: Sequence[PhaseConfig],
    sequence_length: int,
    global_batch_size: int | None,
) -> list[Phase]:
    """Return the phases of a blend with their starts in samples; the first is the sources' own weights."""
    phases = [Phase(0, tuple(source.weight for source in sources))]
    for number, phase in enumerate(configured):
        if phase.start_tokens is not None:
            key, value, start = "start_tokens", phase.start_tokens, -(-phase.start_tokens // sequence_length)
        else:
            assert phase.start_step is not None, "PhaseConfig asks for exactly one of the two"
            assert global_batch_size is not None, "the caller knows the batch size where steps are given"
            key, value, start = "start_step", phase.start_step, phase.start_step * global_batch_size
        if start <= phases[-1].start:
            raise UserError(
                f"data.phases[{number}].{key} = {value}: is sample {start}, must come after the phase before, which "
                f"starts at sample {phases[-1].start}"
            )
        phases.append(Phase(start, tuple(phase.weights.get(source.label, 0.0) for source in sources)))
    return phases


class BlendedDataset:
    """Several datasets as one; see `Dataset`.

    Each source keeps its own order and goes on in it, epoch after epoch, across phases: a phase decides how often a
    source is drawn, never what it has next. So a position's sample depends on the seed and the phases up to it alone.
    `num_samples` is what to call an epoch; 0 takes the sum of the sources' epochs.
    """

    def __init__(self, datasets: Sequence[Dataset], phases: Sequence[Phase], *, num_samples: int = 0) -> None:
        assert phases[0].start == 0, "the first phase covers the start of the run"
        self.sequence_length = datasets[0].sequence_length
        self.num_tokens = sum(dataset.num_tokens for dataset in datasets)
        self.num_samples = num_samples or sum(dataset.num_samples for dataset in datasets)
        self._datasets = list(datasets)
        self._starts = np.array([phase.start for phase in phases], dtype=np.int64)
        self._patterns = [Pattern(phase.weights) for phase in phases]
        drawn = np.zeros(len(datasets), dtype=np.int64)
        self._drawn_before = [drawn]
        for pattern, length in zip(self._patterns, np.diff(self._starts), strict=False):
            drawn = drawn + pattern.counts(int(length))
            self._drawn_before.append(drawn)

    def locate(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return which source each global position draws from, and the position in that source."""
        positions = np.asarray(positions, dtype=np.int64)
        phases = np.searchsorted(self._starts, positions, side="right") - 1
        sources, inner = np.empty_like(positions), np.empty_like(positions)
        for phase in np.unique(phases):
            chosen = phases == phase
            source, rank = self._patterns[phase].locate(positions[chosen] - self._starts[phase])
            sources[chosen], inner[chosen] = source, rank + self._drawn_before[phase][source]
        return sources, inner

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the samples at global positions; see `Dataset`."""
        sources, inner = self.locate(positions)
        samples = np.empty((len(sources), self.sequence_length + 1), dtype=np.int64)
        for source in np.unique(sources):
            chosen = sources == source
            samples[chosen] = self._datasets[source].read(inner[chosen])
        return samples

    def token_blocks(self, *, at_most: int | None = None) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """Yield the tokens of one epoch of each source, or about `at_most` of them; see `Dataset`."""
        for dataset in self._datasets:
            share = None if at_most is None else at_most * dataset.num_tokens // self.num_tokens
            yield from dataset.token_blocks(at_most=share)
