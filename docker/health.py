"""The health check of a container: the runs that it has begun go on.

A run is ill when its process is gone without a word, or when it has recorded nothing for HEALTH_SECONDS (1800).
"""

import os
import socket
import sys
from pathlib import Path

from megaqk.training.run_summary import find_runs, summarise

patience = float(os.environ.get("HEALTH_SECONDS", "1800"))
for path in find_runs(Path("/data/runs")):
    run = summarise(path, str(path))
    if run.host == socket.gethostname() and run.state in ("killed", "running"):
        silent = run.news_seconds or 0.0
        if run.state == "killed" or silent > patience:
            sys.exit(f"{run.run}: {run.state}, last news {silent:.0f} s ago")
