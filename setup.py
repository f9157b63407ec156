"""What pyproject.toml cannot say: every package that is found, and one that lies elsewhere. ``configs/`` is installed as ``bdh_jax.configs``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bdh_jax", "bdh_jax.*"]), "bdh_jax.configs"],
    package_dir={"bdh_jax.configs": "configs"},
)
