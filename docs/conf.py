"""The documentation's settings. `make docs` builds it, with warnings as errors."""

import sys
from pathlib import Path

import divjax

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "divjax"
author = copyright = "divjax developers"
version = release = divjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    # Of this folder.
    "documented_names",
    "pages_from_elsewhere",
    "readable_signatures",
    "unicode_docstrings",
]
exclude_patterns = ["_build", "extensions"]
html_theme = "furo"
html_title = f"divjax {release}"

# Mathematics between dollars; headings may be linked to.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Notebooks are shown as they are written: their figures are made where they are run.
nb_execution_mode = "off"

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# A name in backticks is a link if it is documented, and code if not. A full name must be: it is
# how pages refer to the reference.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?s)(?!divjax\.).*"),
    ("py:.*", r"divjax\.(core\.\w+|tables\.trees)"),  # modules that are not public
]
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    # Up to these classes, whose members are the same in all that derive from them.
    "inherited-members": "Divergence,Generator,Mixture,Outcome,Protocol,_Power,tuple",
}
autodoc_typehints = "none"  # `readable_signatures` writes them
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
# A signature that is longer has a line for each parameter.
maximum_signature_line_length = 88

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
