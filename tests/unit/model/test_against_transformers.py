"""The presets against transformers' GPT-2 and Llama on the same weights: logits, loss and gradients."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megaqk.config.model import ModelConfig
from megaqk.model.batch import Batch, plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize

VOCAB, LENGTH, LAYERS, HIDDEN, HEADS = 96, 24, 3, 32, 4
TOLERANCE = 1e-5


def build(preset: str, **overrides: object) -> Decoder:
    """A small decoder with weights large enough that every part matters."""
    shape = {"num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": HEADS, "init_std": 0.2}
    context = ModelContext(
        model=ModelConfig(preset=preset, **shape, **overrides), rows=VOCAB, tokens=VOCAB, max_positions=LENGTH
    )
    decoder = Decoder(context)
    parameters = decoder.global_parameters()
    initialize(parameters, context, seed=3)
    with torch.no_grad():  # biases and norms start at 0 and 1: move them, or mistakes in them would not show
        for parameter in parameters.values():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return decoder


def gpt2_weights(ours: dict[str, torch.Tensor], *, tied: bool) -> dict[str, torch.Tensor]:
    """Our tensors under GPT-2's names; GPT-2 stores matrices transposed and query, key and value side by side."""
    theirs = {
        "transformer.wte.weight": ours["embedding.weight"],
        "transformer.wpe.weight": ours["embedding_output.positions.weight"],
        "transformer.ln_f.weight": ours["final_norm.norm.weight"],
        "transformer.ln_f.bias": ours["final_norm.norm.bias"],
        "lm_head.weight": ours["embedding.weight" if tied else "head.weight"],
    }
    for i in range(LAYERS):
        a, b = f"layers.{i}.", f"transformer.h.{i}."
        theirs |= {
            f"{b}ln_1.weight": ours[f"{a}attention_norm.weight"],
            f"{b}ln_1.bias": ours[f"{a}attention_norm.bias"],
            f"{b}ln_2.weight": ours[f"{a}ffn_norm.weight"],
            f"{b}ln_2.bias": ours[f"{a}ffn_norm.bias"],
            f"{b}attn.c_attn.weight": torch.cat([ours[f"{a}attention.qkv.{n}_weight"].t() for n in QKV], dim=1),
            f"{b}attn.c_attn.bias": torch.cat([ours[f"{a}attention.qkv.{n}_bias"] for n in QKV]),
            f"{b}attn.c_proj.weight": ours[f"{a}attention.output.weight"].t(),
            f"{b}attn.c_proj.bias": ours[f"{a}attention.output.bias"],
            f"{b}mlp.c_fc.weight": ours[f"{a}ffn.input.up_weight"].t(),
            f"{b}mlp.c_fc.bias": ours[f"{a}ffn.input.up_bias"],
            f"{b}mlp.c_proj.weight": ours[f"{a}ffn.output.weight"].t(),
            f"{b}mlp.c_proj.bias": ours[f"{a}ffn.output.bias"],
        }
    return theirs


def llama_weights(ours: dict[str, torch.Tensor], *, tied: bool) -> dict[str, torch.Tensor]:
    """Our tensors under Llama's names."""
    theirs = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "model.norm.weight": ours["final_norm.norm.weight"],
        "lm_head.weight": ours["embedding.weight" if tied else "head.weight"],
    }
    for i in range(LAYERS):
        a, b = f"layers.{i}.", f"model.layers.{i}."
        theirs |= {
            f"{b}input_layernorm.weight": ours[f"{a}attention_norm.weight"],
            f"{b}post_attention_layernorm.weight": ours[f"{a}ffn_norm.weight"],
            f"{b}self_attn.q_proj.weight": ours[f"{a}attention.qkv.query_weight"],
            f"{b}self_attn.k_proj.weight": ours[f"{a}attention.qkv.key_weight"],
            f"{b}self_attn.v_proj.weight": ours[f"{a}attention.qkv.value_weight"],
            f"{b}self_attn.o_proj.weight": ours[f"{a}attention.output.weight"],
            f"{b}mlp.up_proj.weight": ours[f"{a}ffn.input.up_weight"],
            f"{b}mlp.gate_proj.weight": ours[f"{a}ffn.input.gate_weight"],
            f"{b}mlp.down_proj.weight": ours[f"{a}ffn.output.weight"],
        }
    return theirs


