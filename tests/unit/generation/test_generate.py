"""A Llama of transformers with random weights, and a tokenizer with bytes for letters."""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from megaqk import cli
from megaqk.errors import UserError
from megaqk.generation.text_generator import Choice, TextGenerator

CONTEXT, END = 48, "<|endoftext|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    letters = [END, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    # As tokenizers of elsewhere do: what is not wanted of it must be left out.
    inner.post_processor = tokenizers.processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END).save_pretrained(path)
    config = transformers.LlamaConfig(
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    # What a folder says of sampling must not change what was asked for.
    model.generation_config = transformers.GenerationConfig(eos_token_id=0, do_sample=True, temperature=9.0, top_k=3)
    model.save_pretrained(path)
    return path


def writer(folder: Path, *, seed: int = 1, **choice: float) -> TextGenerator:
    return TextGenerator(folder, "cpu", None, Choice(**choice), seed=seed)  # type: ignore[arg-type]


def test_greedy_is_the_plain_loop(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    mine = writer(folder, greedy=True)
    for prompt in ("The king", "né\n two  spaces ", END):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        assert torch.equal(mine.ids(prompt), ids)
        for _ in range(20):
            best = model(ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], 1)
            if best.item() == 0:
                break
        assert mine.texts(prompt, 20) == [tokenizer.decode(ids[0], skip_special_tokens=True)]


def test_what_is_streamed_is_what_is_decoded(folder: Path) -> None:
    for seed in range(5):
        streamed = io.StringIO()
        writer(folder, seed=seed).stream("The king\nsaid", 30, streamed)
        assert [streamed.getvalue()] == writer(folder, seed=seed).texts("The king\nsaid", 30)


def test_an_empty_prompt_is_the_start_of_a_document(folder: Path) -> None:
    assert writer(folder).ids("").tolist() == [[0]]
    [text] = writer(folder).texts("", 5)
    assert text


def test_sampling(folder: Path) -> None:
    texts = writer(folder).texts("a", 20, 4)
    assert len(set(texts)) == 4
    assert texts == writer(folder).texts("a", 20, 4)
    assert texts != writer(folder, seed=2).texts("a", 20, 4)
    best = writer(folder, greedy=True).texts("a", 20)
    for nearly in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}):
        assert writer(folder, **nearly).texts("a", 20) == best


def test_without_options_tokens_come_as_often_as_the_model_says(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("a", return_tensors="pt", add_special_tokens=False)["input_ids"]
    expected = model(ids).logits[0, -1].softmax(-1).detach()
    found = torch.zeros_like(expected)
    mine = writer(folder)
    drawn = mine._generate(mine.ids("a"), 1, 4000)[:, -1]
    found.index_add_(0, drawn, torch.full((4000,), 1 / 4000))
    assert (found - expected).abs().max() < 4 * 0.5 / 4000**0.5
    assert (found > 0).sum() > 3  # top_k of the folder


def test_the_context_ends(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = writer(folder, greedy=True)
    assert mine._generate(mine.ids("x" * 40), 100).shape[1] <= CONTEXT
    assert capsys.readouterr().err == "megaqk: the model's context of 48 tokens leaves 8 new ones\n"
    with pytest.raises(UserError, match="the prompt has 48 tokens: must be below 48, the model's context"):
        mine.texts("x" * 48, 1)


def run(folder: Path, *options: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "megaqk", "generate", str(folder), "--device", "cpu", *options]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    best = writer(folder, greedy=True).texts("The king", 9)
    done = run(folder, "--greedy", "--max-tokens", "9", given="The king\n")
    assert (done.stdout, done.stderr, done.returncode) == (f"{best[0]}\n", "", 0)


def test_the_command_line_in_this_process(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*options: str) -> str:
        assert cli.main(["generate", str(folder), "--device", "cpu", "--max-tokens", "9", *options]) == 0
        return capsys.readouterr().out

    (tmp_path / "prompt.txt").write_text("The king\n")
    [best] = writer(folder, greedy=True).texts("The king", 9)
    assert said("--prompt", "The king", "--greedy") == f"{best}\n"
    assert said("--prompt", "The king", "--greedy", "--no-stream") == f"{best}\n"
    assert said("--prompt-file", str(tmp_path / "prompt.txt"), "--greedy") == f"{best}\n"
    several = writer(folder, seed=4, temperature=0.7).texts("a", 9, 3)
    assert said("--prompt", "a", "--num", "3", "--seed", "4", "--temperature", "0.7") == "\n---\n".join(several) + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"The king\n{'x' * 99}\nThe king\n"))
    assert said("--interactive", "--greedy") == f"{best}\n{best}\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--temperature", "0"], "--temperature = 0.0: must be above 0; --greedy is its limit"),
        (["--top-p", "1.5"], "--top-p = 1.5: must be in (0, 1]"),
        (["--top-k", "0"], "--top-k = 0: must be at least 1"),
        (["--max-tokens", "0"], "--max-tokens = 0: must be at least 1"),
        (["--greedy", "--top-k", "3"], "--top-k: must not be given with --greedy, which leaves nothing to chance"),
        (["--greedy", "--num", "2"], "--num = 2: must not be given with --greedy, which leaves nothing to chance"),
        (["--stream", "--num", "2"], "--num = 2: must be 1 with --stream"),
        (["--device", "moon"], "--device = moon: must be a device of this machine"),
    ],
)
def test_what_a_user_can_cause(
    folder: Path, options: Sequence[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(folder), "--prompt", "a", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"megaqk: error: {line}")
    assert said.count("\n") == 1


def test_a_prompt_that_is_no_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt").write_bytes(b"\xff\xfe")
    assert cli.main(["generate", str(folder), "--prompt-file", str(tmp_path / "prompt")]) == 2
    assert f"{tmp_path / 'prompt'}: must be text in UTF-8" in capsys.readouterr().err
    assert cli.main(["generate", str(folder), "--prompt-file", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"megaqk: error: {tmp_path / 'none'}: No such file or directory\n"
    assert cli.main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    assert f"{tmp_path}: must be a checkpoint" in capsys.readouterr().err
