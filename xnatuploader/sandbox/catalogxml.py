"""The text of a resource's catalog, as XNAT writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xnatuploader.sandbox import store


def text_of(resource: store.Resource) -> str:
    """Return the XML document."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<cat:Catalog ID={_quoted(resource.label)} xmlns:cat="http://nrg.wustl.edu/catalog"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">',
        "<cat:entries>",
    ]
    for name, entry in resource.entries.items():
        digest = f' digest="{entry.digest}"' if entry.digest else ""
        lines.append(
            f"<cat:entry URI={_quoted(name)} name={_quoted(name.rsplit('/', 1)[-1])} ID={_quoted(name)}"
            f" format={_quoted(entry.format)} content={_quoted(entry.content)}{digest}>"
            f'<cat:metaFields><cat:metaField name="SIZE">{entry.size}</cat:metaField></cat:metaFields>'
            "</cat:entry>"
        )
    lines += ["</cat:entries>", "</cat:Catalog>", ""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(plain, escaped)
    return f'"{text}"'
