"""The documentation site. ``make docs`` builds it, without a network."""

from __future__ import annotations

import inspect
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

DOCS = Path(__file__).parent
os.environ["AIRFLOW_HOME"] = str(DOCS / "_build" / "airflow")  # autodoc imports Airflow, which writes there

from sphinx.search import SearchLanguage  # noqa: E402
from sphinx.util.nodes import make_refnode  # noqa: E402

import airflow_provider_modelscope  # noqa: E402
from airflow_provider_modelscope import exceptions  # noqa: E402

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

REPOSITORY = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
IMAGE = """
```{{image}} {}
:alt: \\3
:class: {}
```
"""
LANGUAGES = {"en": "English", "zh_CN": "中文"}
# Names in docstrings that a page explains without autodoc.
EXPLAINED = {
    "xcoms.StoredImage": ("reference/xcoms", "xcom-images"),
    "hooks.connection.CONNECTION_FIELDS": ("reference/connection", "fields"),
} | {
    f"exceptions.{name}": ("reference/errors", name.lower())
    for name in vars(exceptions)
    if name.endswith("Error")
}

project = "airflow-provider-modelscope"
author = "The airflow-provider-modelscope authors"
project_copyright = author
version = release = airflow_provider_modelscope.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "locale"]
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!airflow_provider_modelscope).*")]  # Python's and Airflow's names

myst_heading_anchors = 4  # the anchors that GitHub gives to headings

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
add_module_names = False
toc_object_entries = False  # the headings say the same

# A translation is a folder of .po files: locale/<language>/LC_MESSAGES. make docs builds it if it is there.
locale_dirs = ["locale"]
gettext_compact = False
gettext_uuid = False
gettext_location = False  # lines move too often

templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "ModelScope provider for Apache Airflow"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_sidebars = {page: [] for page in ("index", "evidence", "development", "changelog")}  # no pages below
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "ModelScope for Airflow"},
    "navbar_align": "left",
    "navbar_end": ["languages", "theme-switcher"],
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


class SearchChinese(SearchLanguage):
    """Finds Chinese by pairs of characters. Sphinx's own class needs a dictionary, and its script fails."""

    lang = "zh"
    language_name = "Chinese"
    js_splitter_code = r"""
var splitQuery = (query) =>
  (query.match(/\p{Script=Han}+|(?:(?!\p{Script=Han})[\p{Letter}\p{Number}_])+/gu) || []).flatMap((word) =>
    /\p{Script=Han}{2}/u.test(word) ? [...word].slice(1).map((end, index) => word[index] + end) : [word]
  );
"""

    def split(self, input: str) -> list[str]:
        """Return the words of a text; of Chinese each pair of characters."""
        words = []
        for chinese, other in re.findall(r"([\u4e00-\u9fff]+)|([^\W\u4e00-\u9fff]+)", input):
            words += [chinese[i : i + 2] for i in range(len(chinese) - 1)] or [chinese or other]
        return words


def setup(app: Sphinx) -> None:
    """Connect what Sphinx does not do by itself."""
    app.add_search_language(SearchChinese)
    app.connect("source-read", adapt_markdown)
    app.connect("autodoc-process-signature", leave_out_signature)
    app.connect("autodoc-process-docstring", describe_parameters)
    app.connect("missing-reference", find_explanation)
    app.connect("html-page-context", offer_languages)


def adapt_markdown(app: Sphinx, page: str, source: list[str]) -> None:
    """Link files outside of these pages at GitHub, and let the theme choose between light and dark images."""
    up = re.escape("../" * (page.count("/") + 1))
    text = re.sub(rf"\]\({up}(?!\.\.)([^)]+)\)", rf"]({REPOSITORY}/blob/main/\1)", source[0])
    source[0] = re.sub(
        r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img src="([^"]+)" alt="([^"]+)">\s*</picture>',
        IMAGE.format(r"\2", "only-light") + IMAGE.format(r"\1", "only-dark"),
        text,
    )


def leave_out_signature(app: Sphinx, what: str, *_: Any) -> tuple[str, None] | None:
    """Leave out the signature of a class: its parameters, up to 30, are listed below it."""
    return ("", None) if what in ("class", "exception") else None


def describe_parameters(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Add to each parameter of a task its default, or that it is required, and mark template fields."""
    if not hasattr(obj, "template_fields"):
        return
    parameters: dict[str, inspect.Parameter] = {}
    for base in reversed(obj.__mro__):
        if base.__module__.startswith("airflow_provider_modelscope") and "__init__" in vars(base):
            parameters |= inspect.signature(vars(base)["__init__"]).parameters
    described: list[str] = []
    for block in re.split(r"\n(?=:|$)", "\n".join(lines), flags=re.MULTILINE):
        described.append(block)
        if found := re.match(r"\n?:param (\w+):", block):
            described.extend(_notes(parameters[found[1]], block, found[1] in obj.template_fields))
    lines[:] = "\n".join(described).split("\n")


def _notes(parameter: inspect.Parameter, block: str, is_template: bool) -> list[str]:
    default = parameter.default
    if default is inspect.Parameter.empty:
        notes = ["Required."]
    elif "Default:" in block:
        notes = []
    else:
        notes = [f"Default: ``{f'{default:.10g}' if isinstance(default, float) else repr(default)}``."]
    notes += ["Template field."] if is_template else []
    return [f"    {' '.join(notes)}"] if notes else []


def find_explanation(app: Sphinx, env: Any, node: Any, content: nodes.TextElement) -> nodes.Node | None:
    """Link a name of ours to the page that explains it."""
    target = node.get("reftarget", "").removeprefix("airflow_provider_modelscope.")
    found = EXPLAINED.get(target) or EXPLAINED.get(f"exceptions.{target}")
    if found is None:
        return None
    page, anchor = found
    return make_refnode(app.builder, node["refdoc"], page, anchor, content)


def offer_languages(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give the template of the language links the languages that this build of the site has."""
    translated = {path.parent.name for path in DOCS.glob("locale/*/LC_MESSAGES")}
    context["languages"] = {code: name for code, name in LANGUAGES.items() if code in translated | {"en"}}
    context["language_code"] = app.config.language
