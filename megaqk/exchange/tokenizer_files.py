"""A run's tokenizer as transformers loads it: the same ids of every text."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as FastTokenizer

from megaqk.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from megaqk.errors import UserError

_SPACE = "\u2581"
_BELOW = 1e4
"""So far below every piece lie those that text must not be cut into."""


def fast_tokenizer(tokenizer: Tokenizer) -> FastTokenizer:
    """The same tokenizer for the `tokenizers` library.

    Raises:
        UserError: It does something to texts that is not carried over.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _from_sentencepiece(tokenizer.path)
    assert isinstance(tokenizer, HuggingFaceTokenizer), "there are two kinds"
    fast: FastTokenizer = FastTokenizer.from_file(str(tokenizer.path))
    # Training encodes without what these add.
    fast.post_processor = None
    fast.no_truncation()
    fast.no_padding()
    return fast


def settings(tokenizer: Tokenizer, fast: FastTokenizer, eod_id: int, positions: int) -> dict[str, Any]:
    """What transformers' tokenizer must know beside it."""
    unknown = getattr(fast.model, "unk_token", None) or _unknown_piece(tokenizer)
    return {
        "eos_token": fast.id_to_token(eod_id),
        **({} if unknown is None else {"unk_token": unknown}),
        "clean_up_tokenization_spaces": False,
        # A special token that is spelled out in a text is text, as in training.
        "split_special_tokens": True,
        "model_max_length": positions,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def write_tokenizer(folder: Path, tokenizer: Tokenizer, eod_id: int, positions: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    fast = fast_tokenizer(tokenizer)
    fast.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **settings(tokenizer, fast, eod_id, positions)}
    (folder / "tokenizer_config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _unknown_piece(tokenizer: Tokenizer) -> str | None:
    if isinstance(tokenizer, SentencePieceTokenizer):
        return next((one.piece for one in _proto(tokenizer.path).pieces if one.type == _UNKNOWN), None)
    return None


_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces in sentencepiece's protocol."""


def _proto(path: Path) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    return proto


def _from_sentencepiece(path: Path) -> FastTokenizer:
    proto = _proto(path)
    _check(path, proto)
    if proto.trainer_spec.model_type == proto.trainer_spec.BPE:
        model: Any = _bpe(proto)
    else:
        model = _unigram(proto)
    fast = FastTokenizer(model)
    fast.normalizer = normalizers.Replace(" ", _SPACE)
    fast.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    for kinds, special in (((_USER_DEFINED,), False), ((_CONTROL, _UNKNOWN), True)):
        tokens = [AddedToken(one.piece, normalized=False, special=special) for one in proto.pieces if one.type in kinds]
        (fast.add_special_tokens if special else fast.add_tokens)(tokens)
    return fast


def _check(path: Path, proto: Any) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = {trainer.BPE: "bpe", trainer.UNIGRAM: "unigram"}
    for name, value, allowed in (
        ("normalizer", "a map of characters" if normalizer.precompiled_charsmap else "none", "none"),
        ("add_dummy_prefix", normalizer.add_dummy_prefix, False),
        ("remove_extra_whitespaces", normalizer.remove_extra_whitespaces, False),
        ("escape_whitespaces", normalizer.escape_whitespaces, True),
        ("treat_whitespace_as_suffix", trainer.treat_whitespace_as_suffix, False),
        ("byte_fallback", trainer.byte_fallback, True),
        ("model_type", kinds.get(trainer.model_type, trainer.model_type), "bpe or unigram"),
        ("unused pieces", any(one.type == _UNUSED for one in proto.pieces), False),
    ):
        if value != allowed and not (name == "model_type" and value in kinds.values()):
            raise UserError(f"{path}: {name} = {value}: must be {allowed}, for its ids to be the same in transformers")


def _bpe(proto: Any) -> Any:
    ids = {one.piece: number for number, one in enumerate(proto.pieces)}
    normal = {one.piece: one.score for one in proto.pieces if one.type == _NORMAL}
    merges = []
    for piece, score in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                merges.append((-score, ids[left], ids[right], left, right))
    unknown = next((one.piece for one in proto.pieces if one.type == _UNKNOWN), None)
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    return models.BPE(ids, pairs, unk_token=unknown, byte_fallback=True, fuse_unk=False)


def _unigram(proto: Any) -> Any:
    lowest = min(one.score for one in proto.pieces) - _BELOW
    # Else a text could spell a control piece, or a byte's name, and get its id.
    spelled = (_NORMAL, _USER_DEFINED)
    pieces = [(one.piece, one.score if one.type in spelled else lowest) for one in proto.pieces]
    unknown = next((number for number, one in enumerate(proto.pieces) if one.type == _UNKNOWN), None)
    return models.Unigram(pieces, unknown, byte_fallback=True)
