"""Writing and reading safetensors files, a tensor at a time; nothing is unpickled."""

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaqk.checkpoint.boxes import Box
from megaqk.errors import UserError
from megaqk.exchange.lazy import LazyTensor
from megaqk.runtime.files import os_errors_named, sync_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
FILE_BYTES = 5_000_000_000
"""Where a file ends and the next one begins, as in transformers."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_tensors(
    folder: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype, *, at_most: int = FILE_BYTES
) -> None:
    """Write tensors as transformers finds them; one is in memory at a time.

    Args:
        folder: Where to.
        tensors: By name.
        dtype: What they are rounded to.
        at_most: Bytes of a file; one tensor may have more.

    Raises:
        UserError: The operating system refuses to.
    """
    files, size = [dict[str, LazyTensor]()], 0
    for name, tensor in tensors.items():
        count = prod(tensor.shape) * dtype.itemsize
        if size and size + count > at_most:
            files.append({})
            size = 0
        files[-1][name] = tensor
        size += count
    if len(files) == 1:
        _write_file(folder / SINGLE, files[0], dtype)
        return
    where = {}
    for number, part in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write_file(folder / file, part, dtype)
        where.update(dict.fromkeys(part, file))
    total = sum(prod(tensor.shape) for tensor in tensors.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=1))


def _write_file(path: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        end = at + prod(tensor.shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with os_errors_named(path):
        with path.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                stream.write(_bytes_of(tensor, dtype))
        sync_file(path)


def _bytes_of(tensor: LazyTensor, dtype: torch.dtype) -> memoryview:
    whole = tensor.read().to(dtype).contiguous()
    return whole.view(-1).view(torch.uint8).numpy().data


def open_tensors(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a folder, by name.

    Raises:
        UserError: It has none that may be read, or a file is damaged.
    """
    files = _files(folder)
    tensors = {}
    for file in files:
        for name, shape in _headers(file):
            tensors[name] = LazyTensor(shape, _reader(file, name))
    return tensors


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index}: damaged, not the index of safetensors files") from error
        files = [folder / name for name in names]
        for file in files:
            if file.parent != folder or not file.is_file():
                raise UserError(f"{index}: names {file.name}, which must be a file beside it")
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickled = next((file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt")), None)
    only = f"; {pickled} may be pickled, which is never opened" if pickled else ""
    raise UserError(f"{folder}: must hold {SINGLE} or {INDEX}{only}")


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged, or not a safetensors file ({error})") from error


def _headers(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with _open(file) as opened:
        for name in opened.keys():  # noqa: SIM118  # it is no mapping
            yield name, tuple(opened.get_slice(name).get_shape())


def _reader(file: Path, name: str) -> Any:
    def read(box: Box) -> Tensor:
        with _open(file) as opened:
            ranges = tuple(slice(first, first + count) for first, count in zip(box.first, box.shape, strict=True))
            found: Tensor = opened.get_slice(name)[ranges]
            return found.float()

    return read
