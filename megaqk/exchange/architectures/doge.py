"""Doge, which has the only biased network with RMSNorm and normalised queries and keys; its own additions are off.

It makes a mask of every pair of tokens, so it is the last resort.
"""

from typing import Any

from megaqk.config.model import ModelConfig
from megaqk.errors import UserError
from megaqk.exchange.architectures.architecture import ROTATING, UNGATED, Tensors, check_value, refused
from megaqk.exchange.architectures.llama import RMS, YES
from megaqk.exchange.architectures.llama_family import QK_NORMS, LlamaFamily
from megaqk.exchange.architectures.stand_ins import was
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
        sizes = keys["hidden_size"], keys["num_kv_heads"], keys["head_dim"]
        for index in range(keys["num_layers"]):
            layer = f"model.layers.{index}."
            constants = {name: value for name, (_, value) in _additions(*sizes, biased=config.attention_bias).items()}
            if not self.is_gated(config):
                constants |= {"mlp.up_proj.weight": 0.0, "mlp.up_proj.bias": 1.0}
                for kind in ("weight", "bias"):
                    gate = tensors.pop(f"layers.{index}.ffn.input.gate_{kind}")
                    tensors[f"layers.{index}.ffn.input.up_{kind}"] = gate
            for name, value in constants.items():
                if not (theirs[f"{layer}{name}"].read() == value).all():
                    raise UserError(f"{layer}{name}: must be {value:g} everywhere, where it does nothing")
        return keys, tensors

    def is_gated(self, config: Any) -> bool:
        """See `LlamaFamily`."""
        return was(config, "feed_forward") not in UNGATED


def _additions(hidden: int, kv_heads: int, head_dim: int, *, biased: bool) -> dict[str, tuple[tuple[int, ...], float]]:
    """Shape of each tensor of a block that only Doge has, and the number by which it does nothing."""
    return {
        "self_attn.A": ((kv_heads,), 0.0),
        "self_attn.dt_proj.weight": ((kv_heads, kv_heads * head_dim), 0.0),
        **({"self_attn.dt_proj.bias": ((kv_heads,), 0.0)} if biased else {}),
        "input_residual": ((hidden,), 1.0),
        "post_attention_residual": ((hidden,), 1.0),
    }
