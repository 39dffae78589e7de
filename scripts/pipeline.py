"""What the scripts share: nnU-Net's folders and settings, and running its commands with the time and memory that each took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from nnunet_oar.environment import EXT_TRAINER, FOLDERS, ext_trainer_with_plugin


class Pipeline:
    """Commands in an nnU-Net of their own below `folder`, whatever the user's variables say."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.raw, self.preprocessed, self.results = (self.folder / name for name in FOLDERS)
        for path in (self.raw, self.preprocessed, self.results):
            path.mkdir(parents=True, exist_ok=True)
        # nnU-Net starts 8 processes by default, which swamps a small machine
        processes = str(max(1, min(4, os.cpu_count() or 1)))
        self.environment = os.environ | {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            EXT_TRAINER: ext_trainer_with_plugin(os.environ.get(EXT_TRAINER)),
            "nnUNet_def_n_proc": processes,
            # nnU-Net's default is 12
            "nnUNet_n_proc_DA": str(max(1, min(12, os.cpu_count() or 1))),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        self.seconds: dict[str, float] = {}

    def run(self, step: str, command: str) -> None:
        """Run one command line, show it, log its output in FOLDER/STEP.log; raises RuntimeError with the log's end if it fails."""
        log = self.folder / f"{step}.log"
        print(f"\n$ {command}", flush=True)
        start = time.perf_counter()
        with open(log, "w") as file:
            result = subprocess.run(command.split(), env=self.environment, stdout=file, stderr=subprocess.STDOUT)
        self.seconds[step] = time.perf_counter() - start
        if result.returncode:
            tail = "\n".join(log.read_text().splitlines()[-30:])
            raise RuntimeError(f"{command!r} failed with exit status {result.returncode}; the end of {log}:\n{tail}")
        print(f"  {self.seconds[step]:.0f} s; output in {log}", flush=True)

    def timed(self, step: str, command: str) -> tuple[list[tuple[float, str]], float]:
        """As run; returns (seconds since its start, line) of the output, at last "end", and the peak memory in GB."""
        from memory import PeakMemory  # needs the extra "dev", which the demo does without

        print(f"\n$ {command}", flush=True)
        start, lines = time.perf_counter(), []
        environment = self.environment | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command.split(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        memory = PeakMemory(process.pid)
        memory.start()
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line.rstrip()))
        (self.folder / f"{step}.log").write_text("\n".join(f"{seconds:8.1f} {line}" for seconds, line in lines))
        if process.wait():
            raise RuntimeError(f"{command!r} failed; see {self.folder / step}.log")
        lines.append((time.perf_counter() - start, "end"))
        self.seconds[step] = lines[-1][0]
        return lines, memory.peak_gb


def stock_prediction(model: Path, images: Path, output: Path) -> str:
    """nnUNetv2_predict with fold 0 of a model folder, RESULTS/DATASET/TRAINER__PLANS__CONFIGURATION."""
    trainer, plans, configuration = model.name.split("__")
    return (
        f"nnUNetv2_predict -d {model.parent.name} -i {images} -o {output} -tr {trainer} -p {plans} -c {configuration} -f 0 "
        f"-device {best_device()} -npp 1 -nps 1"
    )


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
