"""Packaging of SceneKD: every folder below ``projects/`` is an importable package."""

from pathlib import Path

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    # torch and torchvision must come from one build; the upper bound is the newest pair tried.
    "torch>=2.11,<2.16",
    "torchvision",
    # The maintained OpenMMLab line. They provide the modules mmengine, mmcv and mmseg; mmsegmentation
    # does not require the other two by itself.
    "onedl-mmengine>=0.10.12,<0.11",
    "onedl-mmcv>=2.3.6,<2.4",
    "onedl-mmsegmentation>=1.4.2,<1.5",
    "numpy>=2",
    "opencv-python",
    "pillow<14",
    "pycocotools>=2.0.7",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "yacs>=0.1.8",
    "lxml>=5",
    "matplotlib",
    "scipy",
    "tensorboard",
    "tqdm",
    "zstandard",
]

# torch writes ONNX with onnxscript; onnxruntime runs what was written, to compare it.
ONNX = ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.5.4"]

EXTRAS = {
    "dev": [
        "pytest",
        "pytest-xdist",
        "ruff",
        "mypy",
        "scikit-learn",
        "torchmetrics",
        "types-tqdm",
        "types-PyYAML",
        *ONNX,
        "timm",
        "ninja",  # builds the kernels of packed bits, with a compiler where there is one
    ],
    # Not on a package registry: pip builds it from its public source.
    "detectron2": [
        "detectron2 @ git+https://github.com/facebookresearch/detectron2.git",
        # Its model_zoo imports pkg_resources, which newer setuptools no longer ship.
        "setuptools>=77.0.3,<82",
    ],
    "onnx": ONNX,
    "timm": ["timm"],
}

setup(
    name="scenekd",
    version="0.1.0",
    description="Knowledge distillation for partly labelled scene understanding, "
    "on top of detectron2 and MMSegmentation",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": "projects"},
    packages=find_packages("projects"),
    package_data={
        "": [
            "*.yaml",
            "csrc/*.cpp",
            "experiments/*.yaml",
            "experiments/presets/*.yaml",
            "pairs/*.yaml",
            "py.typed",
        ]
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
)
