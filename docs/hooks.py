"""What `make docs` does beyond MkDocs: adds the documents outside docs/, and looks for names that no page documents."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import ismodule
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {  # pages of the site, and where they lie in the repository
    "RESULTS.md": "benchmarks/RESULTS.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
}
PUBLIC = ("tql_lightning", "tql_lightning.callbacks", "tql_lightning.loggers")


def on_config(config: MkDocsConfig) -> None:
    """Puts pages without a place under "How to"; fails if a public name or a configured class is on no page."""
    listed = str(config.nav)
    (how_to,) = (part["How to"] for part in config.nav or [] if "How to" in part)
    how_to += [path.name for path in sorted(Path(config.docs_dir).glob("*.md")) if f"'{path.name}'" not in listed]
    text = "\n".join(path.read_text() for path in Path(config.docs_dir).glob("*.md"))
    documented = re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE)
    names = {f"{package}.{name}" for package in PUBLIC for name in getattr(import_module(package), "__all__", ())}
    for path in (ROOT / "conf").rglob("*.yaml"):
        names |= set(re.findall(r"class_path: (tql_lightning\.[\w.]+)", path.read_text()))
    known = [_object(name) for name in documented]
    missing = sorted(name for name in names if _object(name) not in known and not ismodule(_object(name)))
    if missing:
        raise PluginError(
            f"no page documents {', '.join(missing)}: add a line `::: NAME` to docs/api.md or settings.md"
        )


def _object(path: str) -> object:
    """What a dotted name stands for: a class may be documented under another of its names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the documents outside docs/."""
    for page, path in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Points links at pages of the site; shows methods of classes on the page of the Python interface alone."""
    for name, path in OUTSIDE.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(path)}", f"]({name}", markdown)
    markdown = re.sub(r"\]\((\.\./)?docs/", "](", markdown).replace("](../README.md", "](index.md")
    if page.file.src_uri == "api.md":
        return markdown
    return re.sub(r"^(::: .*)$(?!\n    )", r"\1\n    options: {members: false}", markdown, flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Ends a paragraph before a block with one colon; docstrings have reStructuredText's two."""
    return html.replace("::</p>", ":</p>")
