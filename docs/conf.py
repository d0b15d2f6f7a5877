"""How Sphinx builds these pages, in a clone: `python -m sphinx -W -c docs . site`."""

from importlib import metadata

import jax

jax.Array.__qualname__ = jax.Array.__name__ = "Array"  # annotations shall name it so

project = "carve_jax"
author = "The carve_jax authors"
release = version = metadata.version("carve_jax")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The pages lead to files of the whole project, of which the Markdown is shown as pages too.
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "experiments/results/**.md",
    "experiments/claims/README.md",
]
exclude_patterns = [".*", "site", "runs", "build", "dist"]
html_extra_path = ["redirect"]
myst_heading_anchors = 3
default_role = "code"  # docstrings mark code by single backticks
autodoc_typehints = "description"  # shapes are annotations
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
html_theme = "furo"
html_title = "carve_jax"


def setup(app):
    """Escapes the stars of jaxtyping's `*names`, which are no emphasis."""

    def escape(app, what, name, obj, options, lines):
        lines[:] = [x.replace("*", r"\*") if ":type:" in x else x for x in lines]

    app.connect("autodoc-process-docstring", escape, priority=900)  # after napoleon
