"""Memory of a command with all processes that it starts."""

from __future__ import annotations

import threading
import time

import psutil


class PeakMemory(threading.Thread):
    """Largest proportional set size, in GB, of a process and its children while it runs."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.process, self.peak_gb = psutil.Process(pid), 0.0

    def run(self) -> None:
        while True:
            total = 0
            try:
                for process in (self.process, *self.process.children(recursive=True)):
                    try:
                        total += process.memory_full_info().pss
                    except (psutil.NoSuchProcess, psutil.AccessDenied):
                        continue
            except psutil.NoSuchProcess:
                return
            self.peak_gb = max(self.peak_gb, total / 1e9)
            time.sleep(0.5)
