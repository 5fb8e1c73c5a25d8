"""A look at activations from outside, on the way through the layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor

TapKind = Literal[
    "attention_residual", "ffn_residual", "attention_write", "ffn_write", "documents", "query", "key", "scores"
]
"""What a block shows:

- attention_residual, ffn_residual: the residual stream (B, S, H) that a sublayer reads, before its norm.
- attention_write, ffn_write: what a sublayer adds to it (B, S, H), after dropout.
- documents: positions (B, S), 0 at the first token of each document, where documents are kept apart; before the query.
- query, key: (B, heads, S, D) as they meet: normalised and rotated, where the model does that.
- scores: their products (B, heads, S, S) / sqrt(D), -inf where a token may not look; computed for a watcher only.

Heads are those of this tensor-parallel rank, and S of the residual stream is this rank's part under sequence
parallelism.
"""

Watcher = Callable[[int, Tensor], None]
"""Called with the global depth of the block and the detached activation; it must not write to it."""


class Taps:
    """The watchers of one process. False while there are none, so that layers need not ask further.

    Where activations are recomputed a watcher sees each twice; in evaluation nothing is recomputed.
    """

    def __init__(self) -> None:
        self._watchers: dict[TapKind, list[Watcher]] = {}

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def wants(self, kind: TapKind) -> bool:
        """Whether anyone watches this kind."""
        return kind in self._watchers

    @contextmanager
    def watching(self, kind: TapKind, watcher: Watcher) -> Iterator[None]:
        """Call `watcher` with every activation of a kind for the time being."""
        self._watchers.setdefault(kind, []).append(watcher)
        try:
            yield
        finally:
            self._watchers[kind].remove(watcher)
            if not self._watchers[kind]:
                del self._watchers[kind]

    def show(self, kind: TapKind, layer: int, activation: Tensor) -> None:
        """Hand an activation to those who watch its kind."""
        for watcher in self._watchers.get(kind, ()):
            watcher(layer, activation.detach())
