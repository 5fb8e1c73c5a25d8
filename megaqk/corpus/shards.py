"""Which rank tokenises what, and in which order the results stand in the corpus.

The inputs are dealt to shards, each shard is cut into chunks, and the corpus holds chunk 0 of every shard, then chunk 1
of every shard that has one, and so on: an order that the number of ranks has no part in. With at least as many shards
as ranks a rank reads its own shards' files only; with fewer, the ranks that share a shard all read it but parse and
tokenise only their turns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from megaqk.corpus.lines import Chunk
from megaqk.corpus.parsing import texts_of
from megaqk.corpus.sources import Source

# Bounds what a rank holds between two exchanges (a chunk a shard), and the files open at once.
MAX_SHARDS = 64
Place = tuple[int, int]  # (step, shard)


class Shards:
    """The share of one rank of `size`."""

    def __init__(self, sources: Sequence[Source], *, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        self._num_shards = max(min(len(sources), MAX_SHARDS), 1)
        self._sources = [sources[shard :: self._num_shards] for shard in range(self._num_shards)]
        # Enough steps between exchanges that every rank of a shared shard has a turn.
        self.steps_per_exchange = -(-size // self._num_shards)

    def _owner(self, step: int, shard: int) -> int:
        if self._num_shards >= self._size:
            return shard % self._size
        sharing = len(range(shard, self._size, self._num_shards))
        return shard + self._num_shards * (step % sharing)

    def _read(self, shard: int) -> Iterator[Chunk]:
        sources = self._sources[shard]
        for number, source in enumerate(sources):
            for chunk in source.chunks():
                # Of the shard, not of the file: files of a shard are taken to be of like size.
                share = None if chunk.consumed is None else (number + chunk.consumed) / len(sources)
                yield replace(chunk, consumed=share)

    def chunks(self, from_step: int) -> Iterator[tuple[Place, Chunk]]:
        """Yield this rank's chunks with their places, in order, from a step on."""
        owned = range(self._rank % self._num_shards, self._num_shards, self._size)
        shards = {shard: self._read(shard) for shard in owned}
        step = 0
        while shards:
            for shard in list(shards):
                chunk = next(shards[shard], None)
                if chunk is None:
                    del shards[shard]
                elif step >= from_step and self._owner(step, shard) == self._rank:
                    yield (step, shard), chunk
            step += 1


def iterate_texts(sources: Sequence[Source], *, skip_bad: bool = False, max_bytes: int | None = None) -> Iterator[str]:
    """Yield the usable documents in the order of a corpus made from these sources, in this process.

    Stop after about `max_bytes` of text, which come from all inputs alike.
    """
    left = max_bytes
    for (_, shard), chunk in Shards(sources, rank=0, size=1).chunks(0):
        for text in texts_of(chunk, sources[shard].text_field, skip_bad=skip_bad).texts:
            yield text
            if left is not None:
                left -= len(text.encode())
                if left <= 0:
                    return
