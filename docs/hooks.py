"""What mkdocs adds to the pages: the repository's own documents, the map of modules, and docstrings' roles as plain code."""

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/RESULTS.md")
MARK = re.compile(r"<!-- modules -->.*?<!-- /modules -->", re.S)
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):(?=<code>|`)")


def first_line(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].rstrip(".")


def module_map(root: Path = ROOT) -> str:
    """Every module of the package and every recipe, by folder, with the first line of its docstring, as Markdown."""
    parts = []
    for folder in [root / "recipes", *sorted({path.parent for path in (root / "rocl_transfer").rglob("*.py")})]:
        rows = [f"| `{path.name}` | {_cell(first_line(path))} |" for path in sorted(folder.glob("*.py"))]
        parts.append("\n".join([f"### `{folder.relative_to(root).as_posix()}/`", "", "| module | what it is for |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def on_files(files: Any, config: Any) -> Any:
    """Documents that stand outside docs/ are pages too."""
    from mkdocs.structure.files import File

    for name in DOCUMENTS:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The map of modules into its place; links as they hold on the site, where docs/ is the root."""
    if page.file.src_uri in DOCUMENTS:
        return markdown.replace("](../docs/", "](../").replace("](docs/", "](")
    markdown = re.sub(r"\]\(\.\./(?=" + "|".join(map(re.escape, DOCUMENTS)) + ")", "](", markdown)
    return MARK.sub(lambda _: module_map(), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """``:func:`name``` of a docstring is shown as the name alone."""
    return re.sub(r"<code>~[\w.]+\.(\w+)</code>", r"<code>\1</code>", ROLE.sub("", html))
