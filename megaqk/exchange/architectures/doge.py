"""Doge, which has the only biased network with RMSNorm and normalised queries and keys; its own additions are off.

It makes a mask of every pair of tokens, so it is the last resort.
"""

from typing import Any

from megaqk.config.model import ModelConfig
from megaqk.exchange.architectures.architecture import ROTATING, Tensors, check_value, refused
from megaqk.exchange.architectures.llama import RMS, YES
from megaqk.exchange.architectures.llama_family import QK_NORMS, LlamaFamily
from megaqk.exchange.architectures.stand_ins import are, was
from megaqk.exchange.lazy import LazyTensor, constant

_NEVER = 2**30


class Doge(LlamaFamily):
    """An ungated network is a gated one whose other factor is always 1."""

    model_type, class_name = "doge", "DogeForCausalLM"
    exports = {"norm": RMS, "bias": YES, "positions": ROTATING, "qk_norm": YES}
    qk_norms = QK_NORMS
    bias_keys = ("attention_bias", "mlp_bias")

    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """See `Architecture`."""
        return {
            **super().config(model, tokens=tokens, positions=positions),
            "keep_window_size": _NEVER,
            "sliding_window": None,
        }

    def to_transformers(self, model: ModelConfig, ours: Tensors) -> dict[str, LazyTensor]:
        """See `Architecture`."""
        named = super().to_transformers(model, ours)
        for index in range(model.num_layers):
            layer = f"model.layers.{index}."
            for name, (shape, value) in _additions(
                model.hidden_size, model.kv_heads, model.head_size, biased=model.bias
            ).items():
                named[f"{layer}{name}"] = constant(shape, value)
            if not model.gated:
                for kind in ("weight", "bias"):
                    up = named[f"{layer}mlp.up_proj.{kind}"]
                    named[f"{layer}mlp.gate_proj.{kind}"] = up
                    named[f"{layer}mlp.up_proj.{kind}"] = constant(up.shape, float(kind == "bias"))
        return named

    def keys(self, config: Any) -> dict[str, Any]:
        """See `LlamaFamily`."""
        check_value(config, "is_moe", False)
        if config.keep_window_size < config.max_position_embeddings:
            raise refused(
                "keep_window_size",
                config.keep_window_size,
                f"at least {config.max_position_embeddings}, every position",
            )
        return super().keys(config)

    def from_transformers(self, config: Any, theirs: Tensors) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
        """See `Architecture`."""
        keys, tensors = super().from_transformers(config, theirs)
        ungated = was(config, "feed_forward") in ("gelu", "relu_squared")
        for index in range(keys["num_layers"]):
            theirs_here, ours_here = f"model.layers.{index}.", f"layers.{index}.ffn.input."
            sizes = keys["hidden_size"], keys["num_kv_heads"], keys["head_dim"]
            for name, (_, value) in _additions(*sizes, biased=config.attention_bias).items():
                if not are(theirs[f"{theirs_here}{name}"], value):
                    raise refused(f"{theirs_here}{name}", "something else", f"{value:g} everywhere")
            ungated = ungated and are(tensors[f"{ours_here}up_weight"], 0) and are(tensors[f"{ours_here}up_bias"], 1)
        if ungated:
            keys["feed_forward"] = was(config, "feed_forward")
            for name in [name for name in tensors if ".gate_" in name]:
                tensors[name.replace(".gate_", ".up_")] = tensors.pop(name)
        return keys, tensors


def _additions(hidden: int, kv_heads: int, head_dim: int, *, biased: bool) -> dict[str, tuple[tuple[int, ...], float]]:
    """Shape of each tensor of a block that only Doge has, and the number by which it does nothing."""
    return {
        "self_attn.A": ((kv_heads,), 0.0),
        "self_attn.dt_proj.weight": ((kv_heads, kv_heads * head_dim), 0.0),
        **({"self_attn.dt_proj.bias": ((kv_heads,), 0.0)} if biased else {}),
        "input_residual": ((hidden,), 1.0),
        "post_attention_residual": ((hidden,), 1.0),
    }
