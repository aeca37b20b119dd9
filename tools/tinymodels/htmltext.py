"""Plain text from the HTML of a manual: block structure kept, chrome dropped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

BLOCKS = {
    "p",
    "div",
    "section",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "table",
    "tr",
    "ul",
    "ol",
    "dl",
    "dt",
    "dd",
    "blockquote",
    "br",
    "hr",
    "pre",
    "article",
}
SKIPPED = {"script", "style", "nav", "head", "footer", "header", "button", "form"}
NAVIGATION = re.compile(r"nav|related|sphinxsidebar|footer|toc|headerlink|docnav|breadcrumb")


class _Extractor(HTMLParser):
    """Collects text; a stack remembers which open elements are being skipped."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipping: list[str] = []
        self.depth = 0
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a block, or begin to skip."""
        if self.skipping:
            if tag == self.skipping[-1]:
                self.depth += 1
            return
        marks = " ".join(v or "" for k, v in attrs if k in ("class", "id", "role"))
        if tag in SKIPPED or (
            tag in {"div", "ul", "ol", "p", "a", "dl"} and NAVIGATION.search(marks)
        ):
            self.skipping.append(tag)
            self.depth = 1
            return
        if tag == "li":
            self.parts.append("\n* ")
        elif tag in BLOCKS:
            self.parts.append("\n" if tag in {"tr", "br", "dd"} else "\n\n")
        if tag == "pre":
            self.preformatted += 1

    def handle_endtag(self, tag: str) -> None:
        """Close a block, or stop skipping."""
        if self.skipping:
            if tag == self.skipping[-1]:
                self.depth -= 1
                if self.depth == 0:
                    self.skipping.pop()
            return
        if tag == "pre":
            self.preformatted = max(0, self.preformatted - 1)
        if tag in BLOCKS:
            self.parts.append("\n\n" if tag in {"p", "pre", "h1", "h2", "h3", "h4"} else "\n")

    def handle_data(self, data: str) -> None:
        """Keep text; outside <pre> white space is one blank."""
        if not self.skipping:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def html_to_text(html: str) -> str:
    """The readable text of a page."""
    extractor = _Extractor()
    extractor.feed(html)
    text = "".join(extractor.parts)
    text = re.sub(r"\n +(?=\S)", lambda m: m[0] if len(m[0]) > 2 else "\n", text)
    text = re.sub(r"\* *\n+ *", "* ", text)
    return re.sub(r"\n\s*\n+", "\n\n", text)
