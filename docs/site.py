"""What the site needs beside the pages: files of the repository as pages, links out of ``docs/``, and roles in docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: Files of the repository's root that are pages of the site.
PAGES = {name: f"{name.lower()}" for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "ARTIFACT.md")}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([^`]+)`")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root."""
    for name, page in PAGES.items():
        if (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=_LINK.sub(lambda link: _link(link, ROOT, Path()), text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links that leave ``docs/`` lead to the page of the file, or be its name where it has none."""
    source = Path(page.file.src_uri)
    if source.name in PAGES.values():
        return markdown
    folder = Path(config["docs_dir"]) / source.parent
    return _LINK.sub(lambda link: _link(link, folder, source.parent), markdown)


def _link(link: re.Match[str], folder: Path, place: Path) -> str:
    text, path, anchor = link[1], link[2], link[3] or ""
    if "://" in path or path.startswith("mailto:"):
        return link[0]
    found = (folder / path).resolve()
    up = "../" * len(place.parts)
    if found.is_relative_to(ROOT / "docs"):
        return f"[{text}]({up}{found.relative_to(ROOT / 'docs').as_posix()}{anchor})"
    if found.parent == ROOT and found.name in PAGES:
        return f"[{text}]({up}{PAGES[found.name]}{anchor})"
    if found == ROOT / "README.md":
        return f"[{text}]({up}index.md)"
    return f"{text} (`{found.relative_to(ROOT).as_posix()}`)"


class Roles(Extension):
    """Shows the roles of docstrings as code, as their pages are not all on the site."""

    def on_object(self, *, obj: Object, **more: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(
                lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", obj.docstring.value
            )


def _code(role: re.Match[str]) -> str:
    return f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`"
