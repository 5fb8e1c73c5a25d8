"""The watch for attention logits that explode."""

from collections.abc import Sequence


class LogitAlert:
    """Tells once that a logit is too large, and again only after all have been below the limit.

    Args:
        limit: The largest logit that is not too large.
        above: Whether the look before the first found one above it.

    Attributes:
        above: Whether the last look did.
    """

    def __init__(self, limit: float, *, above: bool = False) -> None:
        self._limit = limit
        self.above = above

    def look(self, logit_max: Sequence[Sequence[float]]) -> tuple[float, int, int] | None:
        """Look at the largest logits by layer and head.

        Returns:
            The largest with its layer and head, where it is to be told; NaN is not larger than anything.
        """
        heads = [(value, layer, head) for layer, row in enumerate(logit_max) for head, value in enumerate(row)]
        found = [head for head in heads if head[0] > self._limit]
        news = bool(found) and not self.above
        self.above = bool(found)
        return max(found) if news else None
