"""Modules whose engine is not installed have no doctests to collect."""

from importlib.util import find_spec

ENGINES = {"flwr": "gcext/flower/*", "nvflare": "gcext/nvflare.py"}

collect_ignore_glob = [glob for package, glob in ENGINES.items() if find_spec(package) is None]
