"""Configuration of Sphinx for both languages. `python -m tools.site` sets `language`."""

import gettext
import posixpath
from typing import Any

from sphinx.application import Sphinx

from tools.site.chinese_search import ChineseSearch
from tools.site.documents import CHINESE, ENGLISH, HOME, OTHER_LANGUAGE, ROOT, address, pages

project = html_title = "SDXL-Turbo server"
extensions = ["myst_parser"]
root_doc = HOME
nitpicky = True

myst_heading_anchors = 6
myst_heading_slug_func = "github"
# MyST looks for a document if a link has none of these schemes.
myst_url_schemes = {"http": None, "https": None, OTHER_LANGUAGE: {"url": "{{path}}#{{fragment}}"}}

html_theme = "furo"
# The playground's accent colours.
html_theme_options = {
    f"{theme}_css_variables": {f"color-brand-{use}": accent for use in ("primary", "content", "visited")}
    for theme, accent in (("light", "#a83f1b"), ("dark", "#ff9d73"))
}
html_logo = html_favicon = str(ROOT / "app/api/playground/static/icon.svg")
html_copy_source = html_show_sourcelink = html_show_copyright = html_show_sphinx = html_use_index = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["offline.js"]
templates_path = ["templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}


_FURO_IN_CHINESE = {
    "Back to top": "回到顶部",
    "Home": "首页",
    "Made with ": "构建工具 ",
    "Next": "下一页",
    "On this page": "本页内容",
    "Previous": "上一页",
}


class FuroInChinese(gettext.NullTranslations):
    """Translations of Furo's texts, which Sphinx lacks."""

    def gettext(self, message: str) -> str:
        """Return the translation, or the message itself."""
        return _FURO_IN_CHINESE.get(message, message)


def setup(app: Sphinx) -> None:
    """Register what Sphinx and Furo lack: search and texts in Chinese, and the link to a page in the other language."""
    app.add_search_language(ChineseSearch)
    app.connect("builder-inited", _translate_furo)
    app.connect("html-page-context", _add_other_language)


def _translate_furo(app: Sphinx) -> None:
    if app.config.language == "zh_CN":
        app.translator.add_fallback(FuroInChinese())


def _add_other_language(app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    """Give the template the page in the other language, or that language's home if the page is not translated."""
    here, there = (CHINESE, ENGLISH) if app.config.language == "zh_CN" else (ENGLISH, CHINESE)
    other = address(page if page in pages(there) else HOME, there)
    context["other_language"] = there
    context["other_page"] = posixpath.relpath(other, posixpath.dirname(address(page, here)) or ".")
