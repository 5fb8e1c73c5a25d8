"""What a checkpoint holds: the global tensors, and where each piece of them lies."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from megaqk.checkpoint.boxes import Box

WEIGHT = "weight"
"""What the fp32 weights are kept as; an optimizer's state by its own names (`exp_avg`)."""

PIECE_ELEMENTS = 1 << 22
"""A piece has 16 MiB at most: what a reader of a part of it must read and check beside."""


@dataclass(frozen=True)
class Piece:
    """A rectangle of a global tensor in a file.

    Attributes:
        tensor: `<kind>/<global name>`, see `tensor_name`.
        box: The rectangle.
        offset: Its first byte in the file; fp32, row by row.
        sha256: Of its bytes.
    """

    tensor: str
    box: Box
    offset: int
    sha256: str

    @property
    def bytes(self) -> int:
        """Its length in the file."""
        return 4 * self.box.numel


def tensor_name(kind: str, parameter: str) -> str:
    """The name of what a checkpoint keeps for a parameter: `weight`, or a name of an optimizer's state."""
    return f"{kind}/{parameter}"


@dataclass(frozen=True)
class Index:
    """Where everything is.

    Attributes:
        tensors: Shape of each global tensor.
        files: Pieces by file, in the order in which they lie there.
    """

    tensors: Mapping[str, tuple[int, ...]]
    files: Mapping[str, tuple[Piece, ...]]

    @cached_property
    def pieces(self) -> Mapping[str, list[tuple[str, Piece]]]:
        """File and piece by tensor."""
        found = defaultdict(list)
        for file, pieces in self.files.items():
            for piece in pieces:
                found[piece.tensor].append((file, piece))
        return found

    def incomplete(self) -> str | None:
        """The first tensor of which elements are missing or there twice, or None.

        Counted, as every element has one writer by construction; readers count again what they have copied.
        """
        sizes = {name: sum(piece.box.numel for _, piece in self.pieces.get(name, [])) for name in self.tensors}
        return next((name for name, shape in self.tensors.items() if sizes[name] != prod(shape)), None)

    def to_json(self) -> str:
        """As text: pieces as [number of the tensor, first index, shape, offset, sha256]."""
        number = {name: place for place, name in enumerate(self.tensors)}
        files = {
            file: [[number[one.tensor], one.box.first, one.box.shape, one.offset, one.sha256] for one in pieces]
            for file, pieces in self.files.items()
        }
        return json.dumps({"tensors": self.tensors, "files": files}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Index":
        """Read what `to_json` gave.

        Raises:
            ValueError, KeyError, IndexError, TypeError: It is something else.
        """
        content: dict[str, Any] = json.loads(text)
        tensors = {name: tuple(shape) for name, shape in content["tensors"].items()}
        names = list(tensors)

        def pieces(entries: Iterable[Any]) -> tuple[Piece, ...]:
            return tuple(
                Piece(names[number], Box(tuple(first), tuple(shape)), offset, digest)
                for number, first, shape, offset, digest in entries
            )

        return cls(tensors, {file: pieces(entries) for file, entries in content["files"].items()})
