"""Sphinx's settings: the guide is Markdown, the API reference is made from the docstrings."""

from __future__ import annotations

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

import gcext

project = "gcext"
author = "The gcext authors"
copyright = author
release = version = gcext.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
nitpicky = True
highlight_language = "none"  # indented blocks are shell lines and byte layouts

myst_heading_anchors = 4

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

nitpick_ignore_regex = [
    # Other projects: their documentation is not fetched, so that a build needs no network.
    ("py:.*", r"(abc|collections|flwr|numpy|nvflare|os|pathlib|rich|torch|typing_extensions)\..*"),
    ("py:class", r"Buffer|Exact|Future|GradBucket|GradScaler|Index|(nn\.)?Module|ProcessGroup"),
    ("py:class", r"Store|Tensor"),
    ("py:class", r"gcext\.(.*\.)?_.*"),  # types of private modules
]

html_theme = "furo"
html_title = f"gcext {release}"
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Show the wire format's example bytes as plain text."""
    app.add_lexer("hex", TextLexer)
