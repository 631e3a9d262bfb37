"""What mkdocs asks of this project: pages that live elsewhere in the repository, and links.

The notebooks, the results of benchmarks, CONTRIBUTING and CHANGELOG stand where people look for them in a repository.
The site has a page of each. A relative link means the file that it names in the repository, on every page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).parents[1]

ELSEWHERE = (
    "examples/01_first_certificate.ipynb",
    "examples/02_bound_tightness.ipynb",
    "examples/03_paper_gtsrb.ipynb",
    "benchmarks/RESULTS.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
"""Files of the repository outside docs/ that are pages of the site, under the same path."""

LINK = re.compile(
    r"^```.*?^```$|(?<![`!])\[(?P<words>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)|`[^`\n]+`",
    re.MULTILINE | re.DOTALL,
)
"""A link, or code, in which nothing is one."""
FETCHING = re.compile(
    r"<script src=\"\">\s*</script>|<script type=\"module\">(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>",
    re.DOTALL,
)
"""What nbconvert puts into every notebook for formulas and diagrams, to be fetched by a browser. Ours have none."""

ROLE = re.compile(r":(?:func|class|meth|attr|mod|data):<code>~?(?P<name>[\w.]+)</code>")


def _with_files_from_elsewhere(files: Files, config: MkDocsConfig) -> Files:
    for path in ELSEWHERE:
        files.append(File(path, str(REPO), config.site_dir, config.use_directory_urls))
    return files


on_files = event_priority(100)(_with_files_from_elsewhere)  # before the notebooks are looked for


def relinked(markdown: str, page: str) -> str:
    """The text of a page of the site, whose links mean files of the repository, with links to pages of the site.

    A file that is no page loses its link and keeps its words. Raises PluginError for a link to a file that is none.
    """
    here = posixpath.dirname(page if page in ELSEWHERE else f"docs/{page}")

    def moved(link: re.Match[str]) -> str:
        target, words = link["target"], link["words"]
        if words is None or not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(here, target))
        if not (REPO / path).exists():
            raise PluginError(f"{page}: the link to {target} leads to {path}, which is no file")
        if path not in ELSEWHERE and not path.startswith("docs/"):
            return str(words)
        inside = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(page) or ".")
        return f"[{words}]({inside}{link['anchor'] or ''})"

    return LINK.sub(moved, markdown)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return relinked(markdown, page.file.src_uri)


def linked_names(html: str) -> str:
    """Docstrings' ``:func:`name``` as a link to that name's place in the reference, where it has one."""

    def link(role: re.Match[str]) -> str:
        name = role["name"].removeprefix("corgi_opt.")
        return f'<autoref optional identifier="corgi_opt.{name}"><code>{name}</code></autoref>'

    return ROLE.sub(link, html)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return linked_names(FETCHING.sub("", html))
