"""What `mkdocs build` does besides the pages of docs/ (mkdocs.yml): what they link to elsewhere in the repository.

Pages are written for the forge, where `../results/README.md` is a link. On the site such a target lies below
repository/: a picture as it is, Markdown as a page, any other text and a folder's list of files as a page of code.
The pages of the committed runs are written anew, whole, below reports/.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from e2bench.reporting import write_report

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPORTS = {
    "smollm2": ["results/smollm2", "results/smollm2-e2"],
    "smollm2-cpu": ["results/smollm2-cpu"],
    "tiny": ["results/tiny"],
}
OUTSIDE = "repository/"  # where on the site what lies outside docs/ is
LINK = re.compile(r"(?<=\]\()[^)\s#]+")
_commands: list[str] = []


def on_startup(command: str, **_: Any) -> None:
    """Remember whether the site is built or served."""
    _commands.append(command)


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add what the pages link to outside docs/, and what that links to."""
    from mkdocs.structure.files import File

    waiting = [Path(file.abs_src_path) for file in files.documentation_pages()]
    while waiting:
        for path in _linked(waiting.pop()):
            address = _address(path)
            if files.get_file_from_path(address):
                continue
            if address.endswith(".md"):
                files.append(File.generated(config, address, content=_page(path)))
                waiting += [path] * (path.suffix == ".md")
            else:
                files.append(File.generated(config, address, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links out of docs/, and those back into it, to where their targets are on the site."""
    address = str(page.file.src_uri)
    is_outside = address.startswith(OUTSIDE)
    source = ROOT / address.removeprefix(OUTSIDE) if is_outside else DOCS / address
    if is_outside and not source.is_file():  # a page of code, whose name has one suffix more
        return markdown

    def moved(link: re.Match[str]) -> str:
        path = _target(link[0], source)
        return os.path.relpath(_address(path), Path(address).parent) if path else link[0]

    return LINK.sub(moved, markdown)


def on_post_build(config: Mapping[str, Any], **_: Any) -> None:
    """Write the pages, half a minute's work, unless the docs are served to somebody who writes them."""
    if _commands[-1:] != ["serve"]:
        for name, folders in REPORTS.items():
            write_report([ROOT / folder for folder in folders], Path(config["site_dir"]) / "reports" / name)


def _target(link: str, source: Path) -> Path | None:
    """The file of the repository that a link in `source` means; a folder's README, where it has one."""
    path = Path(os.path.normpath(source.parent / link))
    if "://" in link or not path.is_relative_to(ROOT) or not path.exists():
        return None
    return path / "README.md" if (path / "README.md").is_file() else path


def _linked(source: Path) -> Iterator[Path]:
    """Targets outside docs/."""
    for link in LINK.findall(source.read_text("utf-8")):
        path = _target(link, source)
        if path and not path.is_relative_to(DOCS):
            yield path


def _address(path: Path) -> str:
    """Where a file lies among the site's sources."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    inside = f"{OUTSIDE}{path.relative_to(ROOT).as_posix()}"
    return inside if path.suffix in (".md", ".png") else f"{inside}.md"


def _page(path: Path) -> str:
    """Markdown as it is; a folder's list of files, or a file's text, as code under its name."""
    if path.suffix == ".md":
        return path.read_text("utf-8")
    text = "\n".join(sorted(one.name for one in path.iterdir())) if path.is_dir() else path.read_text("utf-8")
    return f"# {path.relative_to(ROOT)}\n\n````{path.suffix.removeprefix('.')}\n{text}\n````\n"
