"""The pages of docs/: their Python runs as it stands, links lead somewhere, and the site is whole without a network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from page_code import blocks, run

import corgi_opt as co
from corgi_opt import study

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FRONT = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md", "CODE_OF_CONDUCT.md")]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

SAYS = {
    "index.md": ("^certified 0.00", "^falsified Witness", r"^0\.015\d+ 0\.015\d+$"),
    "howto/choosing.md": ("^1 Radius", "^3 Radius", "^5 Radius", "^1280 84$", "^yes$"),
    "howto/unknown.md": (r"^unknown \| crown leaves", r"^-\d", r"^certified \|"),
    "howto/preprocessing.md": ("^Radius", "^Radius.*clip box"),
    "howto/files.md": ("^CamNetwork",),
    "howto/certificates.md": ("^certified 0.00.*TopK", "^falsified$"),
    "howto/mps.md": (r"^\(51, 46\) 6$", r"^0\.3"),
    "definitions.md": (),
    "vnnlib.md": ("holds at every image", "51, 46", "^False$"),
}
"""Page -> what each printed line looks like, of those that say something; every page with Python stands here."""


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_pages_are_where_we_look():
    assert len(PAGES) > 15 and {p.name for p in PAGES} >= {"index.md", "glossary.md", "faq.md", "definitions.md"}
    assert {name_of(page) for page in PAGES if blocks(text_of(page), "python")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_its_python_runs_and_prints_what_it_says(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(text_of(DOCS / name), "python"):
        run(block, DOCS / name, names)
    said = iter(capsys.readouterr().out.splitlines())
    for wanted in SAYS[name]:  # in this order
        assert any(re.search(wanted, line) for line in said), wanted


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_does_not_run_is_fenced_as_something_else(page):
    fences = re.findall(r"^```(.*)$", text_of(page), re.M)
    assert set(fences[::2]) <= {"python", "text", "sh", "toml"} and set(fences[1::2]) <= {""}


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as both GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *FRONT], ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_between_files_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$|(?<!\[)`[^`\n]+`(?!\])", "", text_of(page), flags=re.M | re.S)
    for link in LINK.findall(prose):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.is_file() and file.is_relative_to(REPO), link
        assert not anchor or anchor in anchors(file), link


def test_every_public_name_stands_on_one_page_of_the_reference():
    shown = [name for page in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", text_of(page), re.M)]
    wanted = [f"corgi_opt.{name}" for name in co.__all__] + [f"corgi_opt.study.{name}" for name in study.__all__]
    assert sorted(shown) == sorted(wanted)


def test_the_drawing_of_the_rooms_is_the_one_that_is_written():
    written = re.findall(r"^  (\w+) -> (\w+)$", (DOCS / "images" / "rooms.dot").read_text(encoding="utf-8"), re.M)
    drawn = re.findall(r"<title>(\w+)&#45;&gt;(\w+)</title>", (DOCS / "images" / "rooms.svg").read_text("utf-8"))
    assert sorted(drawn) == sorted(written) and len(written) > 10


# --- the site ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site_pages() -> ModuleType:
    """docs/site_pages.py, which mkdocs loads by its path as well."""
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    spec = importlib.util.spec_from_file_location("site_pages", DOCS / "site_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_link_means_the_file_of_the_repository(site_pages):
    relinked = site_pages.relinked
    assert relinked("[a](../CONTRIBUTING.md#b)", "studies.md") == "[a](CONTRIBUTING.md#b)"
    assert relinked("[a](../../examples/01_first_certificate.ipynb)", "howto/x.md") == (
        "[a](../examples/01_first_certificate.ipynb)"
    )
    assert relinked("[a](docs/models.md)", "CONTRIBUTING.md") == "[a](models.md)"
    assert relinked("[`a`](../mkdocs.yml) [b](#c)", "models.md") == "`a` [b](#c)"  # no page of the site
    code = "```python\nf[0](x)\n```\n`[a](b)` [see](https://example.org/x)"
    assert relinked(code, "models.md") == code
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match=r"howto/x.md: the link to gone.md leads to docs/howto/gone.md"):
        relinked("[a](gone.md)", "howto/x.md")


def test_a_name_in_a_docstring_is_a_link(site_pages):
    html = site_pages.linked_names("as :func:<code>corgi_opt.verify</code> and :class:<code>Compared</code>")
    assert re.findall(r'identifier="(\S+)"><code>(\w+)</code>', html) == [
        ("corgi_opt.verify", "verify"),
        ("corgi_opt.Compared", "Compared"),
    ]


class Fetched(HTMLParser):
    """What a browser would load by itself, and the places that a page has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.links: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.places.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("next", "prev", "canonical"):
            self.loads.append(given.get("href", ""))
        elif "src" in given:
            self.loads.append(given["src"])


def test_the_site_is_whole_and_needs_no_network(site_pages, tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    unreachable = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **unreachable, "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    pages = {page: Fetched(page) for page in (tmp_path / "site").rglob("*.html") if page.name != "404.html"}
    assert len(pages) >= len(PAGES) + len(site_pages.ELSEWHERE)
    for page, found in pages.items():
        assert [load for load in found.loads if re.match(r"(https?:)?//", load)] == [], page
        assert "import(" not in page.read_text(encoding="utf-8"), page  # a script that loads another
        for file in (load for load in found.loads if not load.startswith("data:")):
            assert (page.parent / file.partition("?")[0]).is_file(), f"{page}: {file}"
        for link in found.links:
            target, _, place = link.partition("#")
            if "://" not in target:
                there = (page.parent / target).resolve() if target else page
                assert there.is_file() and (not place or place in pages[there].places | {"__tabbed"}), f"{page}: {link}"
    places = set[str]().union(*(found.places for page, found in pages.items() if page.parent.name == "api"))
    assert {f"corgi_opt.{name}" for name in co.__all__} <= places
    index = (tmp_path / "site" / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ") and "pre-activation" in index.lower()
