"""Every case starts real processes with a directory of their own, and a time limit that a hang would pass."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megaqk.errors import UserError
from megaqk.runtime import extensions

START_LIMIT = 60
# A compiler needs a minute alone, several on a busy machine.
BUILD_LIMIT = 600

# What a rank does at start, down to DeepSpeed's own look-up of the operator, which is where a stale lock would stall.
START = """
import torch
from deepspeed.comm.torch import build_shm_op
from megaqk.runtime.extensions import ensure_cpu_extensions
loaded = ensure_cpu_extensions()
operator = build_shm_op()
assert (operator is not None) == loaded, (operator, loaded)
if loaded:
    operator.initialize(1, 0)
print("LOADED" if loaded else "GLOO ONLY")
"""


def start_process(code: str = START, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "DS_ACCELERATOR": "cpu", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", limit: float = START_LIMIT) -> str:
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"still running after {limit} s:\n{output}")
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def compiled() -> Path:
    """The operator as the installation left it, compiled now if there was none."""
    assert extensions.ensure_cpu_extensions()
    [library, *_] = [
        path
        for directory in extensions._search_path()
        for path in directory.glob(f"deepspeed_shm_comm-{extensions._fingerprint('deepspeed_shm_comm')}.so")
    ]
    return library


def plant_stale_locks(directory: Path) -> None:
    """Leave what processes killed in a build leave: torch's lock file, our lock file, half a build."""
    for build in (directory / "deepspeed_shm_comm", directory / "build-deepspeed_shm_comm-dead" / "deepspeed_shm_comm"):
        build.mkdir(parents=True)
        (build / "lock").touch()
        (build / "deepspeed_shm_comm.so").write_bytes(b"\x7fELF half a file")
    (directory / f"deepspeed_shm_comm-{extensions._fingerprint('deepspeed_shm_comm')}.lock").touch()


def test_stale_locks_do_not_stall_a_start(tmp_path: Path, compiled: Path) -> None:
    plant_stale_locks(tmp_path)
    (tmp_path / compiled.name).write_bytes(compiled.read_bytes())
    began = time.monotonic()
    ranks = [start_process(TORCH_EXTENSIONS_DIR=str(tmp_path), LOCAL_RANK=str(rank)) for rank in range(2)]
    for rank in ranks:
        assert "LOADED" in finish(rank)
    assert time.monotonic() - began < START_LIMIT
    # Nobody went near torch's lock: it would be gone, or waited for.
    assert (tmp_path / "deepspeed_shm_comm" / "lock").exists()


# Stands in for the compiler where its minute is not worth it: ninja, the lock and the processes are the real ones.
QUICK_COMPILER = """#!/bin/sh
test "$1" = --version && exec c++ --version
sleep 3
while test $# -gt 0; do test "$1" = -o && cp {library} "$2"; shift; done
"""


@pytest.mark.parametrize(
    "compiler", ["quick", pytest.param("real", marks=[pytest.mark.full, pytest.mark.timeout(BUILD_LIMIT + 100)])]
)
def test_a_killed_build_is_taken_over(tmp_path: Path, compiled: Path, compiler: str) -> None:
    """One process is killed while the compiler runs; two others, started before it died, must both end well."""
    variables = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    if compiler == "quick":
        script = tmp_path / "quick-c++"
        script.write_text(QUICK_COMPILER.format(library=compiled))
        script.chmod(0o755)
        variables["CXX"] = str(script)
    victim = start_process(**variables)
    deadline = time.monotonic() + START_LIMIT
    while not (locks := list(tmp_path.glob("build-*/deepspeed_shm_comm/lock"))):
        assert time.monotonic() < deadline, "the build did not begin"
        time.sleep(0.05)
    waiting = [start_process(**variables, LOCAL_RANK=str(rank)) for rank in range(2)]
    # Only the process itself, as the out-of-memory killer does: its compiler goes on for a while.
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert locks[0].exists(), "the kill came too late to leave a stale lock"
    for rank in waiting:
        assert "LOADED" in finish(rank, BUILD_LIMIT)
    assert not list(tmp_path.glob("build-*")), "a build directory was left behind"
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_without_a_compiler_gloo_is_enough(tmp_path: Path) -> None:
    output = finish(start_process(TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="no-such-compiler"))
    assert "GLOO ONLY" in output
    assert output.count("no C++ compiler was found (no-such-compiler)") == 1


def test_only_the_first_rank_of_a_machine_reports_it(tmp_path: Path) -> None:
    output = finish(start_process(TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="no-such-compiler", LOCAL_RANK="1"))
    assert "GLOO ONLY" in output
    assert "no-such-compiler" not in output


def test_a_library_that_does_not_load_counts_as_missing(tmp_path: Path, compiled: Path) -> None:
    broken = tmp_path / compiled.name
    broken.write_bytes(b"\x7fELF half a file")
    assert extensions._import_library("deepspeed_shm_comm", broken) is None


def test_a_read_only_environment_serves_what_it_has(tmp_path: Path, compiled: Path) -> None:
    # /proc/self is read-only even to root, which file modes are not.
    code = "import sys; sys.prefix = '/proc/self'\n" + START
    cache = tmp_path / "megaqk" / "torch_extensions"
    cache.mkdir(parents=True)
    (cache / compiled.name).write_bytes(compiled.read_bytes())
    variables = {"XDG_CACHE_HOME": str(tmp_path), "TORCH_EXTENSIONS_DIR": ""}
    assert "LOADED" in finish(start_process(code, **variables))


@pytest.mark.parametrize(("prefix_is_writable", "expected"), [(True, "prefix"), (False, "cache")])
def test_where_operators_are_compiled_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix_is_writable: bool, expected: str
) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix") if prefix_is_writable else "/proc/self")
    assert extensions.extensions_dir().relative_to(tmp_path).parts[0] == expected


def test_an_unusable_choice_of_the_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/proc/self/nowhere")
    with pytest.raises(UserError, match="TORCH_EXTENSIONS_DIR: /proc/self/nowhere cannot be written"):
        extensions.extensions_dir()


CPU_ADAM = """
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from megaqk.runtime.extensions import load_extension
module = load_extension("CPUAdamBuilder")
weight = torch.nn.Parameter(torch.ones(64))
optimizer = DeepSpeedCPUAdam([weight], lr=0.1)
assert optimizer.ds_opt_adam is module
weight.grad = torch.ones(64)
optimizer.step()
assert torch.allclose(weight, torch.full((64,), 0.9), atol=1e-5)
"""


@pytest.mark.full
@pytest.mark.timeout(BUILD_LIMIT + 100)
def test_deepspeeds_optimizer_finds_what_was_loaded(tmp_path: Path) -> None:
    """DeepSpeed would build it in its own way, behind torch's lock, if it did not."""
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "lock").touch()
    for limit in (BUILD_LIMIT, START_LIMIT):
        finish(start_process(CPU_ADAM, TORCH_EXTENSIONS_DIR=str(tmp_path)), limit)
    assert len(list(tmp_path.glob("cpu_adam-*.so"))) == 1
