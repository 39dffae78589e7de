from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version: dict[str, str] = {}
exec((here / "nnunet_oar" / "version.py").read_text(), version)

setup(
    name="nnunet_oar",
    version=version["__version__"],
    description="Organs at risk in CT: cascade trainers, networks and planners as a plug-in to nnU-Net v2",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # trainers/ and planners/ lie beside the library so that they read like nnU-Net's own variants folders.
    package_dir={"nnunet_oar.trainers": "trainers", "nnunet_oar.planners": "planners"},
    packages=find_packages(include=["nnunet_oar", "nnunet_oar.*"]) + ["nnunet_oar.trainers", "nnunet_oar.planners"],
    package_data={"nnunet_oar.evaluation": ["templates/*.html"]},
    install_requires=[
        # nnU-Net renames hooks in minor releases (build_network_architecture in 2.7, external trainers in 2.8).
        "nnunetv2>=2.8,<2.9",
        "torch",
        "numpy",
        "scipy",
        "scikit-image",
        "SimpleITK",
        "nibabel",
        "pydicom>=3",
        "connected-components-3d",
        "surface-distance",
        "matplotlib",
        "tqdm",
        "jinja2",
        # nnU-Net's preprocessing imports distutils, which Python 3.12 has only through setuptools.
        "setuptools<81",
    ],
    extras_require={
        "dask": ["distributed"],
        # compressed files, and DICOM segmentations
        "dicom": ["pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm", "highdicom"],
        "dev": [
            "pytest",
            "hypothesis",
            "psutil",
            "ruff",
            "distributed",
            "pylibjpeg",
            "pylibjpeg-openjpeg",
            "python-gdcm",
            "highdicom",
            "monai",
        ],
    },
    entry_points={"console_scripts": ["nnunet_oar=nnunet_oar.cli:main"]},
)
