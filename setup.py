"""Packaging: the pipeline by itself; the trainer, the cloud and the tools as extras."""

import re
from pathlib import Path

from setuptools import find_packages, setup

(VERSION,) = re.findall(r'__version__ = "(.+)"', Path("headct/__init__.py").read_text())
TRAINER = [
    "jinja2",
    "keras>=3.12",
    "markupsafe",
    "matplotlib",
    "pandas",
    "platformdirs",
    "psutil",
    "pydantic>=2.12",
    "rich",
    "scikit-learn",
    "scipy",
    "tensorboard",
]
EXPORT = ["onnx", "onnxruntime", "tf2onnx"]

setup(
    name="headct-shards",
    version=VERSION,
    description="Head-CT DICOM files to stratified TFRecord shards, and shards to trained models.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["headct*", "beam_pipeline*", "trainer*"]),
    package_data={
        "headct": ["py.typed", "*.jinja"],
        "beam_pipeline": ["py.typed"],
        "beam_pipeline.verify": ["*.json"],
        "beam_pipeline.card": ["*.jinja"],
        "trainer": ["py.typed"],
        "trainer.report": ["*.jinja"],
    },
    install_requires=[
        "apache-beam>=2.77",
        "boto3",  # the credentials of AWS: profiles, single sign-on, roles
        "google-crc32c",
        # One BSD wheel decodes every compressed CT syntax, by libjpeg-turbo, CharLS and OpenJPEG:
        # the retired progressive JPEG and HTJ2K too. pylibjpeg-libjpeg is GPL, and GDCM brings a
        # JPEG library of its own, an old one.
        "imagecodecs>=2026.3.6",
        "isal",
        "jsonschema",
        "jinja2",
        "numpy",
        "obstore>=0.12",  # S3, Google Cloud Storage and Azure
        "opencv-python-headless>=5",
        "packaging",
        "pandas",
        "protobuf",
        "pyarrow",
        "pydantic>=2.12",
        "pydicom>=3.0",
        "rich",
        "tenacity",
        "wcmatch",
    ],
    extras_require={
        "trainer": [*TRAINER, "tensorflow>=2.21"],
        "cuda": [*TRAINER, "tensorflow[and-cuda]>=2.21"],
        # Beside `trainer`: TensorFlow, without a GPU, still reads the shards.
        "jax": ["jax"],
        "jax-cuda": ["jax[cuda13]"],
        "onnx": EXPORT,
        "gcp": ["apache-beam[gcp]>=2.77"],
        "mutants": ["cosmic-ray"],
        "dev": [
            *EXPORT,
            "apache-beam[gcp]>=2.77",
            "axe-playwright-python",  # axe-core and Playwright; the browser is Debian's
            "filelock",
            "grain",
            "hypothesis",
            "ipykernel",
            "jax",
            "mypy",
            "nbclient",
            "nbformat",
            "pandas-stubs",
            "pytest",
            "pytest-cov",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "tensorflow-datasets",
            "types-jsonschema",
            "types-protobuf",
            "webdataset",
        ],
    },
)
