"""Builds the native code with CMake. Everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def torch_dir() -> Path | None:
    """Return the torch package to build against, or None.

    GCEXT_TORCH_DIR, then the importable torch, then the one of the environment that pip installs
    into: under build isolation that one is not importable, but it is the one gcext will run with.
    """
    if given := os.environ.get("GCEXT_TORCH_DIR"):
        return Path(given)
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    target = Path(sysconfig.get_path("platlib")) / "torch"
    return target if target.is_dir() else None


class CMakeBuild(build_ext):
    """One CMake project behind the one extension below."""

    def run(self) -> None:
        """Remember where to install: setuptools clears ``inplace`` while it builds."""
        self.to_sources = bool(self.inplace or self.editable_mode)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        found = torch_dir()
        if found is None:
            sys.exit("gcext: building needs torch >= 2.10. Run `pip install torch` first.")
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
        if not any(shutil.which(compiler) for compiler in compilers):
            tried = ", ".join(compilers)
            sys.exit(f"gcext: building needs a C++17 compiler, found none of {tried}. Install g++.")
        package = (ROOT if self.to_sources else Path(self.build_lib).resolve()) / "gcext"
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        env = {**os.environ, "PATH": os.pathsep.join([*tool_dirs(), os.environ.get("PATH", "")])}
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "--fresh",
            f"-DGCEXT_TORCH_DIR={found}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_dir()}",
            f"-DCMAKE_INSTALL_PREFIX={package.parent}",
        ]  # fmt: skip
        for name in ("GCEXT_CUDA", "GCEXT_CUDA_ARCHS", "GCEXT_WERROR"):
            if name in os.environ:
                configure.append(f"-D{name}={os.environ[name]}")
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=env)
        for stale in [*package.glob("*.so"), package / "_build.json"]:
            stale.unlink(missing_ok=True)  # a _cuda.so of an earlier build must not stay behind
        subprocess.run(["cmake", "--install", str(build)], check=True, env=env)

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: CMake installs straight into the sources of an editable install."""

    def get_outputs(self) -> list[str]:
        return []


def tool_dirs() -> list[str]:
    """Return the folders of the cmake and ninja wheels: an older system cmake must not win."""
    try:
        import cmake
        import ninja
    except ImportError as error:
        sys.exit(
            "gcext: building without isolation needs cmake, ninja, pybind11 and setuptools "
            f"({error}). Install them with pip."
        )
    return [cmake.CMAKE_BIN_DIR, ninja.BIN_DIR]


def pybind11_dir() -> str:
    import pybind11

    return pybind11.get_cmake_dir()


setup(ext_modules=[Extension("gcext._wire", sources=[])], cmdclass={"build_ext": CMakeBuild})
