"""nnunet_oar report: one file with everything in it, right in a browser, on a phone and on paper."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_oar.cli import main

LABELS = {"background": 0, "heart": 1, "lung_left": 2}
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def write(path, array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 3.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five cases, the later the worse; one organ missed, warnings in one manifest."""
    folder = tmp_path_factory.mktemp("report")
    for index in range(5):
        case, truth = f"case_{index}", np.zeros((14, 30, 32), np.uint8)
        truth[3:11, 6:20, 5:14], truth[4:10, 8:22, 18:27] = 1, 2
        found = np.roll(truth, index, axis=2)
        if index == 2:
            found[found == 2] = 0
        ct = np.where(truth > 0, 40, -700).astype(np.int16)
        write(folder / "images" / f"{case}_0000.nii.gz", ct)
        write(folder / "ref" / f"{case}.nii.gz", truth)
        write(folder / "pred" / f"{case}.nii.gz", found)
        write(folder / "other" / f"{case}.nii.gz", np.roll(truth, 6, axis=2))
    model = {"trainer": "OARCascadeTrainer", "dataset": "D", "plans": "P", "recipe": "fitted", "checkpoint": "c.pth"}
    manifest = {
        "warnings": ["lung_left is <smaller> than in training & that is odd"],
        "seconds": {"read": 1.0, "networks": 2.0},
        "device": "cpu",
        "precision": "bfloat16",
        "threads": 2,
        "versions": {"nnunet_oar": "0.1.0", "torch": "2"},
        "options": {"postprocessing": True},
        "postprocessing": {"heart": {"added": 5, "removed": 2, "components_removed": 1}},
        "model": model | {"sha256": {"0": "abc"}},
    }
    (folder / "pred" / "case_2.json").write_text(json.dumps(manifest))
    # of another tool
    (folder / "pred" / "case_3.json").write_text('{"warnings": "a"}')
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    options = ["-i", "pred", "-ref", "ref", "-o", "scores", "--against", "other"]
    options = [str(folder / text) if not text.startswith("-") else text for text in options]
    assert (
        main(
            ["evaluate", *options, "--dataset-json", str(folder / "dataset.json"), "-np", "1", "--disable_progress_bar"]
        )
        == 0
    )
    return folder


def report(folder, *options, output="report.html") -> int:
    return main(
        [
            "report",
            "-i",
            str(folder / "scores"),
            "-o",
            str(folder / output),
            "--disable_progress_bar",
            *map(str, options),
        ]
    )


@pytest.fixture(scope="module")
def page(folder):
    assert report(folder, "--images", folder / "images", "--worst", 3, "--title", "A & B") == 0
    return (folder / "report.html").read_text()


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_it_needs_nothing_else(page):
    tags = Tags(page).found
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe", "object", "base")]
    sources = [(of.get("src") or "").partition(",")[0] for tag, of in tags if tag == "img"]
    assert sources == ["data:image/svg+xml;base64"] * 2 + ["data:image/png;base64"] * 3
    assert not re.findall(r"(?:url\(|@import|srcset=)\s*['\"]?(?!#)", page)
    assert all((of.get("href") or of.get("xlink:href") or "#").startswith("#") for _, of in tags)
    assert all(of.get("alt") for tag, of in tags if tag == "img")


def test_what_it_says(page, folder):
    scores = json.loads((folder / "scores" / "scores.json").read_text())
    assert "<title>A &amp; B</title>" in page and f"{scores['mean_of_organs']['dice']['mean']:.3f}" in page
    means = {case: np.mean([of["dice"] for of in organs.values()]) for case, organs in scores["cases"].items()}
    assert (
        re.findall(r"<h3>(case_\d): mean Dice", page) == sorted(means, key=means.get)[:3]
        and "3 of 5 cases are shown" in page
    )
    assert "lung_left is &lt;smaller&gt; than in training &amp; that is odd" in page
    for text in (
        "fold 0: abc",
        "OARCascadeTrainer",
        "fitted recipe",
        "3.0 on average of 1",
        "Against other",
        "<td>missed</td>",
    ):
        assert text in page, text
    heart = scores["organs"]["heart"]["dice"]
    assert f"{heart['low']:.3f} to {heart['high']:.3f}" in page
    assert "Dice of each organ; medians: heart" in page and "heart 5 voxels added, 2 removed" in page


