"""Samples of several sources in given proportions, which may change as training goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.config.data import SourceConfig, StageConfig
from megaqk.data.dataset import SampleStream
from megaqk.data.pattern import Pattern
from megaqk.errors import UserError


@dataclass(frozen=True)
class Stage:
    """Proportions from a point of the run on.

    Attributes:
        start: First global sample position.
        weights: One weight a source, in their order; at least one positive.
    """

    start: int
    weights: tuple[float, ...]


def resolve_stages(
    sources: Sequence[SourceConfig],
    configured: Sequence[StageConfig],
    sequence_length: int,
    global_batch_size: int | None,
) -> list[Stage]:
    """Return the stages of a blend with their starts in samples; the first is the sources' own weights.

    Raises:
        UserError: The starts do not increase.
    """
    stages = [Stage(0, tuple(source.weight for source in sources))]
    for number, stage in enumerate(configured):
        if stage.start_tokens is not None:
            start = -(-stage.start_tokens // sequence_length)
        else:
            assert stage.start_step is not None, "StageConfig asks for exactly one of the two"
            assert global_batch_size is not None, "the caller knows the batch size where steps are given"
            start = stage.start_step * global_batch_size
        if start <= stages[-1].start:
            raise UserError(
                f"data.stages: stage {number} starts at sample {start}, must come after the one before, which starts "
                f"at sample {stages[-1].start}"
            )
        stages.append(Stage(start, tuple(stage.weights.get(source.label, 0.0) for source in sources)))
    return stages


class BlendStream:
    """Several streams as one; see `SampleStream`.

    Each source keeps its own order and goes on in it, epoch after epoch, across stages: a stage decides how often a
    source is drawn, never what it has next. So a position's sample depends on the seed and the stages up to it alone.
    """

    def __init__(self, streams: Sequence[SampleStream], stages: Sequence[Stage], *, num_samples: int = 0) -> None:
        """Blend streams.

        Args:
            streams: One stream a source.
            stages: In order of their starts, the first of which is 0.
            num_samples: What to call an epoch; 0 takes the sum of the sources' epochs.
        """
        assert stages[0].start == 0, "the first stage covers the start of the run"
        self.sequence_length = streams[0].sequence_length
        self.num_tokens = sum(stream.num_tokens for stream in streams)
        self.num_samples = num_samples or sum(stream.num_samples for stream in streams)
        self._streams = list(streams)
        self._starts = np.array([stage.start for stage in stages], dtype=np.int64)
        self._patterns = [Pattern(stage.weights) for stage in stages]
        drawn = np.zeros(len(streams), dtype=np.int64)
        self._drawn_before = [drawn]
        for pattern, length in zip(self._patterns, np.diff(self._starts), strict=False):
            drawn = drawn + pattern.counts(int(length))
            self._drawn_before.append(drawn)

    def locate(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return which source each global position draws from, and the position in that source."""
        positions = np.asarray(positions, dtype=np.int64)
        stages = np.searchsorted(self._starts, positions, side="right") - 1
        sources, inner = np.empty_like(positions), np.empty_like(positions)
        for stage in np.unique(stages):
            chosen = stages == stage
            source, rank = self._patterns[stage].locate(positions[chosen] - self._starts[stage])
            sources[chosen], inner[chosen] = source, rank + self._drawn_before[stage][source]
        return sources, inner

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the samples at global positions (>= 0), shape (len(positions), sequence_length + 1)."""
        sources, inner = self.locate(positions)
        samples = np.empty((len(sources), self.sequence_length + 1), dtype=np.int64)
        for source in np.unique(sources):
            chosen = sources == source
            samples[chosen] = self._streams[source].read(inner[chosen])
        return samples

    def token_blocks(self, *, at_most: int | None = None) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """Yield the tokens of one epoch of each source, in blocks of bounded size, or about `at_most` of them."""
        for stream in self._streams:
            share = None if at_most is None else at_most * stream.num_tokens // self.num_tokens
            yield from stream.token_blocks(at_most=share)
