"""The architecture of `modeling_megaqk.py`, which computes every model; others than us must trust its code."""

import re
from typing import Any

from megaqk.config.model import ModelConfig
from megaqk.exchange.architectures.architecture import Architecture, Tensors
from megaqk.exchange.lazy import LazyTensor

_WHOLE = {
    "embedding.weight": "embedding.weight",
    "embedding_output.positions.weight": "positions.weight",
    "final_norm.norm.": "final_norm.",
    "head.weight": "head.weight",
}
_SAME = ("norm", "norm_eps", "bias", "feed_forward", "positions", "rotary_base", "qk_norm")
MODULE = "modeling_megaqk"


class Own(Architecture):
    """Names are ours, but each projection is a module of its own."""

    model_type, class_name = "megaqk", "MegaqkForCausalLM"

    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """See `Architecture`."""
        return {
            "vocab_size": tokens,
            "hidden_size": model.hidden_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_size,
            "intermediate_size": model.ffn_width,
            "max_position_embeddings": positions,
            "initializer_range": model.init_std,
            "tie_word_embeddings": model.tied_embedding,
            **{key: getattr(model, key) for key in _SAME},
            "auto_map": {"AutoConfig": f"{MODULE}.MegaqkConfig", "AutoModelForCausalLM": f"{MODULE}.MegaqkForCausalLM"},
        }

    def context_limit(self, config: Any) -> tuple[str, int] | None:
        """See `Architecture`."""
        return ("max_position_embeddings", config.max_position_embeddings) if config.positions == "learned" else None

    def to_transformers(self, model: ModelConfig, ours: Tensors) -> dict[str, LazyTensor]:
        """See `Architecture`."""
        return {_theirs(name): tensor for name, tensor in ours.items()}

    def from_transformers(self, config: Any, theirs: Tensors) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
        """See `Architecture`."""
        keys = {
            "num_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "ffn_hidden_size": config.intermediate_size,
            "ffn_match_parameters": False,
            "tied_embedding": bool(config.tie_word_embeddings),
            **{key: getattr(config, key) for key in _SAME},
        }
        own_head = not keys["tied_embedding"]
        return keys, {_ours(name): theirs[name] for name in theirs if own_head or name != "head.weight"}


def _theirs(name: str) -> str:
    """`layers.0.attention.qkv.query_weight` as `layers.0.attention.query.weight`."""
    for ours, theirs in _WHOLE.items():
        if name.startswith(ours):
            return name.replace(ours, theirs)
    return re.sub(r"\.(qkv|input)\.(\w+)_(weight|bias)$", r".\2.\3", name)


def _ours(name: str) -> str:
    for ours, theirs in _WHOLE.items():
        if name.startswith(theirs):
            return name.replace(theirs, ours)
    name = re.sub(r"\.attention\.(query|key|value)\.(weight|bias)$", r".attention.qkv.\1_\2", name)
    return re.sub(r"\.ffn\.(up|gate)\.(weight|bias)$", r".ffn.input.\1_\2", name)
