"""Llama and its closest relatives."""

from typing import Any

from megaqk.config.model import GATED, ModelConfig
from megaqk.exchange.architectures.architecture import ROTATING, UNGATED, check_value
from megaqk.exchange.architectures.llama_family import ATTENTION, NORMS, QK_NORMS, UNGATED_FFN, LlamaFamily

RMS, NO, YES = frozenset({"rmsnorm"}), frozenset({False}), frozenset({True})


class Llama(LlamaFamily):
    """RMSNorm, gated; biases everywhere or nowhere."""

    model_type, class_name = "llama", "LlamaForCausalLM"
    exports = {"norm": RMS, "feed_forward": GATED, "positions": ROTATING, "qk_norm": NO}
    divided_heads = True
    bias_keys = ("attention_bias", "mlp_bias")


class Mistral(LlamaFamily):
    """Llama without biases, and with any hidden_size."""

    model_type, class_name = "mistral", "MistralForCausalLM"
    exports = {**Llama.exports, "bias": NO}

    def config(self, *arguments: Any, **keys: Any) -> dict[str, Any]:
        """See `Architecture`."""
        return {**super().config(*arguments, **keys), "sliding_window": None}


class SmolLm3(LlamaFamily):
    """Llama with any hidden_size, each of whose layers rotates or does not."""

    model_type, class_name = "smollm3", "SmolLM3ForCausalLM"
    exports = Llama.exports
    bias_keys = ("attention_bias", "mlp_bias")

    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """See `Architecture`."""
        rotates = int(model.positions == "rotary")
        rope = {"rope_type": "default", "rope_theta": model.rotary_base}
        return {
            **super().config(model, tokens=tokens, positions=positions),
            "rope_parameters": rope,
            "no_rope_layers": [rotates] * model.num_layers,
        }

    def keys(self, config: Any) -> dict[str, Any]:
        """See `LlamaFamily`."""
        check_value(config, "no_rope_layers", *([value] * config.num_hidden_layers for value in (0, 1)))
        rotates = config.no_rope_layers[0]
        return {**super().keys(config), **({} if rotates else {"positions": "none"})}


class Qwen3(LlamaFamily):
    """Llama with normalised queries and keys, without biases."""

    model_type, class_name = "qwen3", "Qwen3ForCausalLM"
    exports = {**Llama.exports, "bias": NO, "qk_norm": YES}
    qk_norms = QK_NORMS
    bias_keys = ("attention_bias",)


class Arcee(LlamaFamily):
    """Llama without a gate."""

    model_type, class_name = "arcee", "ArceeForCausalLM"
    exports = {**Llama.exports, "feed_forward": UNGATED}
    divided_heads = True
    layer = {**NORMS, **ATTENTION, **UNGATED_FFN}
    bias_keys = ("attention_bias", "mlp_bias")


class Apertus(LlamaFamily):
    """Without a gate, with normalised queries and keys, without biases."""

    model_type, class_name = "apertus", "ApertusForCausalLM"
    exports = {**Arcee.exports, "bias": NO, "qk_norm": YES}
    layer = {
        "attention_layernorm": "attention_norm.",
        "feedforward_layernorm": "ffn_norm.",
        **ATTENTION,
        **UNGATED_FFN,
    }
    qk_norms = QK_NORMS
    bias_keys = ("attention_bias",)


class Qwen2(LlamaFamily):
    """Llama with biases on query, key and value; in only."""

    model_type, class_name = "qwen2", "Qwen2ForCausalLM"


class SeedOss(LlamaFamily):
    """Llama with biases on some of the attention; in only."""

    model_type, class_name = "seed_oss", "SeedOssForCausalLM"


class Starcoder2(LlamaFamily):
    """LayerNorm, without a gate."""

    model_type, class_name = "starcoder2", "Starcoder2ForCausalLM"
    exports = {"norm": frozenset({"layernorm"}), "feed_forward": UNGATED, "positions": ROTATING, "qk_norm": NO}
    norm, eps = "layernorm", "norm_epsilon"
    layer = {**NORMS, **ATTENTION, "mlp.c_fc": "ffn.input.up_", "mlp.c_proj": "ffn.output."}
    bias_keys = ("use_bias",)

    def config(self, *arguments: Any, **keys: Any) -> dict[str, Any]:
        """See `Architecture`."""
        return {**super().config(*arguments, **keys), "sliding_window": None}