def test_without_images_and_comparison(folder):
    scores = json.loads((folder / "scores" / "scores.json").read_text())
    del scores["against"]
    (folder / "plain.json").write_text(json.dumps(scores))
    assert main(["report", "-i", str(folder / "plain.json"), "-o", str(folder / "plain.html")]) == 0
    page = (folder / "plain.html").read_text()
    assert "image/png" not in page and "Against" not in page and len(re.findall("<article>", page)) == 5


def test_what_changed_since_is_refused(folder, tmp_path, capsys):
    for name in ("images", "pred", "ref", "scores"):
        shutil.copytree(folder / name, tmp_path / name)
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    scores |= {"predictions": str(tmp_path / "pred"), "references": str(tmp_path / "ref")}
    (tmp_path / "scores" / "scores.json").write_text(json.dumps(scores))
    assert report(tmp_path, "--images", tmp_path / "images") == 0
    shutil.copy(tmp_path / "ref" / "case_2.nii.gz", tmp_path / "pred" / "case_2.nii.gz")
    assert report(tmp_path, "--images", tmp_path / "images") == 1
    assert "case_2: its label maps have changed since they were scored" in capsys.readouterr().err
    shutil.copy(folder / "pred" / "case_2.nii.gz", tmp_path / "pred" / "case_2.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "images" / "case_2_0000.nii.gz"))
    image.SetSpacing((1.0, 1.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "images" / "case_2_0000.nii.gz"))
    assert report(tmp_path, "--images", tmp_path / "images") == 1
    assert "case_2: prediction and reference must lie on the same grid" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, problem",
    [
        (("-i", "nowhere"), "cannot be read as scores"),
        (("-i", "pred/case_2.json"), "does not hold scores"),
        (("-i", "dataset.json"), "does not hold scores"),
        (("-o", "report.pdf"), "must be a file that ends in .html"),
        (("--images", "nowhere"), "is not a folder"),
        (("--worst", "-1"), "--worst must be 0 or more"),
        (("--images", "ref"), "case_2_0000.nii.gz is not there"),
    ],
)
def test_refusals(folder, options, problem, capsys):
    options = [text if text.startswith("-") else str(folder / text) for text in options]
    assert report(folder, *options, output="new.html") == 1
    assert problem in capsys.readouterr().err and not (folder / "new.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_in_a_browser(page, folder, width):
    """Nothing reaches beyond the window, and the picture is neither blank nor cut off at the top."""
    import matplotlib.image

    # a headless window cannot be as narrow as a phone: a frame can
    load = "document.title = contentDocument.documentElement.scrollWidth"
    frame = f"<iframe src='report.html' width='{width}' height='900' onload='{load}'></iframe>"
    (folder / "frame.html").write_text(f"<html><body>{frame}</body></html>")
    run = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=4000",
    ]
    dom = subprocess.run(
        [*run, "--dump-dom", f"file://{folder / 'frame.html'}"], capture_output=True, text=True, timeout=120
    ).stdout
    title = re.search(r"<title>(\d+)</title>", dom)
    assert title is not None and int(title[1]) <= width, dom[:400]
    shot = folder / f"shot{width}.png"
    subprocess.run(
        [
            *run,
            "--hide-scrollbars",
            f"--window-size={width},1500",
            f"--screenshot={shot}",
            f"file://{folder / 'report.html'}",
        ],
        capture_output=True,
        timeout=120,
    )
    picture = matplotlib.image.imread(shot)[..., :3]
    rows = picture.std(axis=(1, 2)) > 0.01
    # text and plots from the top to the bottom of the window
    assert rows[:150].any() and rows[-300:].any() and 0.2 < rows.mean() < 1
    assert picture.mean() > 0.7
