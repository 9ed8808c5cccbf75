"""What the documents name is there."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *(ROOT / "docs").glob("*.md")]
# Where a path in a document may begin.
FOLDERS = (ROOT, ROOT / "gaze_jax", ROOT / "docs")
# A file, and a name within it: by its path wherever that stands, in a command
# too, or by its name alone in backquotes.
FILE = r"[\w.]+\.(?:py|sh|md|sbatch|jinja)"
PATH = re.compile(
  rf"(?:(?<![\w./:~-])((?:[\w.]+/)+{FILE})|`({FILE}))\b(?:::(\w+))?"
)


def missing(text: str) -> list[str]:
  """Paths, and names within them, that a document gives and that are not."""
  out = []
  for path, alone, name in PATH.findall(text):
    found = [f for x in FOLDERS if (f := x / (path or alone)).is_file()]
    if path and not found:
      out.append(path)
    elif found and name:
      tree = ast.parse(found[0].read_text(encoding="utf-8"))
      if name not in defined(tree):
        out.append(f"{path or alone}::{name}")
  return out


def defined(tree: ast.AST) -> set[str]:
  named = (ast.FunctionDef, ast.ClassDef)
  out = {node.name for node in ast.walk(tree) if isinstance(node, named)}
  stored = (
    node.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
  )
  return out | set(stored)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_is_there(page):
  assert missing(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  assert broken_links(page.read_text(encoding="utf-8"), page) == []


def broken_links(text: str, page: pathlib.Path) -> list[str]:
  """Links of a page to files that are not, or to headings that they lack."""
  out = []
  for link, file, anchor in re.findall(r"\]\((([^)#]*)#?([^)]*))\)", text):
    if "://" in link:
      continue
    to = page.parent / file if file else page
    if not to.exists() or (anchor and anchor not in anchors(to)):
      out.append(link)
  return out


def anchors(page: pathlib.Path) -> set[str]:
  """The headings of a page, as GitHub writes them in links."""
  headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
  plain = lambda heading: re.sub(r"[^\w\- ]", "", heading.lower())
  return {plain(heading).replace(" ", "-") for heading in headings}


ROOM = re.compile(r"\| `([\w/]+/)`(?: itself)? \| (.*)")


def absent(text: str) -> list[str]:
  """Files that a table of rooms gives to a room and that are not in it."""
  return [
    room + file
    for room, held in ROOM.findall(text)
    for file in re.findall(rf"`({FILE})`", held)
    if not any((x / room / file).is_file() for x in FOLDERS)
  ]


def test_a_room_holds_what_its_row_says():
  page = ROOT / "docs" / "architecture.md"
  text = page.read_text(encoding="utf-8")
  rooms = {path.name for path in (ROOT / "gaze_jax").glob("[a-z]*/")}
  rooms -= {"gaze_jax.egg-info"}
  assert {room.strip("/") for room, _ in ROOM.findall(text)} >= rooms
  assert absent(text) == []


def test_the_readme_is_short():
  lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
  assert len(lines) <= 180 and max(map(len, lines)) <= 120


def test_the_test_sees_what_is_missing():
  text = "`gone/x.py`, `config.py::Config`, `config.py::Gone`, `x.py`"
  assert missing(text) == ["gone/x.py", "config.py::Gone"]
  text = (
    "bash launch/test.sh; `python launch/gone.py --config=configs/gone.py:a`"
  )
  assert missing(text) == ["launch/gone.py", "configs/gone.py"]
  page = ROOT / "docs" / "method.md"
  text = "# A b, `c`\n[](method.md) [](gone.md) [](#a) [](https://x.org/y#z)"
  assert broken_links(text, page) == ["gone.md", "#a"]
  row = "| `layout/` | `grid.py` regions, `gone.py` |"
  assert absent(row) == ["layout/gone.py"]
