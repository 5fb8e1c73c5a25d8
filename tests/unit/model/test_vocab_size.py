import pytest

from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.model.vocab_size import padded_vocab_size, vocabulary_of


@pytest.mark.parametrize(
    ("size", "multiple", "tensor", "rows"),
    [(1000, 128, 1, 1024), (1024, 128, 4, 1024), (1000, 1, 1, 1000), (1000, 8, 3, 1008), (1001, 6, 4, 1008)],
)
def test_a_vocabulary_is_padded_to_the_least_common_multiple(size: int, multiple: int, tensor: int, rows: int) -> None:
    assert padded_vocab_size(size, multiple, tensor) == rows


def test_the_rows_are_given_or_the_tokenizers_padded() -> None:
    assert vocabulary_of(build_config({"model": {"vocab_size": 5000}}), 1000).rows == 5000
    assert vocabulary_of(build_config({}), 1000).rows == 1024
    assert vocabulary_of(build_config({"model": {"vocab_multiple_of": 8}}), 1000).rows == 1000
    with pytest.raises(UserError, match=r"^model.vocab_size = 128: must be at least the tokenizer's 290$"):
        vocabulary_of(build_config({"model": {"vocab_size": 128}}), 290)
