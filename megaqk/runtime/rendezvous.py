"""The meeting of processes that torchrun starts again: each time in a part of its store that is theirs alone.

torchrun keeps one store over all starts (torch 2.13), in which the addresses of processes that are gone still stand.
"""

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

URL = "megaqk://"
"""For `init_process_group`: the environment says where the store is, as for env://."""

_ATTEMPT = "megaqk/attempt"
_POLL_SECONDS = 0.05


def _meet(_: str, timeout: timedelta, **__: Any) -> Iterator[tuple[Store, int, int]]:
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    yield PrefixStore(_agree(store, rank, size), store), rank, size


register_rendezvous_handler(URL.removesuffix("://"), _meet)  # type: ignore[no-untyped-call]


def _agree(store: Store, rank: int, size: int) -> str:
    """A name for this start, the same on all ranks and no other's.

    Rank 0 makes it up. The others may first read the name of an earlier start, but rank 0 answers under its own alone,
    and with the very word that it has got from each of them.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set(_ATTEMPT, me)
        for other in range(1, size):
            store.set(f"{me}/{other}/heard", store.get(f"{me}/{other}").decode())
        return me
    while True:
        attempt: str = store.get(_ATTEMPT).decode()
        store.set(f"{attempt}/{rank}", me)
        heard = f"{attempt}/{rank}/heard"
        while attempt == store.get(_ATTEMPT).decode():
            if store.check([heard]) and store.get(heard).decode() == me:
                return attempt
            time.sleep(_POLL_SECONDS)
