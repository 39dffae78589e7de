"""What every OAR planner shares: canonical orientation, HU kept, one 3D configuration, nothing of other plans touched."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunet_oar.trainers.base import OARTrainer, refuse_unsupported
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.normalization.default_normalization_schemes import NoNormalization
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from scipy.ndimage import find_objects
from tqdm import tqdm

from nnunet_oar.annotations import Annotations, organ_labels, without_own_keys
from nnunet_oar.axes import anatomical_axes
from nnunet_oar.body_regions import region_names
from nnunet_oar.facts import intensity_facts
from nnunet_oar.files import written_whole
from nnunet_oar.fit import Budget, CaseFacts, DatasetFacts, fit_canvas
from nnunet_oar.instances import find_instances
from nnunet_oar.plan import SECTION, InstancePlan
from nnunet_oar.roi import Box

PLANS_NAME = "nnUNetOARPlans"
CONFIGURATION = "3d_fullres"


class OARPlanner(ExperimentPlanner):
    """Plans for one OAR trainer (`trainer_class`), under a name of their own.

    recipe: "fitted" or "paper"; epochs, iterations: the user's budget, None for the recipe's. Arrays are read in canonical
    orientation (z, y, x), keep their HU, and are resampled with torch.
    """

    trainer_class: type[OARTrainer]

    def __init__(
        self, dataset_name_or_id, gpu_memory_target_in_gb: float = 8, preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = PLANS_NAME, overwrite_target_spacing=None, suppress_transpose: bool = True, *,
        recipe: str = "fitted", epochs: int | None = None, iterations: int | None = None, processes: int = 2,
        disable_progress_bar: bool = False,
    ):  # fmt: skip
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, True
        )
        self.recipe, self.budget = recipe, Budget(gpu_memory_target_in_gb, epochs, iterations)
        self.processes, self.disable_progress_bar = processes, disable_progress_bar
        self._reader = None
        self._refuse_foreign_plans()
        if len(self.dataset_fingerprint["spacings"]) != len(self.dataset):
            # -d of nnU-Net's commands takes numbers alone
            number = convert_dataset_name_to_id(self.dataset_name)
            raise ValueError(
                f"{self.dataset_name}: the fingerprint was made of {len(self.dataset_fingerprint['spacings'])} cases, the data set "
                f"has {len(self.dataset)}; run nnUNetv2_extract_fingerprint -d {number} --clean"
            )

    @property
    def plans_file(self) -> Path:
        return Path(nnUNet_preprocessed) / self.dataset_name / f"{self.plans_identifier}.json"

    def _refuse_foreign_plans(self) -> None:
        """Never overwrite plans, and with them preprocessed data, that another planner made."""
        if not self.plans_file.is_file():
            return
        configurations = load_json(str(self.plans_file))["configurations"]
        if not any(SECTION in configuration for configuration in configurations.values()):
            raise ValueError(
                f"{self.plans_file} was not made by nnunet_oar and is left alone; choose another name for the plans"
            )

    # --- nnU-Net's hooks ---

    def determine_reader_writer(self):
        """The reorienting SimpleITK reader; nibabel's where SimpleITK refuses the header of any image."""
        if self._reader is None:
            self._reader = SimpleITKIOWithReorient
            for case in self.dataset.values():
                for file in (*case["images"], case["label"]):
                    header = sitk.ImageFileReader()
                    header.SetFileName(file)
                    try:
                        header.ReadImageInformation()
                    except RuntimeError as error:
                        if self.dataset_json["file_ending"] not in NibabelIOWithReorient.supported_file_endings:
                            raise ValueError(f"{file} cannot be read: {str(error).splitlines()[-1]}") from None
                        self._reader = NibabelIOWithReorient
                        return self._reader
        return self._reader

    def determine_transpose(self):
        return [0, 1, 2], [0, 1, 2]

    def determine_resampling(self, *args, **kwargs):
        data, seg = {"is_seg": False, "force_separate_z": False}, {"is_seg": True, "force_separate_z": False}
        return resample_torch_fornnunet, data, resample_torch_fornnunet, seg

    def determine_segmentation_softmax_export_fn(self, *args, **kwargs):
        return resample_torch_fornnunet, {"is_seg": False, "force_separate_z": False}

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self):
        """The network normalises: it then sees HU whatever the data set."""
        channels = self.dataset_json["channel_names"]
        return [NoNormalization.__name__] * len(channels), [False] * len(channels)

    # --- planning ---

    def plan_experiment(self) -> dict:
        refuse = {
            "configurations": {CONFIGURATION: {"patch_size": [1, 1, 1], "architecture": {}}},
            "label_manager": "LabelManager",
        }
        refuse_unsupported(type(self).__name__, refuse, CONFIGURATION, self.dataset_json)
        facts, spacing = self._facts()
        plan = self.trainer_class.fit_plan(facts, self.recipe, self.budget)
        canvas = fit_canvas(facts)
        schemes, masks = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        data_fn, data_kwargs, seg_fn, seg_kwargs = self.determine_resampling()
        softmax_fn, softmax_kwargs = self.determine_segmentation_softmax_export_fn()
        median_shape = np.median([case.shape for case in facts.cases], axis=0)
        configuration = {
            "data_identifier": self.generate_data_identifier(CONFIGURATION),
            "preprocessor_name": self.preprocessor_name,
            "batch_size": plan.batch_size,
            "patch_size": canvas,
            "median_image_size_in_voxels": median_shape,
            "spacing": spacing,
            "normalization_schemes": schemes,
            "use_mask_for_norm": masks,
            "resampling_fn_data": data_fn.__name__,
            "resampling_fn_seg": seg_fn.__name__,
            "resampling_fn_data_kwargs": data_kwargs,
            "resampling_fn_seg_kwargs": seg_kwargs,
            "resampling_fn_probabilities": softmax_fn.__name__,
            "resampling_fn_probabilities_kwargs": softmax_kwargs,
            # nnU-Net rebuilds an architecture from old keys where this is missing; the trainer builds the network itself
            "architecture": {
                "network_class_name": self.trainer_class.__name__,
                "arch_kwargs": {},
                "_kw_requires_import": [],
            },
            "batch_dice": False,
            SECTION: plan.to_section(),
        }
        transpose_forward, transpose_backward = self.determine_transpose()
        self.plans = {
            "dataset_name": self.dataset_name,
            "plans_name": self.plans_identifier,
            "original_median_spacing_after_transp": np.median(self.dataset_fingerprint["spacings"], axis=0),
            "original_median_shape_after_transp": np.median(
                self.dataset_fingerprint["shapes_after_crop"], axis=0
            ).round(),
            "image_reader_writer": self.determine_reader_writer().__name__,
            "transpose_forward": transpose_forward,
            "transpose_backward": transpose_backward,
            "configurations": {CONFIGURATION: configuration},
            "experiment_planner_used": type(self).__name__,
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": self.dataset_fingerprint[
                "foreground_intensity_properties_per_channel"
            ],
        }
        self._copy_dataset_json()
        self.save_plans(self.plans)
        return self.plans

    def _facts(self) -> tuple[DatasetFacts, np.ndarray]:
        """Shapes, spacings and organ boxes in canonical orientation (the fingerprint's are in file order), and the spacing to
        work at."""
        labels, annotations = organ_labels(self.dataset_json), Annotations.from_dataset_json(self.dataset_json)
        annotations.check(self.dataset)
        reader = self.determine_reader_writer()()

        def read(name: str):
            case, annotated = self.dataset[name], annotations.labels(name)
            seg, properties = reader.read_seg(case["label"])
            seg = np.maximum(seg[0], 0).astype(np.int32)
            boxes = {
                label: Box(tuple(s.start for s in where), tuple(s.stop for s in where))
                for label, where in enumerate(find_objects(seg), start=1)
                if where is not None and label in annotated
            }
            instances = []
            if self.trainer_class.needs_instances:
                mask = np.isin(seg, sorted(annotated))
                instances = find_instances(mask, InstancePlan.max_instances, voxel_mm=properties["spacing"])
            voxels = np.bincount(seg.ravel())
            volumes = {label: float(voxels[label] * np.prod(properties["spacing"])) / 1000 for label in boxes}
            image = reader.read_images(case["images"])[0][0]
            inside = {label: image[box.slices][seg[box.slices] == label] for label, box in boxes.items()}
            # a voxel that is no number is replaced in training
            finite = {label: values[np.isfinite(values)] for label, values in inside.items()}
            means = {label: float(values.mean(dtype=np.float64)) for label, values in finite.items() if values.size}
            return seg.shape, properties, boxes, len(annotated) == len(labels), instances, volumes, means

        with ThreadPoolExecutor(self.processes) as pool:
            results = pool.map(read, self.dataset)
            progress = tqdm(results, "reading cases", len(self.dataset), disable=self.disable_progress_bar)
            shapes, properties, boxes, complete, instances, volumes, means = zip(*progress, strict=True)
        if not any(boxes):
            raise ValueError(
                f"{self.dataset_name}: no training case holds a voxel of an organ that it annotates (dataset.json)"
            )
        spacings = [list(case["spacing"]) for case in properties]
        self.dataset_fingerprint["spacings"] = spacings
        self.dataset_fingerprint["shapes_after_crop"] = [list(shape) for shape in shapes]
        spacing = self.determine_fullres_target_spacing()
        new_shapes = [
            tuple(int(n) for n in compute_new_shape(shape, old, spacing))
            for shape, old in zip(shapes, spacings, strict=True)
        ]
        cases = [
            CaseFacts(
                new,
                {label: box.rescaled(old, new) for label, box in organs.items()},
                all_annotated,
                [box.rescaled(old, new) for box in of_case],
                millilitres,
                mean_hu,
            )
            for old, new, organs, all_annotated, of_case, millilitres, mean_hu in zip(
                shapes, new_shapes, boxes, complete, instances, volumes, means, strict=True
            )
        ]
        schemes, _ = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        window, from_hu = intensity_facts(
            schemes, self.dataset_fingerprint["foreground_intensity_properties_per_channel"]
        )
        axes = anatomical_axes(properties, self.determine_transpose()[0])
        regions = region_names(self.dataset_json)
        facts = DatasetFacts(tuple(float(s) for s in spacing), cases, labels, axes, window, from_hu, regions)
        return facts, spacing

    def _copy_dataset_json(self) -> None:
        """Training reads the copy in the preprocessed folder, ours and any other trainer's."""
        source, copy = Path(self.raw_dataset_folder) / "dataset.json", self.plans_file.parent / "dataset.json"
        if copy.is_file() and copy.read_bytes() == source.read_bytes():
            return
        others = [
            file.name for file in copy.parent.glob("*.json")
            if file not in (copy, self.plans_file) and file.name not in ("dataset_fingerprint.json", "splits_final.json")
        ]  # fmt: skip
        if (
            copy.is_file()
            and others
            and without_own_keys(load_json(str(copy))) != without_own_keys(load_json(str(source)))
        ):
            raise ValueError(
                f"{source} has changed since {others[0]} was made and differs from {copy}; run nnUNetv2_plan_and_preprocess -d "
                f"{convert_dataset_name_to_id(self.dataset_name)} again, or restore dataset.json"
            )
        with written_whole(copy) as temporary:
            shutil.copyfile(source, temporary)

    def save_plans(self, plans: dict) -> None:
        recursive_fix_for_json_export(plans)
        with written_whole(self.plans_file) as temporary:
            temporary.write_text(json.dumps(plans, indent=4))
