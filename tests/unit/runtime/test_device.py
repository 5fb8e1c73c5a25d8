import pytest

from megaqk.errors import UserError
from megaqk.runtime.device import gpu_index
from megaqk.runtime.launch import Launch


@pytest.mark.parametrize(
    ("local_rank", "local_size", "visible", "binds", "index"),
    [
        (3, 8, 8, False, 3),
        (1, 2, 8, False, 1),
        (0, 1, 1, False, 0),
        # srun --gpus-per-task=1: each task sees one, as number 0.
        (3, 8, 1, True, 0),
    ],
)
def test_each_process_has_a_gpu(local_rank: int, local_size: int, visible: int, binds: bool, index: int) -> None:
    launch = Launch(local_rank=local_rank, local_size=local_size, binds_gpus=binds)
    assert gpu_index(launch, visible=visible) == index


def test_gpus_are_not_shared_silently() -> None:
    # The first ranks would find theirs; all are refused, so that none waits for the others.
    for visible in (1, 4):
        with pytest.raises(UserError, match=rf"^8 processes on this machine, which sees {visible} GPU"):
            gpu_index(Launch(local_rank=0, local_size=8), visible=visible)
