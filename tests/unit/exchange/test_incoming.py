"""Models that transformers has made come in with the same logits; what a model of ours does not compute is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megaqk.checkpoint.boxes import Box
from megaqk.errors import UserError
from megaqk.exchange.incoming import Incoming, open_folder
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from tests.unit.exchange.tiny import LENGTH, TOKENS, load_into, our_logits, relative_error, some_ids

COMMON = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GPT2 = {"vocab_size": TOKENS, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
GROUPED = {**COMMON, "num_key_value_heads": 2}
FULL_ROTATION = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied, relu2": ("GPT2", {**GPT2, "tie_word_embeddings": False, "activation_function": "relu2"}),
    "llama": ("Llama", GROUPED),
    "llama tied, biased": (
        "Llama",
        {**COMMON, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 10},
    ),
    "llama with some biases": ("Llama", {**COMMON, "attention_bias": True, "rms_norm_eps": 1e-3}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": None}),
    "qwen2": ("Qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 16, "rope_parameters": FULL_ROTATION}),
    "qwen3 biased": ("Qwen3", {**GROUPED, "head_dim": 8, "attention_bias": True}),
    "smollm3": ("SmolLM3", {**GROUPED, "no_rope_layers": [1, 1]}),
    "seed_oss": ("SeedOss", {**GROUPED, "head_dim": 8, "attention_out_bias": True}),
    "arcee": ("Arcee", GROUPED),
    "apertus": ("Apertus", {**GROUPED, "hidden_act": "relu2", "rope_parameters": FULL_ROTATION}),
    "starcoder2": ("Starcoder2", GROUPED),
    "persimmon": ("Persimmon", {**COMMON, "rope_parameters": FULL_ROTATION}),
    "persimmon without norms": ("Persimmon", {**COMMON, "rope_parameters": FULL_ROTATION, "qk_layernorm": False}),
    "stablelm": ("StableLm", {**GROUPED, "rope_parameters": FULL_ROTATION, "use_qkv_bias": True}),
    "stablelm normalised": (
        "StableLm",
        {**GROUPED, "rope_parameters": FULL_ROTATION, "use_qkv_bias": True, "qk_layernorm": True},
    ),
    "phi3": ("Phi3", GROUPED),
    "helium": ("Helium", {**GROUPED, "head_dim": 8, "attention_bias": True}),
    "olmo": ("Olmo", GROUPED),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 10}),
    "granite": (
        "Granite",
        {
            **GROUPED,
            **{"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7},
            **{"attention_multiplier": 0.25, "tie_word_embeddings": True, "mlp_bias": True},
        },
    ),
}


def make(folder: Path, name: str, **changes: Any) -> Any:
    """Make and save a model whose biases and norms are not what they begin as."""
    kind, keys = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**keys, **changes})
    torch.manual_seed(5)
    head = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, head)(config).eval().requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "layernorm.norms" not in parameter_name:
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def decoder_of(incoming: Incoming) -> Decoder:
    rows = incoming.tokens
    context = ModelContext(model=incoming.model, rows=rows, tokens=rows, max_positions=LENGTH)
    return load_into(Decoder(context).eval().requires_grad_(False), incoming.tensors)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_theirs(name: str, tmp_path: Path) -> None:
    theirs, ids = make(tmp_path, name), some_ids()
    assert relative_error(our_logits(decoder_of(open_folder(tmp_path)), ids), theirs(ids).logits) < 1e-5


def test_any_rectangle_of_a_tensor_is_read_alone(tmp_path: Path) -> None:
    """As a rank reads its shard: of plain, transposed, fused, reordered and scaled tensors."""
    for name in ("gpt2", "llama", "phi3", "helium", "granite", "persimmon"):
        make(tmp_path / name, name)
        for tensor in open_folder(tmp_path / name).tensors.values():
            whole = tensor.read()
            assert tuple(whole.shape) == tensor.shape
            boxes = [Box((at, *[0] * (len(tensor.shape) - 1)), (5, *tensor.shape[1:])) for at in (0, 3)]
            if len(tensor.shape) == 2:
                boxes.append(Box((2, 4), (3, 6)))
            for box in boxes:
                assert torch.equal(tensor.read(box), box.within(Box.whole(tensor.shape), whole)), name


def test_what_comes_with_it(tmp_path: Path) -> None:
    make(tmp_path, "mistral", sliding_window=12)
    incoming = open_folder(tmp_path)
    assert (incoming.tokens, incoming.context_limit, incoming.eos_token_id) == (TOKENS, ("sliding_window", 12), 1)
    assert incoming.model.vocab_size is None


def test_a_bf16_model_in_several_files(tmp_path: Path) -> None:
    model = make(tmp_path, "llama").to(torch.bfloat16)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="10kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tensor = open_folder(tmp_path).tensors["layers.1.ffn.output.weight"].read()
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, model.model.layers[1].mlp.down_proj.weight.float())


def test_a_model_after_training_elsewhere_is_what_it_has_become(tmp_path: Path) -> None:
    """What it was exported as is believed where the weights agree: zeros stand for no bias until they are none."""
    make(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "megaqk_model": {"bias": False, "num_kv_heads": 2}}))
    incoming = open_folder(tmp_path)
    assert incoming.model.bias
    assert incoming.model.kv_heads == 4


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        r"rope_parameters.rope_type = linear: must be default",
    ),
    ("persimmon", {"rope_parameters": None}, r"rope_parameters.partial_rotary_factor = 0.5: must be 1"),
    ("smollm3", {"no_rope_layers": [1, 0]}, r"no_rope_layers = \[1, 0\]: must be \[0, 0\] or \[1, 1\]"),
    ("olmo", {"clip_qkv": 2.0}, r"clip_qkv = 2.0: must be null"),
    ("llama", {"hidden_act": "gelu"}, r"hidden_act = gelu: must be one of silu, swish"),
    (
        "gpt2",
        {"activation_function": "gelu"},
        r"activation_function = gelu: must be one of gelu_pytorch_tanh, gelu_new",
    ),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx = True: must be False"),
    ("stablelm", {"use_parallel_residual": True}, r"use_parallel_residual = True: must be False"),
]


@pytest.mark.parametrize(("name", "changes", "line"), REFUSED)
def test_what_a_model_of_ours_does_not_compute_is_refused(
    name: str, changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    make(tmp_path, name, **changes)
    with pytest.raises(UserError, match=line) as caught:
        open_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_norm_of_its_own_for_each_head_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "stablelm normalised")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.self_attn.k_layernorm.norms.1.weight"] += 1
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"layers.1.self_attn.k_layernorm.norms.\*.weight: differ between heads"):
        open_folder(tmp_path)


def test_foreign_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "llama")
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content, described = file.read_bytes(), config.read_text()

    def refused(line: str) -> None:
        with pytest.raises(UserError, match=line) as caught:
            open_folder(tmp_path)
        assert "\n" not in str(caught.value)

    for damage in (content[:100], content[:-4], b"", b"\x80\x04K" * 50):
        file.write_bytes(damage)
        refused(r"model.safetensors: damaged, or not a safetensors file")
    file.unlink()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    refused(r"must hold model.safetensors or .*; pytorch_model.bin may be pickled, which is never opened")
    file.write_bytes(content)
    weights = load_file(file)
    for change, line in (
        ({"model.norm.weight": None}, r"holds no model.norm.weight"),
        ({"model.layers.0.mlp.router.weight": torch.zeros(2)}, r"holds model.layers.0.mlp.router.weight, for which"),
        ({"model.norm.weight": torch.zeros(3)}, r"final_norm.norm.weight has shape \(3,\), must have \(32,\)"),
    ):
        save_file({name: x for name, x in {**weights, **change}.items() if x is not None}, file, {"format": "pt"})
        refused(line)
    for text, line in (
        ("{", r"config.json: damaged"),
        (described.replace('"llama"', '"mamba"'), r"config.json: model_type = mamba: must be one of apertus, arcee"),
        (described.replace('"hidden_size": 32', '"hidden_size": "wide"'), r"config.json: refused by transformers"),
        (described.replace('"num_key_value_heads": 2', '"num_key_value_heads": 3'), r"config.json: num_kv_heads = 3"),
    ):
        config.write_text(text)
        refused(line)
    config.unlink()
    refused(r"must be a folder with a config.json")
