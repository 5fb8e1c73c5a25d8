"""Architectures that name their tensors as Llama does: each differs in a few of these attributes."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from megaqk.config.model import ModelConfig, Norm
from megaqk.exchange.architectures.architecture import (
    Architecture,
    Tensors,
    common_keys,
    our_feed_forward,
    our_positions,
    rope_parameters,
    their_activation,
    zero_bias,
)
from megaqk.exchange.architectures.stand_ins import bias_is_absent
from megaqk.exchange.lazy import LazyTensor

NORMS = {"input_layernorm": "attention_norm.", "post_attention_layernorm": "ffn_norm."}
ATTENTION = {
    "self_attn.q_proj": "attention.qkv.query_",
    "self_attn.k_proj": "attention.qkv.key_",
    "self_attn.v_proj": "attention.qkv.value_",
    "self_attn.o_proj": "attention.output.",
}
GATED_FFN = {"mlp.gate_proj": "ffn.input.gate_", "mlp.up_proj": "ffn.input.up_", "mlp.down_proj": "ffn.output."}
UNGATED_FFN = {"mlp.up_proj": "ffn.input.up_", "mlp.down_proj": "ffn.output."}
QK_NORMS = {"self_attn.q_norm": "attention.query_norm.", "self_attn.k_norm": "attention.key_norm."}


class LlamaFamily(Architecture):
    """Both ways by a table of names.

    Attributes:
        norm: The kind of its norms.
        eps: Its key for what is added in them.
        layer: Our prefix of each module of a block.
        final_norm: Its name for the last norm.
        qk_norms: Our prefix of its norms of query and key heads, if it has them.
        bias_keys: Its keys that give linear layers biases.
    """

    norm: ClassVar[Norm] = "rmsnorm"
    eps: ClassVar[str] = "rms_norm_eps"
    layer: ClassVar[Mapping[str, str]] = {**NORMS, **ATTENTION, **GATED_FFN}
    final_norm: ClassVar[str] = "norm"
    qk_norms: ClassVar[Mapping[str, str]] = {}
    bias_keys: ClassVar[tuple[str, ...]] = ()

    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """See `Architecture`."""
        return {
            "vocab_size": tokens,
            "hidden_size": model.hidden_size,
            "intermediate_size": model.ffn_width,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_size,
            "hidden_act": their_activation(model),
            "max_position_embeddings": positions,
            self.eps: model.norm_eps,
            "rope_parameters": rope_parameters(model),
            "tie_word_embeddings": model.tied_embedding,
            "attention_dropout": model.attention_dropout,
            "initializer_range": model.init_std,
            **dict.fromkeys(self.bias_keys, model.bias),
        }

    def to_transformers(self, model: ModelConfig, ours: Tensors) -> dict[str, LazyTensor]:
        """See `Architecture`."""
        named = {}
        for theirs, mine in self.modules(model.num_layers, qk_norm=model.qk_norm, tied=model.tied_embedding):
            if f"{mine}weight" in ours:
                weight = named[f"{theirs}.weight"] = ours[f"{mine}weight"]
                if self.has_bias(mine, model):
                    named[f"{theirs}.bias"] = ours.get(f"{mine}bias") or zero_bias(weight)
        return named

    def from_transformers(self, config: Any, theirs: Tensors) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
        """See `Architecture`."""
        theirs = self.plain(config, theirs)
        keys = self.keys(config)
        modules = list(self.modules(keys["num_layers"], qk_norm=keys["qk_norm"], tied=keys["tied_embedding"]))
        biases = {mine: theirs[f"{their}.bias"] for their, mine in modules if f"{their}.bias" in theirs}
        keys["bias"] = bool(biases) and not bias_is_absent(config, biases.values())
        tensors = {}
        for their, mine in modules:
            weight = tensors[f"{mine}weight"] = theirs[f"{their}.weight"]
            plain = mine in ("embedding.", "head.") or ("norm." in mine and self.norm == "rmsnorm")
            if keys["bias"] and not plain:
                tensors[f"{mine}bias"] = biases.get(mine) or zero_bias(weight)
        return keys, tensors

    def keys(self, config: Any) -> dict[str, Any]:
        """Keys of the model section but for the bias.

        Raises:
            UserError: It computes something that a model of ours does not.
        """
        return {
            **common_keys(config, norm=self.norm, eps=self.eps),
            "ffn_hidden_size": config.intermediate_size,
            "feed_forward": our_feed_forward(config, gated=self.is_gated(config)),
            "qk_norm": bool(self.qk_norms),
            **our_positions(config),
        }

    def is_gated(self, config: Any) -> bool:
        """Whether its feed-forward network multiplies two projections."""
        return "ffn.input.gate_" in self.layer.values()

    def plain(self, config: Any, theirs: Tensors) -> Tensors:
        """Its tensors as Llama would have them, for one that computes the same by others."""
        return theirs

    def modules(self, num_layers: int, *, qk_norm: bool, tied: bool) -> Iterator[tuple[str, str]]:
        """Names of modules there and our prefixes, layer by layer."""
        yield "model.embed_tokens", "embedding."
        for index in range(num_layers):
            for theirs, mine in {**self.layer, **(self.qk_norms if qk_norm else {})}.items():
                yield f"model.layers.{index}.{theirs}", f"layers.{index}.{mine}"
        yield f"model.{self.final_norm}", "final_norm.norm."
        if not tied:
            yield "lm_head", "head."

    def has_bias(self, mine: str, model: ModelConfig) -> bool:
        """Whether it has a bias where ours have this prefix."""
        if mine in ("embedding.", "head."):
            return False
        return self.norm == "layernorm" if "norm." in mine else model.bias
