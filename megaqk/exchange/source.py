"""A checkpoint as what an export needs of it: its weights by global name, one at a time, and its tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.index import WEIGHT, tensor_name
from megaqk.checkpoint.reader import Checkpoint, Wanted
from megaqk.config.loading import restore_config
from megaqk.config.root import Config
from megaqk.data.manifest import read_manifest
from megaqk.data.tokenizer import Tokenizer, load_tokenizer
from megaqk.errors import UserError
from megaqk.exchange.lazy import LazyTensor, part
from megaqk.runtime.files import sha256_of

OF_THE_VOCABULARY = ("embedding.weight", "head.weight")


@dataclass(frozen=True)
class CheckpointModel:
    """The model in a checkpoint, without the rows that pad its vocabulary.

    Attributes:
        checkpoint: Where it is.
        config: The configuration with which it was written.
        tokens: Real tokens of its vocabulary.
    """

    checkpoint: Checkpoint
    config: Config
    tokens: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "CheckpointModel":
        """Read what is beside the tensors."""
        manifest = checkpoint.manifest
        return cls(checkpoint, restore_config(manifest["config"]), manifest["identity"]["tokens"])

    @property
    def tensors(self) -> dict[str, LazyTensor]:
        """Every parameter by global name."""
        return {name: self._tensor(name) for name in self.checkpoint.parameters}

    def _tensor(self, parameter: str) -> LazyTensor:
        name = tensor_name(WEIGHT, parameter)

        def read(box: Box) -> Tensor:
            target = torch.empty(box.shape)
            self.checkpoint.read([Wanted(name, box, target)])
            return target

        whole = LazyTensor(self.checkpoint.index.tensors[name], read)
        return part(whole, 0, self.tokens) if parameter in OF_THE_VOCABULARY else whole

    def tokenizer(self, given: Path | None = None) -> tuple[Tokenizer, int]:
        """The tokenizer of the run, found by its checksum, and the id that ends documents.

        Args:
            given: Its file, where it is not at its place any more.

        Raises:
            UserError: It is not found, or the file given is another one.
        """
        data, digest = self.config.data, self.checkpoint.manifest["data"].get("tokenizer", "")
        for path in [given] if given else self._candidates():
            if path.is_file() and digest in ("", sha256_of(path)):
                tokenizer = load_tokenizer(path, data.eod_token)
                return tokenizer, self._end_of_document(path, tokenizer)
        where = f"--tokenizer = {given}" if given else f"{self.checkpoint.path}: its tokenizer is not found"
        raise UserError(
            f"{where}: must be the tokenizer of the run, a file of sha256 {digest[:16]}...; give it as --tokenizer"
        )

    def _candidates(self) -> Iterator[Path]:
        data = self.config.data
        if data.tokenizer is not None:
            yield Path(data.tokenizer)
        for prefix in self._prefixes():
            manifest = read_manifest(prefix)
            if manifest is not None:
                yield prefix.parent / manifest.tokenizer
        if data.text is not None:
            for kind in ("model", "json"):
                yield from sorted(Path(data.cache_dir).glob(f"*/tokenizer.{kind}"))

    def _prefixes(self) -> list[Path]:
        data = self.config.data
        return [Path(data.corpus)] if data.corpus else [Path(source.corpus) for source in data.sources or ()]

    def _end_of_document(self, path: Path, tokenizer: Tokenizer) -> int:
        """As training took it: that of the configuration, or of the corpus, or of the tokenizer."""
        prefix = next(iter(self._prefixes()), path.parent / "corpus")
        manifest = read_manifest(prefix) if self.config.data.eod_token is None else None
        return tokenizer.eod_id if manifest is None else manifest.eod_id
