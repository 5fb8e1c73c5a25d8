"""`megaqk export`: a folder that transformers opens as it is, from the files of a checkpoint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from megaqk.checkpoint.reader import open_checkpoint
from megaqk.cli import main
from megaqk.config.data import DataConfig
from megaqk.config.model import ModelConfig
from megaqk.corpus.prepare import prepare
from megaqk.data.tokenizer import load_tokenizer
from megaqk.exchange import safetensors_files
from megaqk.exchange.export import export
from megaqk.exchange.in_memory import load_transformers
from megaqk.exchange.incoming import open_folder
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from tests.unit.exchange.made import TEXTS, checkpoint_of, write_checkpoint
from tests.unit.exchange.tiny import TOKENS, decoder_of, our_logits, relative_error, some_ids, tensors_of, tiny

LLAMA = {"norm": "rmsnorm", "bias": False, "feed_forward": "swiglu", "positions": "rotary", "tied_embedding": False}
LAYERNORM = {"norm": "layernorm", "feed_forward": "gelu", "positions": "rotary"}
FOLDERS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {},
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": {**LLAMA, "shape": "not divided"},
    "SmolLM3ForCausalLM": {**LLAMA, "bias": True, "shape": "not divided", "positions": "none"},
    "Qwen3ForCausalLM": {**LLAMA, "qk_norm": True, "tied_embedding": True},
    "ArceeForCausalLM": {**LLAMA, "feed_forward": "relu_squared"},
    "ApertusForCausalLM": {**LLAMA, "feed_forward": "gelu", "qk_norm": True, "shape": "grouped, wide"},
    "DogeForCausalLM": {**LLAMA, "bias": True, "qk_norm": True},
    "Starcoder2ForCausalLM": LAYERNORM,
    "PersimmonForCausalLM": {**LAYERNORM, "qk_norm": True, "shape": "grouped"},
    "StableLmForCausalLM": {**LAYERNORM, "bias": False, "feed_forward": "geglu", "qk_norm": True},
}


def without_tokenizer(tmp_path: Path, decoder: Decoder) -> Path:
    export(open_checkpoint(checkpoint_of(tmp_path / "run", decoder, None)), tmp_path / "hf", tokenizer="none")
    return tmp_path / "hf"


@pytest.mark.parametrize("name", FOLDERS)
def test_transformers_opens_the_folder(name: str, tmp_path: Path) -> None:
    decoder = decoder_of(tiny(**FOLDERS[name]))
    folder = without_tokenizer(tmp_path, decoder)
    theirs, ids = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval(), some_ids()
    assert type(theirs).__name__ == name
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        assert relative_error(theirs(ids).logits, our_logits(decoder, ids)) < 1e-5
    back, ours = open_folder(folder), tensors_of(decoder)
    assert back.tokens == TOKENS
    assert back.tensors.keys() == ours.keys()
    assert all(torch.equal(tensor.read(), ours[key].read()) for key, tensor in back.tensors.items())
    assert back.model.model_dump(
        include={"bias", "norm", "positions", "feed_forward"}
    ) == decoder.context.model.model_dump(include={"bias", "norm", "positions", "feed_forward"})


@pytest.mark.parametrize("tied", [False, True])
def test_own_code_beside_the_model(tied: bool, bpe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = decoder_of(
        tiny("grouped", **{**LLAMA, "norm": "layernorm", "bias": True, "positions": "learned", "tied_embedding": tied})
    )
    run, folder = checkpoint_of(tmp_path / "run", decoder, bpe), tmp_path / "hf"
    command = ["export", str(run), "--output", str(folder)]
    assert main(command) == 2
    assert "model.feed_forward = swiglu: must be another" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
    assert not folder.exists()
    assert main([*command, "--remote-code"]) == 0
    assert "MegaqkForCausalLM in" in capsys.readouterr().out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(theirs).__module__.startswith("transformers_modules")
    ids, expected = some_ids(), our_logits(decoder, some_ids())
    with torch.no_grad():
        assert relative_error(theirs(ids).logits, expected) < 1e-5
        shifted = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        assert theirs(ids, labels=ids).loss == pytest.approx(shifted.item(), rel=1e-5)
    cached, uncached = (
        theirs.generate(ids[:, :8], max_new_tokens=8, do_sample=False, use_cache=it) for it in (True, False)
    )
    assert torch.equal(cached, uncached)
    padded = torch.cat([torch.full((2, 3), 1), ids[:, :8]], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)], dim=1)
    left = theirs.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(left[:, 3:], cached)
    # Of ours no code in a folder is run.
    (folder / "modeling_megaqk.py").write_text("raise SystemExit")
    for where in (folder, run):
        model, _ = load_transformers(where)
        assert type(model).__module__ == "megaqk.exchange.modeling_megaqk"
        with torch.no_grad():
            assert relative_error(model(ids).logits, expected) < 1e-5
    again = open_folder(folder)
    assert all(torch.equal(again.tensors[name].read(), tensor.read()) for name, tensor in tensors_of(decoder).items())


@pytest.fixture
def run(tmp_path: Path, bpe: Path) -> tuple[Path, Decoder]:
    decoder = decoder_of(tiny(**LLAMA))
    return checkpoint_of(tmp_path / "run", decoder, bpe).parents[1], decoder


def test_the_command(run: tuple[Path, Decoder], bpe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, decoder = run
    assert main(["export", str(path), "--output", str(tmp_path / "hf")]) == 0
    assert capsys.readouterr().out == f"{path}/checkpoints/step-3 is LlamaForCausalLM in {tmp_path}/hf\n"
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), load_tokenizer(bpe)
    assert all(tokenizer(text)["input_ids"] == ours.encode(text).tolist() for text in TEXTS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == ours.eod_id
    card = (tmp_path / "hf" / "README.md").read_text()
    for fact in (
        "LlamaForCausalLM",
        "| steps | 3 |",
        "| tokens | 480 |",
        "1.2500 nats a token",
        "builtin",
        "rotary_base",
    ):
        assert fact in card
    parameters = sum(tensor.read().numel() for tensor in tensors_of(decoder).values())
    assert f"| parameters | {parameters:,} |" in card
    assert not list(tmp_path.glob(".*"))


def test_the_same_model_in_memory(run: tuple[Path, Decoder], tmp_path: Path) -> None:
    path, decoder = run
    export(open_checkpoint(path), tmp_path / "hf")
    before = sorted(path.rglob("*"))
    ids = some_ids()
    for where in (path, path / "checkpoints" / "step-3", tmp_path / "hf"):
        model, tokenizer = load_transformers(where)
        with torch.no_grad():
            assert relative_error(model(ids).logits, our_logits(decoder, ids)) < 1e-5
        assert not model.training
        assert tokenizer("Once <|endoftext|>")["input_ids"] == tokenizer.encode("Once <|endoftext|>")
        assert tokenizer.eos_token == "<|endoftext|>"
        assert model.generate(ids[:, :4], max_new_tokens=4, pad_token_id=1, do_sample=False).shape[1] <= 8
    assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_rounded(run: tuple[Path, Decoder], tmp_path: Path, dtype: str, kind: torch.dtype) -> None:
    path, decoder = run
    export(open_checkpoint(path), tmp_path / "hf", dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == kind
    expected = decoder.global_parameters()["layers.1.ffn.input.gate_weight"].to(kind)
    assert torch.equal(theirs.model.layers[1].mlp.gate_proj.weight, expected)


def test_several_files(run: tuple[Path, Decoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decoder = run
    monkeypatch.setattr(safetensors_files.write_tensors, "__kwdefaults__", {"at_most": 20_000})
    export(open_checkpoint(path), tmp_path / "hf")
    files = sorted(tmp_path.glob("hf/*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 25_000 for file in files)
    theirs, ids = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), some_ids()
    with torch.no_grad():
        assert relative_error(theirs(ids).logits, our_logits(decoder, ids)) < 1e-5


def test_the_tokenizer_is_found_by_its_checksum(bpe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a corpus without data.tokenizer, whose manifest says what ends documents; or where it has been moved."""
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "once upon a time"}\n')
    data = {"text": str(text), "tokenizer": str(bpe), "cache_dir": str(tmp_path / "cache"), "eod_token": "<|mark|>"}
    corpus = prepare(DataConfig(**data)).corpora[0]
    named = decoder_of(tiny(**LLAMA)).global_parameters()
    path = write_checkpoint(tmp_path / "run", named, tiny(**LLAMA).model_dump(), bpe, data={"corpus": str(corpus)})
    command = ["export", str(path), "--output"]
    assert main([*command, str(tmp_path / "hf")]) == 0
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").eos_token == "<|mark|>"
    moved = (corpus.parent / "tokenizer.model").rename(tmp_path / "moved.model")
    assert main([*command, str(tmp_path / "hf2")]) == 2
    assert "step-3: its tokenizer is not found: must be the tokenizer of the run" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "hf2"), "--tokenizer", str(moved)]) == 0


