import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[4] / "tools" / "image" / "pip_settings.py"


def translated(tmp_path: Path, config: str, **variables: str) -> tuple[list[str], list[str]]:
    (tmp_path / "pip.conf").write_text(config)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment = {**plain, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "HOME": str(tmp_path), **variables}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "inside.conf")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return (tmp_path / "inside.conf").read_text().splitlines(), done.stdout.splitlines()


def test_what_lies_on_this_machine_is_mounted_and_named_as_it_is_inside(tmp_path: Path) -> None:
    for name in ("wheels", "index/simple", "index/files"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ca.crt").touch()
    config = f"""[global]
find-links = {tmp_path}/wheels
extra-index-url = https://example.org/simple file://{tmp_path}/index/simple
no-color = true
"""
    lines, mounts = translated(tmp_path, config, PIP_CERT=f"{tmp_path}/ca.crt")
    assert lines[0] == "[global]"
    values = dict(line.split(" = ") for line in lines[1:])
    inside = {mount.split(":")[1]: mount.split(":")[0].removeprefix("--volume=") for mount in mounts}
    assert all(mount.endswith(":ro") for mount in mounts)
    assert inside[values["cert"]] == f"{tmp_path}/ca.crt"
    assert inside[values["find-links"]] == f"{tmp_path}/wheels"
    # An index refers to the files beside it.
    remote, local = values["extra-index-url"].split()
    assert remote == "https://example.org/simple"
    assert inside[local.removeprefix("file://").removesuffix("/simple")] == f"{tmp_path}/index"
    # What is nothing to a build, or not there, is left out or as it was.
    assert "no-color" not in values
    assert str(tmp_path) not in "\n".join(lines)


def test_the_environment_comes_before_the_files_and_places_add_up(tmp_path: Path) -> None:
    config = "[global]\nindex-url = https://files.example.org/simple\nfind-links = https://files.example.org/wheels\n"
    variables = {"PIP_INDEX_URL": "https://env.example.org/simple", "PIP_FIND_LINKS": "https://env.example.org/wheels"}
    lines, _ = translated(tmp_path, config, **variables)
    assert [line for line in lines if line.startswith("index-url")] == ["index-url = https://env.example.org/simple"]
    [links] = [line for line in lines if line.startswith("find-links")]
    assert links.startswith("find-links = https://env.example.org/wheels https://files.example.org/wheels")


def test_a_machine_without_settings(tmp_path: Path) -> None:
    # This name has pip read no file, those of the machine included.
    assert translated(tmp_path, "", PIP_CONFIG_FILE=os.devnull) == (["[global]"], [])
