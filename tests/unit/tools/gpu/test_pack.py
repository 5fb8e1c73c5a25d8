"""What is packed for a GPU machine without a network."""

import zipfile
from pathlib import Path

import pack


def test_everything_that_is_needed_beside_torch_and_nothing_that_is_left_out() -> None:
    found = {entry.partition("==")[0] for root in pack.ROOTS for entry in pack.needed(root, set())}
    # Of the package itself, of its requirements' own, and of the tests.
    assert {"deepspeed", "numpy", "pydantic-core", "psutil", "pytest", "iniconfig"} <= found
    assert not found & {*pack.LEFT_OUT, "megaqk", "pyarrow", "httpx2", "triton"}
    assert not [name for name in found if name.startswith("nvidia")]


def test_a_wheel_that_is_packed_anew_has_the_same_content(tmp_path: Path) -> None:
    wheel = tmp_path / "some-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some/module.py", "value = 1\n" * 10_000)
        archive.writestr("some-1.dist-info/RECORD", "")
    before = zipfile.ZipFile(wheel).read("some/module.py")
    pack.compress(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("some/module.py") == before
        assert archive.namelist() == ["some/module.py", "some-1.dist-info/RECORD"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_LZMA}