QKV = ("query", "key", "value")


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Equal to TOLERANCE of the largest element."""
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < TOLERANCE, f"{what}: relative error {error:.2e}"


def batch(tokens: torch.Tensor, labels: torch.Tensor) -> Batch:
    """Whose loss is the mean over the labels."""
    return (tokens, plain_positions(tokens)), (labels, torch.tensor(1 / labels.numel()))


def compare(
    ours: Decoder, theirs: torch.nn.Module, weights: Callable[..., dict[str, torch.Tensor]], *, tied: bool
) -> None:
    """Load our weights into theirs and compare one forward and backward pass."""
    parameters = ours.global_parameters()
    named = weights({name: parameter.detach() for name, parameter in parameters.items()}, tied=tied)
    missing, unexpected = theirs.load_state_dict(named, strict=False)
    assert not unexpected
    assert all(name == "lm_head.weight" for name in missing)
    tokens = torch.randint(VOCAB, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    assert_close(ours.logits((inputs, plain_positions(inputs))), theirs(inputs).logits, "logits")
    loss = ours(*batch(inputs, labels))
    loss.backward()
    # transformers shifts labels itself: give it the same text once more and compare the loss on one token fewer.
    their_logits = theirs(inputs).logits
    their_loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), labels.flatten())
    their_loss.backward()
    assert_close(loss, their_loss, "loss")
    shifted = theirs(tokens[:, :-1], labels=tokens[:, :-1]).loss
    assert_close(ours(*batch(inputs[:, :-1], inputs[:, 1:])), shifted, "loss as transformers computes it")
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters(remove_duplicate=False)}
    for name, expected in weights({n: p.grad for n, p in parameters.items()}, tied=tied).items():
        assert_close(expected, grads[name], f"gradient of {name}")


@pytest.mark.parametrize("tied", [True, False])
def test_gpt_preset(tied: bool) -> None:
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=LENGTH, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS,
        tie_word_embeddings=tied, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, layer_norm_epsilon=1e-2,
    )  # fmt: skip
    compare(build("gpt", tied_embedding=tied, norm_eps=1e-2), GPT2LMHeadModel(config), gpt2_weights, tied=tied)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llama_preset(tied: bool, kv_heads: int) -> None:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=88, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=kv_heads, max_position_embeddings=LENGTH, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        rope_theta=10000.0,
    )  # fmt: skip
    ours = build("llama", tied_embedding=tied, num_kv_heads=kv_heads, ffn_hidden_size=128)
    compare(ours, LlamaForCausalLM(config), llama_weights, tied=tied)


def qwen3_weights(ours: dict[str, torch.Tensor], *, tied: bool) -> dict[str, torch.Tensor]:
    """Llama's names, and a norm of each query and key head."""
    norms = {
        f"model.layers.{i}.self_attn.{theirs}_norm.weight": ours[f"layers.{i}.attention.{name}_norm.weight"]
        for i in range(LAYERS)
        for theirs, name in (("q", "query"), ("k", "key"))
    }
    return llama_weights(ours, tied=tied) | norms


def test_normalised_queries_and_keys_and_what_no_default_hides() -> None:
    """Qwen3 is Llama with qk_norm ahead of the rotation; base, eps and head size are not the defaults."""
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=88, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=LENGTH, rms_norm_eps=1e-2,
        tie_word_embeddings=False, rope_theta=500.0,
    )  # fmt: skip
    ours = build(
        "llama", num_kv_heads=2, head_dim=16, ffn_hidden_size=128, qk_norm=True, norm_eps=1e-2, rotary_base=500.0
    )
    with torch.no_grad():  # the same shift of both norms would hide which is which
        for name, parameter in ours.global_parameters().items():
            if "key_norm" in name:
                parameter.mul_(torch.linspace(0.5, 1.5, 16))
    compare(ours, Qwen3ForCausalLM(config), qwen3_weights, tied=False)
