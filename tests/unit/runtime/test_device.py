import pytest

from megaqk.errors import UserError
from megaqk.runtime.device import gpu_index
from megaqk.runtime.launch import Launch


@pytest.mark.parametrize(
    ("local_rank", "local_size", "visible", "index"),
    [
        (3, 8, 8, 3),
        (1, 2, 8, 1),
        # srun --gpus-per-task=1: each task sees one, as number 0.
        (3, 8, 1, 0),
    ],
)
def test_each_process_has_a_gpu(local_rank: int, local_size: int, visible: int, index: int) -> None:
    assert gpu_index(Launch(local_rank=local_rank, local_size=local_size), visible=visible) == index


def test_gpus_are_not_shared_silently() -> None:
    # The first ranks would find theirs; all are refused, so that none waits for the others.
    with pytest.raises(UserError, match=r"^8 processes on this machine, which sees 4 GPUs"):
        gpu_index(Launch(local_rank=1, local_size=8), visible=4)
