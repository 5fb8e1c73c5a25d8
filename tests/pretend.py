"""A device that is not the CPU, over the CPU's memory: device mistakes fail on a machine without a GPU.

DLPack gives one memory two device types, 1 for the CPU and 12 for torch's private-use device: rewriting that field
makes ordinary tensors of `pretend:0`. Every operator runs on the host's alias of its arguments, after the check that a
GPU would make: all of them on the device. What blocks a GPU's queue, reading a value on the host, is noted in `waits`.

It cannot see what asks for "cuda" by name, streams, or races. All of its hooks are private to torch and DeepSpeed.
"""

import contextlib
import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # checks the signature of a function that is replaced below, so it goes first
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.ops.op_builder.cpu import NotImplementedBuilder
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from megaqk.runtime import device as megaqk_device
from tests import staging

NAME, DEVICE = "pretend", "pretend:0"
HOST, EXTENSION = 1, 12  # of DLPack's device types
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}
INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}  # their indices may lie on the host
COLLECTIVES = [
    "allreduce",
    "broadcast",
    "reduce",
    "allgather",
    "reduce_scatter",
    "_allgather_base",
    "_reduce_scatter_base",
    "send",
    "recv",
]

waits: list[tuple[str, str]] = []
"""(operator, "file:line" of the first caller outside torch) of everything that waited for the device."""

_DATA = torch._C.TensorBase.data
_libraries: list[torch.library.Library] = []
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def install() -> torch.device:
    """Make it this process's device, for good; before the process group is made."""
    os.environ["LOCAL_RANK"] = "0"  # its device guard knows one index
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    Tensor.data = property(_DATA.__get__, _set_data)  # type: ignore[assignment]
    # `Module.to` then keeps the parameters with their attributes, as it does for CUDA.
    torch._has_compatible_shallow_copy_type = lambda *_: True
    torch.UntypedStorage.cpu = _storage_on_host  # type: ignore[method-assign]
    every, aten, c10d = (torch.library.Library(namespace, "IMPL") for namespace in ("_", "aten", "c10d"))
    _libraries.extend((every, aten, c10d))
    every.fallback(_run, "PrivateUse1")
    aten.impl("copy_", _copy, "PrivateUse1")
    # The attention that is made of plain operators.
    aten.impl("_fused_sdp_choice", lambda *_, **__: 0, "PrivateUse1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are replaced
        for name in staging.COLLECTIVES:
            operator = getattr(torch.ops.c10d, name).default
            c10d.impl(name, functools.partial(_run, operator), "PrivateUse1", allow_override=True)
    set_accelerator(_Accelerator())
    megaqk_device.choose_device = lambda *_: torch.device(DEVICE)
    return torch.device(DEVICE)


@contextlib.contextmanager
def no_host_collectives() -> Iterator[None]:
    """Refuse collectives of host tensors, as NCCL does; for steps only, since those of objects use them."""

    def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any) -> Any:
            if any(isinstance(x, Tensor) and not _is_ours(x) for x in tree_flatten(args)[0]):
                raise RuntimeError(f"{method.__name__}: No backend type associated with device type cpu")
            return method(self, *args)

        return call

    group = torch.distributed.ProcessGroup
    with contextlib.ExitStack() as stack:
        for name in COLLECTIVES:
            stack.enter_context(mock.patch.object(group, name, refusing(getattr(group, name))))
        yield


def _recast(x: Tensor, kind: int) -> Tensor:
    """The same memory on the other device."""
    capsule = torch._C._to_dlpack(x.detach())
    head = _pointer(capsule, b"dltensor")  # DLTensor: void *data; int32 device_type; int32 device_id; ...
    (ctypes.c_int32 * 2).from_address(head + ctypes.sizeof(ctypes.c_void_p))[:] = (kind, 0)
    return torch._C._from_dlpack(capsule)


def _is_ours(x: object) -> bool:
    return isinstance(x, Tensor) and x.device.type == NAME


def _note_wait(name: str) -> None:
    frame = sys._getframe(2)
    while frame.f_back and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    waits.append((name, f"{frame.f_code.co_filename}:{frame.f_lineno}"))


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Every operator of the device: check it, run it on the host's alias, recast the results."""
    name = op._schema.name
    flat, spec = tree_flatten((args, kwargs))
    for x in [args[0], *args[2:]] if name in INDEXING else flat:
        if isinstance(x, Tensor) and x.device.type == "cpu" and x.dim() > 0:
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, got {DEVICE} and cpu")
    if name in WAITS:
        _note_wait(name)
    host = list(flat)
    for i, x in enumerate(flat):
        if _is_ours(x):  # an empty one may be resized for a result (out=); borrowed memory cannot be
            host[i] = _recast(x, HOST) if x.numel() else torch.empty(x.shape, dtype=x.dtype)
        elif isinstance(x, torch.device):
            host[i] = torch.device("cpu")
    shapes = [x.shape if isinstance(x, Tensor) else None for x in host]
    host_args, host_kwargs = tree_unflatten(host, spec)
    host_kwargs.pop("pin_memory", None)
    with torch._C._AutoDispatchBelowAutograd():
        out = op(*host_args, **host_kwargs)
    for x, low, shape in zip(flat, host, shapes, strict=True):
        if _is_ours(x) and low.shape != shape:
            _DATA.__set__(x, _recast(low, EXTENSION))
    known = {id(low): x for x, low in zip(flat, host, strict=True) if isinstance(x, Tensor)}
    return tree_map(lambda y: known.get(id(y), _recast(y, EXTENSION)) if isinstance(y, Tensor) else y, out)


def _copy(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if not _is_ours(self):
        _note_wait("copy to the host")
    low, high = (_recast(x, HOST) if _is_ours(x) else x.detach() for x in (self, source))
    low.copy_(high)
    return self


def _set_data(self: Tensor, new: Tensor) -> None:
    """`x.data = y` across devices, which torch grants to its own devices only."""
    if self.device.type == new.device.type:
        _DATA.__set__(self, new)
    else:
        torch._C._swap_tensor_impl(self, new.detach().clone().requires_grad_(self.requires_grad))


def _storage_on_host(self: torch.UntypedStorage) -> torch.UntypedStorage:
    """What `torch.save` writes."""
    if self.device.type != NAME:
        return self
    copy = torch.UntypedStorage(self.nbytes())
    ctypes.memmove(copy.data_ptr(), self.data_ptr(), self.nbytes())
    return copy


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Accelerator(CPU_Accelerator):
    """What DeepSpeed asks of a device."""

    def __init__(self) -> None:
        super().__init__()
        self._name = NAME

    def device_name(self, device_index: int | None = None) -> str:
        return NAME if device_index is None else DEVICE

    def current_device(self) -> int:
        return 0

    def current_device_name(self) -> str:
        return DEVICE

    def device_count(self) -> int:
        return 1

    def on_accelerator(self, tensor: Tensor) -> bool:
        return _is_ours(tensor)

    def create_op_builder(self, op_name: str) -> None:
        """None, or DeepSpeed starts to compile."""

    def get_op_builder(self, class_name: str) -> type:
        return NotImplementedBuilder
