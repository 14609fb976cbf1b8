"""Packages and their folders; everything else about the project is in pyproject.toml.

The checkout keeps `trainers/` and `dataset_conversion/` at the top level, the installed package nests them, so that
nothing with so general a name lands in site-packages. `trainers/external` is data, not a package: nnU-Net puts the
folder on `sys.path` and imports its one file as a top-level module.
"""

from setuptools import find_packages, setup

NESTED = {"nnunet_qa.trainers": "trainers", "nnunet_qa.dataset_conversion": "dataset_conversion"}

packages = find_packages(include=["nnunet_qa", "nnunet_qa.*"])
for package, folder in NESTED.items():
    packages += [package, *(f"{package}.{name}" for name in find_packages(folder))]

setup(
    packages=packages,
    package_dir=NESTED,
    package_data={"nnunet_qa": ["py.typed"], "nnunet_qa.trainers": ["external/*.py"]},
)
