"""Batches that are killed, and batches on a Dask cluster that loses a worker."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from toy_model import make_model

from nnunet_oar.cli import main

CASES = 8


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Model, folder of CTs, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("batch")
    model, images = make_model(folder), folder / "in"
    images.mkdir()
    for index in range(CASES):
        array = np.random.default_rng(index).integers(-1000, 1000, (20, 60, 60)).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(images / f"case{index}.nii.gz"))
    assert main(["predict", "-i", str(images), "-o", str(folder / "whole"), "-m", str(model), "-q"]) == 0
    return model, images, labels_of(folder / "whole")


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in folder.glob("[!.]*.nii.gz")}


def start(*options) -> subprocess.Popen:
    code = "import sys; from nnunet_oar.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "predict", *map(str, options), "-q"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def same(found, expected):
    assert set(found) == set(expected)
    for name, array in found.items():
        assert np.array_equal(array, expected[name])


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_half_there(batch, tmp_path):
    model, images, expected = batch
    options = ("-i", images, "-o", tmp_path / "out", "-m", model, "--continue_prediction")
    for delay in np.random.default_rng(0).uniform(0.0, 0.25, 4):
        process = start(*options)
        before = len(list(tmp_path.glob("out/[!.]*.nii.gz")))
        # until there is something new, or all is done
        while process.poll() is None and len(list(tmp_path.glob("out/[!.]*.nii.gz"))) == before:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        there = labels_of(tmp_path / "out")
        same(there, {name: expected[name] for name in there})
        for name in there:
            json.loads((tmp_path / "out" / name.replace(".nii.gz", ".json")).read_text())
    process = start(*options)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    same(labels_of(tmp_path / "out"), expected)


DIES = """
import os, signal, sys
import numpy, SimpleITK
from nnunet_oar.cli import main

def dies(real, position):
    def write(*args, **options):
        real(*args, **options)
        os.truncate(args[position], os.path.getsize(args[position]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return write

if sys.argv[1] == "labels":
    SimpleITK.WriteImage = dies(SimpleITK.WriteImage, 1)
else:
    numpy.savez_compressed = dies(numpy.savez_compressed, 0)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["labels", "probabilities"])
def test_killed_in_the_middle_of_a_file(batch, tmp_path, what):
    """The writer stops half-way through the first file of its kind."""
    model, images, expected = batch
    out = tmp_path / "out"
    options = ["predict", "-i", images, "-o", out, "-m", model, "-q", "--continue_prediction", "--save_probabilities"]
    killed = subprocess.run([sys.executable, "-c", DIES, what, *map(str, options)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path for path in out.iterdir() if path.name.startswith(".tmp.")]
    assert not list(out.glob("[!.]*.nii.gz")) and not (what == "probabilities" and list(out.glob("[!.]*.npz")))
    assert main(list(map(str, options))) == 0
    same(labels_of(out), expected)
    for name in expected:
        with np.load(out / name.replace(".nii.gz", ".npz")) as stored:
            assert stored["probabilities"].argmax(0).shape == expected[name].shape
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_worker_that_dies_loses_no_case(batch, tmp_path):
    pytest.importorskip("distributed")
    model, images, expected = batch
    address_file = tmp_path / "scheduler.json"

    def dask(command, *options):
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{command}", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    cluster = [dask("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(address_file))]
    try:
        while not address_file.is_file():
            time.sleep(0.1)
        time.sleep(0.5)
        address = json.loads(address_file.read_text())["address"]
        workers = [
            dask(
                "worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(tmp_path)
            )
            for _ in range(2)
        ]
        cluster += workers
        process = start("-i", images, "-o", tmp_path / "out", "-m", model, "--scheduler", address)
        while process.poll() is None and not list(tmp_path.glob("out/[!.]*.nii.gz")):
            time.sleep(0.01)
        os.killpg(workers[0].pid, signal.SIGKILL)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
        same(labels_of(tmp_path / "out"), expected)
    finally:
        for process in cluster:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
