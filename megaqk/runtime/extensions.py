"""Build DeepSpeed's C++ operators once, and load them at start without ever waiting on a dead process.

DeepSpeed compiles some operators when they are first used; on CPU one of them, `deepspeed_shm_comm`, at every
`init_distributed`. torch guards such a build with a file whose mere existence is the lock, so a process killed while
it compiles leaves a lock that every later start waits for, silently and for ever.

Here a build happens in a directory of its own, which no other process ever looks into, and its result is moved into
place in one step. The compiled file existing therefore means that it is complete, nothing an interrupted build leaves
can be mistaken for anything, and starting again needs no lock at all. A kernel lock (`flock`), released by the kernel
when its holder dies, only saves the ranks of one machine from compiling the same file side by side.

The loaded operator is put into DeepSpeed's own table of loaded operators, so DeepSpeed never begins a build itself.
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from megaqk.errors import UserError

logger = logging.getLogger(__name__)

SHARED_MEMORY_BUILDER = "ShareMemCommBuilder"
# Compiled without -march=native: the same file serves every machine of an architecture.
_PORTABLE_OPERATORS = frozenset({"deepspeed_shm_comm"})
_DIRECTORY_VARIABLE = "TORCH_EXTENSIONS_DIR"


def ensure_cpu_extensions() -> bool:
    """Make DeepSpeed's start on CPU safe; every rank calls this before `deepspeed.init_distributed`.

    On a GPU it does nothing, because DeepSpeed compiles nothing there at start. Where the operator cannot be built
    (no compiler, say) it is reported once and switched off: DeepSpeed then uses gloo alone, which is all that
    training needs.

    Returns:
        Whether the shared-memory operator is loaded.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        return False
    builder = get_accelerator().create_op_builder(SHARED_MEMORY_BUILDER)
    if builder is None:
        return False
    # DeepSpeed asks this table whether to load an operator, and fills it at the first look by trying every one it
    # knows, which prints linker errors about libraries nobody asked for. The one that matters is answered here.
    table = vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    table[builder.NAME] = builder.is_compatible()
    if not table[builder.NAME]:
        return False
    try:
        load_extension(SHARED_MEMORY_BUILDER)
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        table[builder.NAME] = False
        if os.environ.get("LOCAL_RANK", "0") == "0":
            logger.warning("DeepSpeed's %s is switched off, training uses gloo alone: %s", builder.NAME, error)
        return False
    return True


def load_extension(builder_name: str) -> ModuleType:
    """Load one DeepSpeed operator, compiling it first where that has not been done yet.

    Args:
        builder_name: The name of a DeepSpeed operator builder, such as `CPUAdamBuilder`.

    Returns:
        The loaded module, which DeepSpeed finds in its own table from now on.

    Raises:
        RuntimeError: The operator cannot be compiled here.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops

    builder: Any = get_accelerator().create_op_builder(builder_name)
    if builder is None:
        raise RuntimeError(f"DeepSpeed has no {builder_name} for {get_accelerator().device_name()}")
    loaded: dict[str, ModuleType] = builder._loaded_ops
    if builder.name not in loaded and installed_ops.get(builder.name, False):
        builder.load()  # Compiled when DeepSpeed was installed: a plain import.
    if builder.name not in loaded:
        file_name = f"{builder.name}-{_fingerprint(builder.name)}.so"
        for directory in _search_path():
            module = _import_library(builder.name, directory / file_name)
            if module is not None:
                break
        else:
            module = _build(builder, extensions_dir() / file_name)
        loaded[builder.name] = module
    return loaded[builder.name]


def extensions_dir() -> Path:
    """Choose where operators are compiled to.

    That is `TORCH_EXTENSIONS_DIR` where it is set, else the Python environment's own directory, so that they live
    and die with it, else, where that cannot be written, the user's cache.

    Raises:
        UserError: `TORCH_EXTENSIONS_DIR` is set to a place that cannot be written.
        RuntimeError: None of the places can be written.
    """
    for directory in _search_path():
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK | os.X_OK):
            return directory
    if chosen := os.environ.get(_DIRECTORY_VARIABLE):
        raise UserError(f"{_DIRECTORY_VARIABLE}: {chosen} cannot be written; name a writable directory or unset it")
    places = " nor ".join(map(str, _search_path()))
    raise RuntimeError(f"neither {places} can be written; set {_DIRECTORY_VARIABLE} to a directory that can")


def _search_path() -> list[Path]:
    if chosen := os.environ.get(_DIRECTORY_VARIABLE):
        return [Path(chosen).expanduser().absolute()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return [Path(sys.prefix) / "torch_extensions", cache / "megaqk" / "torch_extensions"]


def _fingerprint(name: str) -> str:
    """Digest of everything a compiled operator depends on; another version or machine gets another file."""
    import deepspeed
    import torch

    parts = [torch.__version__, torch.version.cuda, deepspeed.__version__, sys.implementation.cache_tag]
    parts.append(platform.machine())
    if torch.cuda.is_available():
        parts += [os.environ.get("TORCH_CUDA_ARCH_LIST"), torch.cuda.get_device_capability()]
    if name not in _PORTABLE_OPERATORS:
        parts.append(_processor_features())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _processor_features() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _import_library(name: str, library: Path) -> ModuleType | None:
    """Import a compiled operator, or return None if it is not there or does not fit this machine."""
    if not library.exists():
        return None
    import torch  # noqa: F401 - the operator links against torch's libraries, which must be in the process.

    spec = importlib.util.spec_from_file_location(name, library)
    if spec is None or spec.loader is None:
        return None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        # One file system, several systems: a C library too old for the machine that compiled it.
        logger.warning("%s does not load and is compiled again: %s", library, error)
        return None
    return module


def _build(builder: Any, library: Path) -> ModuleType:
    """Compile an operator and move it into place, or load what another process compiled meanwhile."""
    with _kernel_lock(library.with_suffix(".lock")):
        module = _import_library(builder.name, library)
        if module is not None:
            return module
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None:
            raise RuntimeError(f"no C++ compiler was found ({compiler})")
        logger.info("compiling DeepSpeed's %s, once for this environment; about a minute", builder.name)
        for abandoned in library.parent.glob(f"build-{library.stem}-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(prefix=f"build-{library.stem}-", dir=library.parent))
        try:
            with _environment({_DIRECTORY_VARIABLE: str(directory), "PATH": _path_with_ninja()}):
                module = builder.jit_load(verbose=False)
            # The file stays mapped into this process: a rename keeps what it is mapped from.
            (directory / builder.name / f"{builder.name}.so").replace(library)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        assert isinstance(module, ModuleType)
        return module


def _path_with_ninja() -> str:
    """PATH with the environment's own programs, ninja among them, also where it has not been activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@contextmanager
def _kernel_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock that cannot outlive its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        # Some network file systems have no locks. The worst is then that several ranks compile the same file.
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the time of a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main() -> None:
    """Compile what a start on this machine needs; part of the installation."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ensure_cpu_extensions()


if __name__ == "__main__":
    main()