def test_the_card_of_a_step_without_validation_has_the_last_before_it(tmp_path: Path) -> None:
    decoder = decoder_of(tiny(**LLAMA))
    path = checkpoint_of(tmp_path / "run", decoder, None, valid_loss=None)
    for number, (records, said) in enumerate(
        (
            (None, "| validation loss | not measured |"),
            ([(1, 3.0), (2, 2.5), (4, 2.0)], "| validation loss at step 2 | 2.5000 nats a token"),
        )
    ):
        if records is not None:
            lines = [json.dumps({"step": step, "valid_loss": loss}) for step, loss in records]
            (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "loss": 1.0}\n')
        export(open_checkpoint(path), tmp_path / f"hf{number}", tokenizer="none")
        assert said in (tmp_path / f"hf{number}" / "README.md").read_text()


def test_refusals(run: tuple[Path, Decoder], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = run
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "other.model").write_bytes(b"another")
    damaged = path / "checkpoints" / "step-3" / "rank-00001.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-4] + b"abcd")
    for arguments, line in (
        ([path, "--output", tmp_path / "full"], f"--output = {tmp_path}/full: must be a new folder, or an empty one"),
        (
            [tmp_path, "--output", tmp_path / "hf"],
            f"{tmp_path}: must be a checkpoint (RUN_DIR/checkpoints/step-N) or a",
        ),
        (
            [path, "--output", tmp_path / "hf", "--tokenizer", tmp_path / "other.model"],
            "other.model: must be the tokenizer",
        ),
        ([path, "--output", tmp_path / "hf"], f"{damaged}: damaged, what begins at byte"),
    ):
        assert main(["export", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == 1
    assert not (tmp_path / "hf").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_missing_package_is_named(run: tuple[Path, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Exception, match=r"transformers: is not installed; pip install 'megaqk\[hf\]'"):
        load_transformers(run[0])


PEAK = """
import sys
from pathlib import Path
from megaqk.checkpoint.reader import open_checkpoint
from megaqk.exchange.export import export
def peak():  # what getrusage calls so begins with the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
export(open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), tokenizer="none", dtype=sys.argv[3])
assert "transformers" not in sys.modules and "deepspeed" not in sys.modules
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("preset", "hidden", "layers", "rows", "dtype"),
    [
        ("llama", 256, 24, 20_000, "bf16"),
        *(
            pytest.param(preset, 1536, 14, 50_304, dtype, marks=pytest.mark.full)
            for preset in ("gpt", "llama")
            for dtype in ("fp32", "bf16")
        ),
    ],
)
def test_memory_is_bounded_by_a_layer(
    preset: str, hidden: int, layers: int, rows: int, dtype: str, tmp_path: Path
) -> None:
    """Twice the largest layer and a constant, whatever the number of layers; the full ones have 500 million weights."""
    keys = {"preset": preset, "num_layers": layers, "hidden_size": hidden, "num_heads": 8}
    context = ModelContext(model=ModelConfig(**keys), rows=rows, tokens=rows, max_positions=64)
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in Decoder(context).global_parameters().items()}
    tensors = {name: torch.ones(1).expand(shape) for name, shape in shapes.items()}
    path = write_checkpoint(tmp_path / "run", tensors, keys, None, tokens=rows, length=64)
    sizes = [
        4 * sum(x.numel() for name, x in tensors.items() if name.startswith(layer))
        for layer in ("embedding.weight", "layers.0.", "")
    ]
    command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "hf"), dtype]
    grown = 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=250).stdout)
    allowed = 2 * max(sizes[:2]) + 40e6
    assert grown < allowed < sizes[2]
