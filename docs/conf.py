"""How Sphinx builds these pages, in a clone: `python -m sphinx -W --keep-going -c docs . site`."""

from carve_jax import __version__

project = "carve_jax"
author = "The carve_jax authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The pages lead to files of the whole project, of which the Markdown is shown as pages too.
root_doc = "docs/index"
include_patterns = ["docs/*.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/results/**.md"]
exclude_patterns = [".*", "site", "runs", "build", "dist"]
html_extra_path = ["redirect"]
myst_heading_anchors = 3
default_role = "code"  # docstrings mark code by single backticks
autodoc_typehints = "none"  # docstrings say shapes and types
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
html_theme = "furo"
html_title = "carve_jax"
