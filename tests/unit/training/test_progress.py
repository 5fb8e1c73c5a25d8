import json
from dataclasses import asdict

from megaqk.training.progress import Progress


def test_batches_begin_where_none_of_their_samples_is_left_out() -> None:
    progress = Progress().without((16, 24), (48, 64))
    starts = []
    for _ in range(5):
        starts.append(progress.next_batch(8))
        progress = Progress(samples=starts[-1] + 8, left_out=progress.left_out)
    assert starts == [0, 8, 24, 32, 40]
    assert progress.next_batch(8) == 64


def test_a_batch_of_another_size_begins_behind_what_it_would_touch() -> None:
    progress = Progress(samples=4).without((16, 24), (30, 40))
    assert progress.next_batch(12) == 4
    assert progress.next_batch(13) == 40  # between 24 and 30 there is no room


def test_what_is_left_out_is_in_order_and_comes_back_from_json() -> None:
    progress = Progress(step=3, skipped=1).without((16, 24)).without((0, 8), (16, 24))
    assert progress.left_out == ((0, 8), (16, 24))
    assert Progress(**json.loads(json.dumps(asdict(progress)))) == progress
