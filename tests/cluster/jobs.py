"""Jobs on the cluster of the tests: submitted, watched, and their nodes' power cut."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
LIMIT = 90.0
"""Seconds that any job may take here."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def cluster(*arguments: str) -> str:
    """Run tools/cluster/cluster.sh and return what it printed."""
    command = ["bash", str(ROOT / "tools" / "cluster" / "cluster.sh"), *arguments]
    # Its daemons must not hold a pipe of ours open.
    ran = subprocess.run(command, stdout=subprocess.PIPE if arguments == ("env",) else None, text=True, timeout=60)
    assert ran.returncode == 0
    return ran.stdout or ""


def copy_scripts(folder: Path) -> None:
    """Give a folder the scripts and configurations of the tree, without what a site has set."""
    for name in ("slurm", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("site.env"))


def wait_for(what: Callable[[], bool], seconds: float = LIMIT) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


class Job:
    """A job, or a task of an array."""

    def __init__(self, number: str, log: Path) -> None:
        self.number = number
        self._log = log

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text() if self._log.exists() else ""

    def shown(self, field: str) -> str:
        """A field of what scontrol shows."""
        command = ["scontrol", "-o", "show", "job", self.number]
        for _ in range(20):
            ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
            if found := re.search(rf"\b{field}=(\S+)", ran.stdout):
                return found[1]
            time.sleep(0.5)  # the controller is busy with a node that does not answer
        raise AssertionError(f"{ran.stdout}{ran.stderr}")

    def state(self) -> str:
        """Its state by now."""
        return self.shown("JobState")

    def ended(self, seconds: float = LIMIT) -> str:
        """The state that it ends in."""
        assert wait_for(lambda: self.state() in OVER, seconds), f"{self.state()}\n{self.log}"
        return self.state()

    def status(self) -> int:
        """The exit status of its script."""
        return int(self.shown("ExitCode").split(":")[0])

    def printed(self, pattern: str, seconds: float = LIMIT) -> bool:
        """Whether it prints something before it ends."""
        return wait_for(lambda: bool(re.search(pattern, self.log)) or self.state() in OVER, seconds) and bool(
            re.search(pattern, self.log)
        )

    def processes(self, fits: Callable[[psutil.Process], bool] = lambda _: True) -> list[psutil.Process]:
        """What runs for it on any node, or of that what fits."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_JOB_ID") == self.number and fits(process):
                    mine.append(process)
            except psutil.Error:  # gone, or a zombie
                continue
        return mine

    def rank(self, number: int, command: str) -> list[psutil.Process]:
        """The process of a rank that runs a command of megaqk and has joined the others: it has threads for that."""
        return self.processes(
            lambda process: (
                process.environ().get("SLURM_PROCID") == str(number)
                and command in process.cmdline()
                and process.num_threads() > 1
            )
        )


class Site:
    """A folder with the scripts, from which jobs are submitted.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submit(self, *command: str, env: Mapping[str, str] | None = None) -> Job:
        """Submit `sbatch` arguments, with a log of our own, and return the job.

        Args:
            *command: Flags, a script, its arguments.
            env: Variables for the job.
        """
        log = self.folder / f"job-{len(list(self.folder.glob('job-*')))}.log"
        log.touch()
        flags = ["--parsable", f"--output={log}", "--time=20"]
        number = self.run("sbatch", *flags, *command, env=env).strip()
        return Job(number, log)

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> str:
        """Run a command in the folder and return what it printed."""
        variables = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PREFLIGHT": "0", "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **variables, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout
