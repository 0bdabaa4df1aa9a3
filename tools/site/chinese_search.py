"""Search in Chinese text, which has no spaces between words.

Sphinx's own search for Chinese needs a dictionary (jieba) to find the words in a document, does not split what the
reader types, and fails in Sphinx 9.0 (https://github.com/sphinx-doc/sphinx/issues/14229). Here both sides split Chinese
text into overlapping pairs of characters, so any part of a sentence is found.
"""

import re

from sphinx.search.en import SearchEnglish

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff"


class ChineseSearch(SearchEnglish):
    """Sphinx's search for English, with pairs of Chinese characters as words."""

    lang = "zh"
    js_splitter_code = f"""
function splitQuery(query) {{
  const parts = query.match(/[{_HAN}]+|((?![{_HAN}])[\\p{{Letter}}\\p{{Number}}_])+/gu) || [];
  return parts.flatMap((part) =>
    /^[{_HAN}]{{2}}/.test(part) ? Array.from(part.slice(1), (second, i) => part[i] + second) : [part],
  );
}}
"""

    def split(self, input: str) -> list[str]:  # noqa: A002 - Sphinx's name
        """Return the pairs of Chinese characters, and the other words."""
        pairs = [run[i : i + 2] for run in re.findall(f"[{_HAN}]+", input) for i in range(max(1, len(run) - 1))]
        return pairs + re.findall(rf"[^\W{_HAN}]+", input)
