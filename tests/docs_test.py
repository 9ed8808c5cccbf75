"""What the documents name is there."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *(ROOT / "docs").glob("*.md")]
# Where a path in a document may begin.
FOLDERS = (ROOT, ROOT / "gaze_jax", ROOT / "docs")
PATH = re.compile(
  r"`((?:[\w.]+/)*[\w.]+\.(?:py|sh|md|sbatch|jinja))(?:::(\w+))?[`(]"
)


def missing(text: str) -> list[str]:
  """Paths, and names within them, that a document gives and that are not."""
  out = []
  for path, name in PATH.findall(text):
    found = [f / path for f in FOLDERS if (f / path).is_file()]
    if not found and "/" in path:
      out.append(path)
    elif found and name:
      tree = ast.parse(found[0].read_text(encoding="utf-8"))
      if name not in defined(tree):
        out.append(f"{path}::{name}")
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
  text = page.read_text(encoding="utf-8")
  links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
  local = [link for link in links if "://" not in link]
  assert [one for one in local if not (page.parent / one).exists()] == []


def test_the_readme_is_short():
  lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
  assert len(lines) <= 180 and max(map(len, lines)) <= 120


def test_the_test_sees_what_is_missing():
  text = "`gone/x.py`, `config.py::Config`, `config.py::Gone`, `x.py`"
  assert missing(text) == ["gone/x.py", "config.py::Gone"]
