"""nnunet_oar predict: contours of CTs from a trained model, fast, and with what there is to distrust."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_oar.environment import dataset_folder

if TYPE_CHECKING:
    from nnunet_oar.inference.cases import Case

FORMATS = ("nifti", "rtstruct", "dicomseg")
# of a model in $nnUNet_results: option, what it is, default
NAMES = (
    ("-tr", "TRAINER", "OARCascadeTrainer"),
    ("-p", "PLANS", "nnUNetOARPlans"),
    ("-c", "CONFIGURATION", "3d_fullres"),
)
HELP = "contour the organs of CTs with a trained model: as nnUNetv2_predict, but in seconds on a CPU, with a report per case"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", type=Path, metavar="MODEL_FOLDER", help="TRAINER__PLANS__CONFIGURATION; or name it by -d")
    parser.add_argument("-d", metavar="ID", help="data set, number or name, of a model in $nnUNet_results")
    for option, metavar, default in NAMES:
        parser.add_argument(option, metavar=metavar, help=f"with -d (default: {default})")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds, averaged; default: all that are trained")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint in fold_X")
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="load a checkpoint that holds more than weights and numbers"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        type=Path,
        metavar="IN",
        help="a CT (.nii.gz, .nii, .nrrd, .mha, .mhd), a folder of them, a folder of DICOM files, or one of such folders",
    )
    parser.add_argument("-o", type=Path, metavar="OUT", help="folder for CASE.nii.gz (as the CT's file) and CASE.json")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="of the results; default: as the CT's file, nifti for DICOM; the others are DICOM",
    )
    parser.add_argument("--series", metavar="UID", help="which CT series of the DICOM files, where there are several")
    parser.add_argument(
        "--resample", action="store_true", help="accept DICOM slices that are uneven or of a tilted gantry"
    )
    parser.add_argument(
        "--roi-names",
        type=Path,
        metavar="FILE",
        help='JSON {"ORGAN": "NAME", ...}: names in DICOM results, as of TG-263',
    )
    add_model_arguments(parser)
    parser.add_argument("-device", default="auto", metavar="DEVICE", help="cpu, cuda, cuda:N, mps or auto")
    parser.add_argument("--organs", nargs="+", metavar="NAME", help="keep these organs only; labels stay the model's")
    parser.add_argument(
        "--list-organs", action="store_true", help="print the model's labels and organs, predict nothing"
    )
    parser.add_argument("--save_probabilities", action="store_true", help="also CASE.npz and CASE.pkl, as nnU-Net does")
    parser.add_argument("--preview", action="store_true", help="also CASE.png, three slices with the contours")
    parser.add_argument("--statistics", action="store_true", help="also statistics.csv and .json: volumes and mean HU")
    parser.add_argument(
        "--remove-small", type=float, default=0.0, metavar="MM3", help="drop components of an organ below this volume"
    )
    parser.add_argument("--disable_postprocessing", action="store_true", help="leave out what the plans say")
    parser.add_argument("--continue_prediction", action="store_true", help="leave out cases that OUT holds already")
    parser.add_argument("-num_parts", type=int, default=1, help="how many such commands share the cases of IN")
    parser.add_argument("-part_id", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="hand the cases to the workers of this Dask scheduler")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar, for log files")
    parser.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors only")


def run(args: argparse.Namespace) -> int:
    if args.list_organs:
        from nnunet_oar.inference.model import load_model

        model = load_model(model_folder(args), args.f, args.chk, args.trust_checkpoint)
        for label, organ in enumerate(model.plan.organs, start=1):
            print(f"{label:3d}  {organ}")
        return 0
    if args.i is None or args.o is None:
        raise ValueError("-i and -o are needed: what to predict, and the folder for the results")
    if args.num_parts < 1:
        raise ValueError(f"-num_parts must be at least 1, got {args.num_parts}")
    if not 0 <= args.remove_small < float("inf"):
        raise ValueError(f"--remove-small must be mm^3, 0 or more, got {args.remove_small}")
    if not 0 <= args.part_id < args.num_parts:
        raise ValueError(f"-part_id must lie in 0 to {args.num_parts - 1}, with -num_parts {args.num_parts}")
    if args.o.exists() and not args.o.is_dir():
        raise ValueError(f"-o: {args.o} is a file; name a folder")
    if args.save_probabilities and args.format not in (None, "nifti"):
        raise ValueError("--save_probabilities is for results in nifti")
    return predict(args)


def predict(args: argparse.Namespace) -> int:
    import warnings

    from tqdm import tqdm

    from nnunet_oar.dicom.segmentation import require_highdicom
    from nnunet_oar.files import remove_leftovers
    from nnunet_oar.inference.batch import Settings, predict_cases, predict_on_cluster
    from nnunet_oar.inference.cases import (
        DicomCase,
        Outputs,
        find_cases,
        require_other_folder,
        write_statistics,
    )

    # about values in headers that break the standard, of which clinics are full
    warnings.filterwarnings("ignore", category=UserWarning, module="pydicom|highdicom")
    require_other_folder(args.i, args.o)
    folder = model_folder(args)
    settings = Settings(
        str(folder.resolve()),
        args.device,
        args.f and tuple(args.f),
        args.chk,
        args.organs and tuple(args.organs),
        args.remove_small,
        not args.disable_postprocessing,
        args.trust_checkpoint,
    )
    # here, too, where a cluster predicts: what is wrong with the model is said once and at once
    predictor = settings.load()
    if args.format == "dicomseg":
        require_highdicom()
    # workers may be in other folders
    source = args.i.absolute()
    found = find_cases(source, predictor.model.channels, args.format, args.series, args.resample)
    cases = found[args.part_id :: args.num_parts]
    if args.save_probabilities and any(isinstance(case, DicomCase) for case in found):
        raise ValueError(
            "--save_probabilities needs images in files of their own, as nnU-Net's; convert the DICOM series"
        )
    names = region_names(args.roi_names, predictor.plan.organs)
    for other in passed_over(source, found):
        print(f"passed over, as no image lies in it: {other}", file=sys.stderr)
    outputs = Outputs(args.save_probabilities, args.preview, args.format or "nifti", names)
    args.o.mkdir(parents=True, exist_ok=True)
    if args.num_parts == 1 and not args.scheduler:
        remove_leftovers(args.o)
    todo = cases
    if args.continue_prediction:
        todo = [case for case in cases if not case.done(args.o, outputs, predictor)]
        again = sum(case.output(args.o).exists() for case in todo)
        if again:
            print(
                f"{again} cases are there damaged, of another CT or model or with other options: they are predicted again"
            )
        if len(todo) < len(cases) and not args.quiet:
            print(f"{len(cases) - len(todo)} of {len(cases)} cases are there already and stay as they are")
    copy_descriptions(folder, args.o)
    if args.scheduler:
        meant = replace(settings, hashes=tuple(predictor.model.hashes.items()))
        outcomes = predict_on_cluster(args.scheduler, meant, todo, args.o, outputs)
    else:
        outcomes = predict_cases(predictor, todo, args.o, outputs)
    hidden = args.quiet or args.disable_progress_bar
    failed = set()
    for outcome in tqdm(outcomes, "predicting", len(todo), disable=hidden, unit="CT"):
        for text in outcome.warnings:
            tqdm.write(f"{outcome.case.name}: {text}", file=sys.stderr)
        if outcome.error is not None:
            failed.add(outcome.case.name)
            tqdm.write(f"nnunet_oar predict: {outcome.error}", file=sys.stderr)
            if outcome.case.output(args.o).exists():
                tqdm.write(f"{outcome.case.output(args.o)} is of an earlier run", file=sys.stderr)
        elif not args.quiet:
            tqdm.write(f"{outcome.case.name}: {outcome.case.output(args.o)}, {outcome.seconds:.1f} s")
            sys.stdout.flush()  # a log file shows how far it is
    if args.statistics:
        part = f"_part{args.part_id}" if args.num_parts > 1 else ""
        write_statistics([case for case in cases if case.name not in failed], args.o, f"statistics{part}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} cases were not predicted, see above")
    return 0


def passed_over(source: Path, cases: Sequence[Case]) -> list[Path]:
    """Sub-folders of a folder of patients that are none of the cases."""
    used = {case.files[0] for case in cases}
    if not source.is_dir() or not all(folder.parent == source and folder.is_dir() for folder in used):
        return []
    return sorted(
        path for path in source.iterdir() if path.is_dir() and path not in used and not path.name.startswith(".")
    )


def region_names(file: Path | None, organs: Sequence[str]) -> dict[str, str]:
    """Organ -> name in DICOM results, of a JSON file. Raises ValueError for what it cannot mean."""
    from nnunet_oar.dicom.rtstruct import require_names

    names: dict[str, str] = {}
    if file is not None:
        try:
            names = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"--roi-names: {file} cannot be read: {error}") from error
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f'--roi-names: {file} must hold {{"ORGAN": "NAME", ...}}')
        unknown = sorted(set(names) - set(organs))
        if unknown:
            raise ValueError(f"--roi-names: the model has no organ {unknown[0]!r}; it has {', '.join(organs)}")
        require_names([names.get(organ, organ) for organ in organs])
    return names


def model_folder(args: argparse.Namespace) -> Path:
    """Of -m, or of -d, -tr, -p and -c in $nnUNet_results."""
    if (args.m is None) == (args.d is None):
        raise ValueError("name the model either by -m MODEL_FOLDER or by -d ID (with -tr, -p and -c)")
    if args.m is not None:
        given = [option for option, _, _ in NAMES if getattr(args, option[1:])]
        if given:
            raise ValueError(f"{given[0]} goes with -d; with -m the folder says it all, {args.m}")
        return args.m
    dataset = dataset_folder("nnUNet_results", args.d, "", "was it trained?")
    folder = dataset / "__".join(getattr(args, option[1:]) or default for option, _, default in NAMES)
    if not folder.is_dir():
        there = sorted(path.name for path in dataset.iterdir() if path.is_dir())
        raise ValueError(f"{dataset} holds no {folder.name}, but {', '.join(there) or 'nothing'}; see -tr, -p and -c")
    return folder


def copy_descriptions(model: Path, output: Path) -> None:
    """As nnUNetv2_predict leaves them beside its results, where nnUNetv2_ensemble and nnunet_oar postprocessing look for them."""
    from nnunet_oar.files import written_whole

    for name in ("dataset.json", "plans.json"):
        with written_whole(output / name, shared=True) as temporary:
            temporary.write_bytes((model / name).read_bytes())
