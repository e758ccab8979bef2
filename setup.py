"""Builds the native code with CMake. Everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
NO_TORCH = """gcext: building needs an installed torch >= 2.10, found none. Install it first:
  pip install torch --index-url https://download.pytorch.org/whl/cpu   the CPU build, 0.2 GB
  pip install torch                                                    with CUDA, several GB
Where it is installed but a build environment hides it: set GCEXT_TORCH_DIR to its package folder,
python -c "import torch; print(torch.__path__[0])"."""


def torch_dir() -> Path:
    """Return the torch package to build against; exit with the remedy where there is none.

    GCEXT_TORCH_DIR, then the importable torch, then those of the environment that is installed
    into, of the activated one and of the base Python: under build isolation they are not
    importable, but one of them is the torch that gcext will run with.
    """
    if given := os.environ.get("GCEXT_TORCH_DIR"):
        return Path(given)
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    prefixes = [sys.prefix, os.environ.get("VIRTUAL_ENV"), sys.base_prefix]
    folders = [sysconfig.get_path("platlib", vars={"platbase": each}) for each in prefixes if each]
    for folder in [sysconfig.get_path("platlib"), *folders]:
        if (Path(folder) / "torch").is_dir():
            return Path(folder) / "torch"
    sys.exit(NO_TORCH)


class Metadata(dist_info):
    """pip asks for it before it downloads what gcext depends on: gigabytes, for torch with CUDA."""

    def run(self) -> None:
        torch_dir()
        super().run()


class Packages(build_py):
    """The packages; a wheel also holds bench/, as gcext._bench, for ``gcext bench``."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "gcext" / "_bench"
            target.mkdir(parents=True, exist_ok=True)
            for module in (ROOT / "bench").glob("*.py"):
                shutil.copy(module, target)


class CMakeBuild(build_ext):
    """One CMake project behind the one extension below."""

    def run(self) -> None:
        """Remember where to install: setuptools clears ``inplace`` while it builds."""
        self.to_sources = bool(self.inplace or self.editable_mode)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        found = torch_dir()
        # CXX may hold a launcher and options, such as `ccache g++`; CMake splits it likewise.
        compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
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


setup(
    ext_modules=[Extension("gcext._wire", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": Packages, "dist_info": Metadata},
)
