"""How many bytes of text each token stands for, held against what whole documents decode to."""

import io
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from megaqk.corpus.tokenizer_training import train_sentencepiece
from megaqk.data.tokenizer import load_tokenizer

WORDS = "once upon a midnight dreary while I pondered weak and weary over many a quaint curious volume".split()  # noqa: SIM905
TEXTS = [f"{WORDS[i % 16]} {WORDS[i * 7 % 16]} {WORDS[i * i % 15]}ing\nnumber {i}." for i in range(400)]
DOCUMENTS = [*TEXTS[:9], "", " a", "two  spaces ", "日本語 ☃ é \ufffd", "naïve\tcafé", "<0x41>"]


def ours(path: Path) -> None:
    path.write_bytes(train_sentencepiece(TEXTS, vocab_size=400))


def dropping_a_space(path: Path) -> None:
    """As LLaMA's: a space is put before a document and taken away again, and characters that are rare are bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=350, byte_fallback=True, minloglevel=9
    )
    path.write_bytes(model.getvalue())


def byte_level(path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(path))


def byte_fallback(path: Path) -> None:
    """As LLaMA's in the other format."""
    vocab = {"<|endoftext|>": 0, "\u2581": 1, **{chr(97 + i): 2 + i for i in range(26)}}
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(path))


@pytest.mark.parametrize(
    ("make", "name"),
    [(ours, "t.model"), (dropping_a_space, "t.model"), (byte_level, "t.json"), (byte_fallback, "t.json")],
)
def test_the_tokens_of_a_document_add_up_to_its_bytes(make: "object", name: str, tmp_path: Path) -> None:
    assert callable(make)
    make(tmp_path / name)
    tokenizer = load_tokenizer(tmp_path / name)
    counts = tokenizer.token_bytes()
    assert counts.shape == (2, tokenizer.vocab_size)
    assert not counts[:, tokenizer.eod_id].any()
    for text in DOCUMENTS:
        ids = tokenizer.encode(text)
        assert counts[0, ids[:1]].sum() + counts[1, ids[1:]].sum() == len(tokenizer.decode(ids).encode()), text
