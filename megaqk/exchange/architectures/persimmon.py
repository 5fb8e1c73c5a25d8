"""Persimmon: LayerNorm without a gate, with normalised queries and keys; biases everywhere."""

from typing import Any

from megaqk.config.model import ModelConfig
from megaqk.exchange.architectures.architecture import ROTATING, UNGATED, Tensors
from megaqk.exchange.architectures.llama import YES
from megaqk.exchange.architectures.llama_family import NORMS, LlamaFamily
from megaqk.exchange.architectures.stand_ins import copied_heads, head_rows
from megaqk.exchange.lazy import LazyTensor, constant, gathered, joined

_KINDS = ("query", "key", "value")


class Persimmon(LlamaFamily):
    """Query, key and value of each head lie side by side, and every query head has a key head of its own."""

    model_type, class_name = "persimmon", "PersimmonForCausalLM"
    exports = {"norm": frozenset({"layernorm"}), "feed_forward": UNGATED, "positions": ROTATING, "qk_norm": YES}
    derived_heads = True
    norm, eps = "layernorm", "layer_norm_eps"
    final_norm = "final_layernorm"
    layer = {
        **NORMS,
        "self_attn.dense": "attention.output.",
        "mlp.dense_h_to_4h": "ffn.input.up_",
        "mlp.dense_4h_to_h": "ffn.output.",
    }
    qk_norms = {"self_attn.q_layernorm": "attention.query_norm.", "self_attn.k_layernorm": "attention.key_norm."}

    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """See `Architecture`."""
        return {**super().config(model, tokens=tokens, positions=positions), "qk_layernorm": True}

    def has_bias(self, mine: str, model: ModelConfig) -> bool:
        """See `LlamaFamily`."""
        return mine not in ("embedding.", "head.")

    def to_transformers(self, model: ModelConfig, ours: Tensors) -> dict[str, LazyTensor]:
        """See `Architecture`."""
        named = super().to_transformers(model, ours)
        heads, kv_heads, width = model.num_heads, model.kv_heads, model.head_size
        order = []
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            order += [head, heads + kv_head, heads + kv_heads + kv_head]
        for index in range(model.num_layers):
            qkv = f"layers.{index}.attention.qkv."
            for kind in ("weight", "bias"):
                if f"{qkv}query_{kind}" in ours:
                    fused = gathered(joined([ours[f"{qkv}{one}_{kind}"] for one in _KINDS]), head_rows(order, width))
                else:
                    fused = constant((3 * heads * width,), 0.0)
                named[f"model.layers.{index}.self_attn.query_key_value.{kind}"] = fused
        return named

    def keys(self, config: Any) -> dict[str, Any]:
        """See `LlamaFamily`."""
        return {**super().keys(config), "qk_norm": config.qk_layernorm}

    def from_transformers(self, config: Any, theirs: Tensors) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
        """See `Architecture`."""
        keys, tensors = super().from_transformers(config, theirs)
        heads, width = keys["num_heads"], keys["head_dim"]
        fused = {
            (index, kind): theirs[f"model.layers.{index}.self_attn.query_key_value.{kind}"]
            for index in range(keys["num_layers"])
            for kind in ("weight", "bias")
        }

        def of_heads(x: LazyTensor, place: int, step: int) -> LazyTensor:
            return gathered(x, head_rows(range(place, 3 * heads, 3 * step), width))

        both = [of_heads(x, place, 1) for x in fused.values() for place in (1, 2)]
        keys["num_kv_heads"] = copied_heads(config, heads, both)
        for (index, kind), x in fused.items():
            if kind == "weight" or keys["bias"]:
                for place, one in enumerate(_KINDS):
                    step = heads // keys["num_kv_heads"] if place else 1
                    tensors[f"layers.{index}.attention.qkv.{one}_{kind}"] = of_heads(x, place, step)
        return keys, tensors
