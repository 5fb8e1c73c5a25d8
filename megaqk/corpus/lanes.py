"""Which rank tokenises what, and in which order the results stand in the corpus.

The inputs are dealt to lanes, each lane is cut into chunks, and the corpus holds chunk 0 of every lane, then chunk 1 of
every lane that has one, and so on: an order that the number of ranks has no part in. With at least as many lanes as
ranks a rank reads its own lanes' files only; with fewer, the ranks that share a lane all read it but parse and tokenise
only their turns.
"""

from collections.abc import Iterator, Sequence

from megaqk.corpus.encoding import Encoded
from megaqk.corpus.lines import Chunk
from megaqk.corpus.parsing import texts_of
from megaqk.corpus.sources import Source

# Bounds what a rank holds between two exchanges (a chunk a lane), and the files open at once.
MAX_LANES = 64
Place = tuple[int, int]  # (step, lane)


class Lanes:
    """The share of one rank of `size`."""

    def __init__(self, sources: Sequence[Source], *, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        self._num_lanes = max(min(len(sources), MAX_LANES), 1)
        self._sources = [sources[lane :: self._num_lanes] for lane in range(self._num_lanes)]
        # Enough steps between exchanges that every rank of a shared lane has a turn.
        self.steps_per_exchange = -(-size // self._num_lanes)

    def _owner(self, step: int, lane: int) -> int:
        if self._num_lanes >= self._size:
            return lane % self._size
        sharing = len(range(lane, self._size, self._num_lanes))
        return lane + self._num_lanes * (step % sharing)

    def _reads(self, lane: int) -> bool:
        return lane % self._size == self._rank or self._rank % self._num_lanes == lane

    def _lane(self, lane: int) -> Iterator[Chunk]:
        sources = self._sources[lane]
        for number, source in enumerate(sources):
            for chunk in source.chunks():
                # Of the lane, not of the file: files of a lane are taken to be of like size.
                share = None if chunk.consumed is None else (number + chunk.consumed) / len(sources)
                yield Chunk(chunk.origin, chunk.first, chunk.lines, chunk.texts, share)

    def chunks(self, from_step: int) -> Iterator[tuple[Place, Chunk]]:
        """Yield this rank's chunks with their places, in order, from a step on."""
        lanes = {lane: self._lane(lane) for lane in range(self._num_lanes) if self._reads(lane)}
        step = 0
        while lanes:
            for lane in list(lanes):
                chunk = next(lanes[lane], None)
                if chunk is None:
                    del lanes[lane]
                elif step >= from_step and self._owner(step, lane) == self._rank:
                    yield (step, lane), chunk
            step += 1


class Ahead:
    """Encoded chunks up to a step, with the first one beyond it kept back."""

    def __init__(self, encoded: Iterator[tuple[Place, Encoded]]) -> None:
        self._encoded = encoded
        self._kept: tuple[Place, Encoded] | None = None
        self._shares: dict[int, float | None] = {}

    def before(self, until: int) -> Iterator[tuple[Place, Encoded]]:
        """Yield the chunks of all steps below `until` that were not yielded yet."""
        while True:
            item = self._kept or next(self._encoded, None)
            self._kept = item
            if item is None or item[0][0] >= until:
                return
            self._kept = None
            self._shares[item[0][1]] = item[1].consumed
            yield item

    @property
    def consumed(self) -> float | None:
        """Share of this rank's inputs that went into what was yielded, in [0, 1]; None where sizes are unknown."""
        known = [share for share in self._shares.values() if share is not None]
        return sum(known) / max(len(known), 1) if len(known) == len(self._shares) else None

    def close(self) -> None:
        """End the tokenising processes."""
        close = getattr(self._encoded, "close", None)
        if close is not None:
            close()


def iterate_texts(sources: Sequence[Source], *, skip_bad: bool = False, max_bytes: int | None = None) -> Iterator[str]:
    """Yield the usable documents in the order of a corpus made from these sources, in this process.

    Args:
        sources: The inputs.
        skip_bad: Leave malformed documents out instead of stopping.
        max_bytes: Stop after about so many bytes of text, which come from all inputs alike.

    Raises:
        UserError: An input is unreadable, or a document is malformed and `skip_bad` is off.
    """
    left = max_bytes
    for (_, lane), chunk in Lanes(sources, rank=0, size=1).chunks(0):
        for text in texts_of(chunk, sources[lane].text_field, skip_bad=skip_bad)[0]:
            yield text
            if left is not None:
                left -= len(text.encode())
                if left <= 0:
                    return
