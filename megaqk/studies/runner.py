"""The runs of a study as processes of their own, several at a time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from megaqk.analysis.probe import ANALYSIS_FILE
from megaqk.config.loading import dump_config
from megaqk.errors import AGAIN, FAULT
from megaqk.runtime import signals
from megaqk.runtime.files import os_errors_named, written_whole
from megaqk.studies.plan import Run, Study, check_same
from megaqk.training.run_folder import RunFolder
from megaqk.training.run_summary import summarise

OUTPUT_FILE = "output.log"
"""What the processes of a run print, in its folder."""
_POLL_SECONDS = 0.2


class Runner:
    """Brings runs of a study to their ends.

    Args:
        study: Theirs.
        jobs: How many at a time.
        gpus: What CUDA may see, divided over the jobs; none of them leaves that as it is.
    """

    def __init__(self, study: Study, jobs: int, gpus: Sequence[str] = ()) -> None:
        self._study = study
        self._jobs = jobs
        self._on: set[subprocess.Popen[bytes]] = set()
        self._slots: SimpleQueue[Sequence[str]] = SimpleQueue()
        for job in range(jobs):
            self._slots.put(gpus[job * study.processes : (job + 1) * study.processes])

    def is_done(self, run: Run) -> bool:
        """Whether nothing is left to do of a run."""
        return RunFolder(run.folder).is_finished() and (not self._study.spec.analysis or _is_analysed(run))

    def run(self, runs: Sequence[Run], command: str) -> int:
        """Go through runs, passing over those that are done.

        A run that fails leaves the others alone. Asked to stop, those that are on save and end.

        Args:
            runs: Some of the study.
            command: What runs all of it, for the report.

        Returns:
            An exit status: where runs fail that of all of them, or a fault if they do not agree.

        Raises:
            UserError: A folder holds another run; nothing has been started or written then.
        """
        for run in runs:
            check_same(run)
        self._study.keep(command)
        left = [run for run in runs if not self.is_done(run)]
        print(f"{self._study.folder}: {len(runs)} runs, {len(runs) - len(left)} of them done", flush=True)
        with signals.stop_signals(), ThreadPoolExecutor(self._jobs) as pool:
            results = [pool.submit(self._bring_to_end, run) for run in left]
            while not all(result.done() for result in results):
                time.sleep(_POLL_SECONDS)
                if signals.requested():
                    self._end_all()
        failed = [status for result in results if (status := result.result()) not in (0, AGAIN)]
        open_ends = sum(not self.is_done(run) for run in runs)
        if failed:
            again = "the same command tries them again"
            sys.stderr.write(f"megaqk: error: {len(failed)} of {len(runs)} runs failed; {again}\n")
            return failed[0] if len(set(failed)) == 1 else FAULT
        if open_ends:
            sys.stderr.write(f"megaqk: stopped with {open_ends} of {len(runs)} runs to go; the same command goes on\n")
        return AGAIN if open_ends else 0

    def _bring_to_end(self, run: Run) -> int:
        if signals.requested():
            return AGAIN
        began, gpus = time.monotonic(), self._slots.get()
        try:
            status = self._train(run, gpus)
            if status == 0 and not self.is_done(run):
                status = self._process(run, ["probe", str(run.folder), "--initial"], gpus)
        finally:
            self._slots.put(gpus)
        if status != AGAIN:
            ended = summarise(run.folder, run.name)
            what = ended.last_words or _last_line(run.folder / OUTPUT_FILE) or f"status {status}"
            said = what if status else f"validation loss {ended.valid_loss:.4f}"
            print(f"{run.name}: {'failed: ' if status else ''}{said} ({time.monotonic() - began:.0f} s)", flush=True)
        return status

    def _train(self, run: Run, gpus: Sequence[str]) -> int:
        if RunFolder(run.folder).is_finished():
            return 0
        with os_errors_named(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
        wanted = run.folder / "study-config.yaml"
        with written_whole(wanted) as beside:
            beside.write_text(dump_config(run.config))
        processes = self._study.processes
        several = ["--processes", str(processes)] if processes > 1 else []
        return self._process(run, ["pretrain", str(wanted), *several], gpus)

    def _process(self, run: Run, command: Sequence[str], gpus: Sequence[str]) -> int:
        # One thread a process unless the environment says more: several runs share the cores.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        with (run.folder / OUTPUT_FILE).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "megaqk", *command], stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        self._on.add(process)
        try:
            status = process.wait()
        finally:
            self._on.discard(process)
        return AGAIN if signals.requested() and status else status

    def _end_all(self) -> None:
        """Pass the request on, once to each: a second one would end a run without saving."""
        while self._on:
            self._on.pop().terminate()


def _is_analysed(run: Run) -> bool:
    """Whether there is an analysis from the initial weights to the last step, as a user's own need not be."""
    try:
        steps = json.loads((run.folder / ANALYSIS_FILE).read_bytes())["steps"]
        return bool(steps[0] == 0 and steps[-1] == run.config.training.steps)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else ""
