"""The image, really built and run: by `make test-image`, as root, on a machine that needs no Docker and no registry."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LAB = ROOT / "tools" / "image" / "lab.sh"
IMAGE = "localhost/megaqk:test"
LIMITS = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
CONFINED = ["--rm", "--network", "none", "--memory", "6g", *LIMITS]
STEPS = 200
# Two processes, so that there is a launcher, collectives, and more than one to stop.
TRAINING = [
    "pretrain",
    "configs/quickstart.yaml",
    "parallel.pipeline=1",
    "model.hidden_size=32",
    "training.sequence_length=32",
    f"training.steps={STEPS}",
    "schedule.warmup_steps=5",
    "data.vocab_size=512",
    "checkpoint.every=50",
    "evaluation.every=0",
    "logging.every=1",
    "run.dir=runs/mine",
]


def podman(*words: str, status: int = 0, timeout: float = 200) -> str:
    """Run podman and return what it prints, both streams, after it has ended with a status."""
    command = [str(LAB), "podman", *words]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
    )
    assert done.returncode == status, f"{' '.join(words)}: status {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def fetched(url: str) -> bytes:
    with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:
        body: bytes = answer.read()
    return body


def retried(action: Callable[[], Any], seconds: float) -> Any:
    """What an action returns once it returns something; what it raises before that is let go."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if value := action():
                return value
        assert time.monotonic() < deadline
        time.sleep(0.2)


def result(data: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((data / "runs/mine/result.json").read_text())
    return read


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    assert os.geteuid() == 0, "building an image needs root"
    for words, limit in ((["setup"], 300), (["build", "cpu", IMAGE], 600)):
        began = time.monotonic()
        done = subprocess.run(
            [str(LAB), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        print(f"{words[0]}: {time.monotonic() - began:.0f} s")


def test_a_run_is_stopped_and_goes_on_in_another_container(tmp_path: Path) -> None:
    """As a user without a name in the image, read-only, without capabilities and without a network."""
    os.chown(tmp_path, 4321, 4321)
    mount = ["--user", "4321:4321", "--volume", f"{tmp_path}:/data"]
    name = f"megaqk-test-{os.getpid()}"
    podman("run", "--detach", "--name", name, "--network", "none", *LIMITS, *mount, IMAGE, *TRAINING)
    try:
        metrics = tmp_path / "runs/mine/metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < 20:
            assert time.monotonic() < deadline, podman("logs", name)
            time.sleep(0.2)
        # It trains: the health check finds it well, and not where its records are an hour old.
        podman("healthcheck", "run", name)
        assert podman("exec", name, "id", "-u").strip() == "4321"
        assert "CapEff:\t0000000000000000" in podman("exec", name, "cat", "/proc/1/status")
        podman("exec", name, "sh", "-c", "touch /megaqk/x /opt/venv/x /root/x", status=1)
        assert len(podman("exec", name, "sh", "-c", "ls /sys/class/net").split()) == 1
        podman("exec", "--env", "HEALTH_SECONDS=-1", name, "python3", "/megaqk/health.py", status=1)
        began = time.monotonic()
        podman("stop", "--time", "60", name)
        print(f"stop: {time.monotonic() - began:.1f} s")
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "75", podman("logs", name)
    finally:
        podman("rm", "--force", "--time", "0", name)
    stopped = result(tmp_path)
    assert (stopped["state"], stopped["stopped_by"]) == ("stopped", "SIGTERM")
    assert 20 <= stopped["step"] < STEPS
    said = podman("run", *CONFINED, *mount, IMAGE, *TRAINING)
    assert f"resumed after step {stopped['step']}" in said
    assert result(tmp_path)["state"] == "finished"
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()][:STEPS] == list(range(1, STEPS + 1))
    table = podman("run", *CONFINED, *mount, IMAGE, "runs", "runs")
    assert re.search(rf"^mine +finished +{STEPS}/{STEPS} ", table, re.MULTILINE)
    # All of it belongs to the user, and there is nothing but what a run writes.
    owners = {path.stat().st_uid for path in tmp_path.rglob("*")}
    assert owners == {4321}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "runs"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short run of the image's own user has left in a volume."""
    data = tmp_path_factory.mktemp("data")
    os.chown(data, 10001, 10001)
    overrides = ["parallel.tensor=1", "training.steps=6"]
    assert "step 6/6" in podman("run", *CONFINED, "--volume", f"{data}:/data", IMAGE, *TRAINING, *overrides)
    return data


def test_a_run_of_the_user_of_the_image(finished: Path) -> None:
    table = podman("run", *CONFINED, "--volume", f"{finished}:/data:ro", IMAGE, "runs", "runs")
    assert re.search(r"^mine +finished +6/6 ", table, re.MULTILINE)


def test_a_mount_that_it_may_not_write_to_is_one_line(tmp_path: Path) -> None:
    said = podman("run", *CONFINED, "--volume", f"{tmp_path}:/data", IMAGE, *TRAINING, status=2)
    line = "/data: Permission denied for user 10001: must be a folder or volume that it may write to"
    assert said == f"megaqk: error: {line}\n"
    assert podman("run", *CONFINED, "--volume", f"{tmp_path}:/data", IMAGE, "--version").startswith("megaqk ")


def test_what_the_image_says_of_itself() -> None:
    [inspected] = json.loads(podman("image", "inspect", IMAGE))
    version = re.search('"(.*)"', (ROOT / "megaqk/__init__.py").read_text().splitlines()[-1])
    assert version is not None
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in inspected["Labels"].items()}
    assert labels["title"] == "megaqk"
    assert labels["version"] == version[1]
    assert podman("run", *CONFINED, IMAGE, "--version") == f"megaqk {version[1]}\n"
    assert len(labels["revision"]) == 40
    assert inspected["User"] == "10001:10001"
    assert inspected["Healthcheck"]["Test"] == ["CMD", "python3", "/megaqk/health.py"]
    assert inspected["Size"] < 1.6e9
    print(f"{inspected['Size'] / 1e9:.2f} GB")


def test_it_has_the_pinned_versions_and_no_tools_of_a_build() -> None:
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    installed = podman("run", *CONFINED, "--entrypoint", "python3", IMAGE, "-c", code).split()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split(" ")[0] for line in lines if "==" in line and not line.startswith("#")}
    # A build of torch has the version with a suffix.
    found = {name.split("+")[0].lower().replace("_", "-") for name in installed}
    assert len(found) > 40
    assert {name.partition("==")[0] for name in found - pinned} == {"megaqk"}
    for name in ("pytest", "mypy", "ruff", "transformers", "megatron-core", "pip"):
        assert not [entry for entry in found if entry.startswith(f"{name}==")]
    podman("run", *CONFINED, "--entrypoint", "sh", IMAGE, "-c", "command -v gcc || command -v git", status=127)


def test_nothing_of_the_machine_that_built_it_is_inside() -> None:
    """Its name, its folders, where its packages come from, its certificates, its settings."""
    settings = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    words = {str(ROOT), socket.gethostname(), "/dev/pip-"}
    words |= {
        word.strip("'\"").removeprefix("file://")
        for line in settings.splitlines()
        for word in line.split("=", 1)[1].split()
    }
    # Words that any machine may have say nothing.
    words = {word for word in words if len(word) > 5 and not word.startswith("/etc/ssl")}
    search = "grep -rlF " + " ".join(f"-e '{word}'" for word in sorted(words))
    places = "/bin /boot /data /etc /home /lib /megaqk /mnt /opt /root /run /sbin /srv /tmp /usr /var"
    # What podman puts into a container at its start is not the image's.
    found = podman("run", "--rm", "--network", "none", "--user", "0", "--hostname", "elsewhere", "--entrypoint", "sh",
                   IMAGE, "-c", f"{search} {places} 2>/dev/null | grep -v -e '^/etc/hosts$' -e '^/run/.containerenv$'",
                   status=1)  # fmt: skip
    assert found == ""
    leftovers = "-name '*.crt' -o -name pip -o -name .cache -o -name '*.whl' -o -name '*.deb' -o -name pip.conf"
    script = (
        "env | grep -iE 'cert|pip_|proxy|index'; "
        rf"find / -xdev \( {leftovers} \); "
        "find /root /home /tmp /var/cache /var/log /var/lib/apt/lists -type f ! -name .bashrc ! -name .profile"
    )
    found = podman("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh", IMAGE, "-c", script)
    assert found == ""
    history = podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE)
    assert not [word for word in words if word in history]


def test_the_dockerfile_is_clean() -> None:
    hadolint = os.environ.get("HADOLINT", "hadolint")
    done = subprocess.run(
        [hadolint, "--config", str(ROOT / ".hadolint.yaml"), str(ROOT / "docker/Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_understood() -> None:
    command = ["podman-compose", "--dry-run", "--file", str(ROOT / "docker/compose.yaml"), "up", "--no-build"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("podman create ")]
    assert len(lines) == 2
    for line in lines:
        assert " --read-only " in line
        assert " --cap-drop ALL --tmpfs /tmp " in line
    assert " --network none " in lines[0]
    assert lines[0].endswith(" megaqk:cpu pretrain configs/quickstart.yaml")
    # Nobody else's machine sees it.
    assert " -p 127.0.0.1:6006:6006 " in lines[1]


def test_tensorboard_beside_a_run(finished: Path) -> None:
    """The service of the compose file, on the network of this machine and at a port that is free."""
    service = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["tensorboard"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program, *words = service["entrypoint"]
    words = [word.replace("=0.0.0.0", "=127.0.0.1").replace("=6006", f"={port}") for word in words]
    name = f"megaqk-test-{os.getpid()}"
    confined = ["--network", "host", *LIMITS, "--volume", f"{finished}:/data:ro", "--entrypoint", program]
    podman("run", "--detach", "--name", name, *confined, IMAGE, *words)
    try:
        runs = retried(lambda: json.loads(fetched(f"http://127.0.0.1:{port}/data/runs")), 30)
        assert runs == ["mine/tensorboard"]
        check = [word.replace(":6006", f":{port}") for word in service["healthcheck"]["test"][1:]]
        podman("exec", name, *check)
    finally:
        podman("rm", "--force", "--time", "0", name)
