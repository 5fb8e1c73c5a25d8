"""StableLM: LayerNorm and a gate, and a norm of its own for each head."""

from typing import Any

from megaqk.config.model import GATED, ModelConfig
from megaqk.errors import UserError
from megaqk.exchange.architectures.architecture import ROTATING, Tensors, check_value, zero_bias
from megaqk.exchange.architectures.llama import NO
from megaqk.exchange.architectures.llama_family import LlamaFamily
from megaqk.exchange.lazy import LazyTensor


class StableLm(LlamaFamily):
    """Our norm of all query or key heads is a copy of it for each of them there."""

    model_type, class_name = "stablelm", "StableLmForCausalLM"
    exports = {"norm": frozenset({"layernorm"}), "bias": NO, "feed_forward": GATED, "positions": ROTATING}
    derived_heads = True
    norm, eps = "layernorm", "layer_norm_eps"

    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """See `Architecture`."""
        return {
            **super().config(model, tokens=tokens, positions=positions),
            "qk_layernorm": model.qk_norm,
            "use_qkv_bias": False,
            "use_parallel_residual": False,
        }

    def to_transformers(self, model: ModelConfig, ours: Tensors) -> dict[str, LazyTensor]:
        """See `Architecture`."""
        named = super().to_transformers(model, ours)
        for index in range(model.num_layers) if model.qk_norm else ():
            for letter, kind, heads in (("q", "query", model.num_heads), ("k", "key", model.kv_heads)):
                for head in range(heads):
                    name = f"model.layers.{index}.self_attn.{letter}_layernorm.norms.{head}.weight"
                    named[name] = ours[f"layers.{index}.attention.{kind}_norm.weight"]
        return named

    def keys(self, config: Any) -> dict[str, Any]:
        """See `LlamaFamily`."""
        check_value(config, "use_parallel_residual", False)
        return {**super().keys(config), "qk_norm": config.qk_layernorm}

    def from_transformers(self, config: Any, theirs: Tensors) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
        """See `Architecture`."""
        keys, tensors = super().from_transformers(config, theirs)
        for index in range(keys["num_layers"]) if keys["qk_norm"] else ():
            for letter, kind, heads in (("q", "query", keys["num_heads"]), ("k", "key", keys["num_kv_heads"])):
                prefix = f"model.layers.{index}.self_attn.{letter}_layernorm.norms."
                first, *others = (theirs[f"{prefix}{head}.weight"] for head in range(heads))
                if any(not other.read().equal(first.read()) for other in others):
                    raise UserError(f"{prefix}*.weight: differ between heads, must be the same for all of them")
                tensors[f"layers.{index}.attention.{kind}_norm.weight"] = first
                if keys["bias"]:
                    tensors[f"layers.{index}.attention.{kind}_norm.bias"] = zero_bias(first)
        return keys, tensors
