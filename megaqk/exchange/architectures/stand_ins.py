"""What an exported model holds in place of what its architecture cannot leave out, found again when it comes back.

An export says in `config.json` (`megaqk_model`) what the model was. It is believed where the weights agree: after
training elsewhere a bias that stood for none may have become one.
"""

from collections.abc import Iterable
from typing import Any

import torch

from megaqk.exchange.lazy import LazyTensor


def was(config: Any, key: str) -> Any:
    """A key of the model section with which a model was exported; None for one that was not."""
    return (getattr(config, "megaqk_model", None) or {}).get(key)


def bias_is_absent(config: Any, biases: Iterable[LazyTensor]) -> bool:
    """Whether biases are the zeros that stand for none."""
    return was(config, "bias") is False and not any(bias.read().any() for bias in biases)


def copied_heads(config: Any, heads: int, weights: Iterable[LazyTensor]) -> int:
    """Key/value heads of which those of some weights or biases are copies; all heads if they are not."""
    kv_heads = was(config, "num_kv_heads")
    if kv_heads in (None, heads):
        return heads
    for weight in weights:
        by_head = weight.read().reshape(kv_heads, heads // kv_heads, -1)
        if not torch.equal(by_head, by_head[:, :1].expand_as(by_head)):
            return heads
    return int(kv_heads)


def head_rows(heads: Iterable[int], head_dim: int) -> torch.Tensor:
    """Numbers of the rows of some heads, in order."""
    return torch.cat([torch.arange(head * head_dim, (head + 1) * head_dim) for head in heads])
