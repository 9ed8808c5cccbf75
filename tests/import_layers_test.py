"""docs/architecture.md: who may import whom, and how long a file may be."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
  str(path.relative_to(ROOT))
  for folder in ("gaze_jax", "launch", "configs")
  for path in (ROOT / folder).rglob("*.py")
)

PROGRAMS = ("launch", "configs", "benchmarks")

# Any room may import these files of the top level.
SHARED = {
  *("types", "config", "plugins", "errors", "schema", "fields"),
  *("data_config", "fingerprint", "json_file", "foreign", "whole_file"),
  "storage",
}
# A room, and the other rooms that it may import. Nobody imports demo: it is
# found by name (gaze_jax/plugins.py).
ARROWS = {
  "": set(),  # the shared files themselves
  "cli": {"runtime"},
  "layout": set(),
  "runtime": set(),
  "parallel": set(),
  "kernels": set(),
  "ops": {"kernels", "parallel", "layout"},
  "models": {"ops", "kernels", "parallel", "layout"},
  "weights": {"data", "models", "layout"},
  "data": {"layout"},
  "prepare": {"data"},
  "train": {
    *("data", "weights", "models", "ops", "parallel", "layout", "runtime"),
  },
  "aot": {
    *("evals", "train", "decode", "data", "models", "ops", "parallel"),
    *("weights", "kernels", "layout"),
  },
  "device": {"ops", "kernels"},
  "decode": {"models", "ops", "parallel", "layout"},
  "view": {"decode"},
  "evals": {
    *("decode", "train", "weights", "data", "models", "ops", "parallel"),
    "layout",
  },
  "api": {
    *("evals", "view", "decode", "train", "weights", "data", "models"),
    *("parallel", "layout"),
  },
  "serve": {"api", "view", "decode", "data", "layout"},
  "tasks": {"api", "evals", "data", "runtime"},
  "lmms": {"api", "tasks", "data"},
  "demo": {"data", "weights", "models", "layout"},
  "launch": {
    *("cli", "api", "evals", "decode", "train", "weights", "data"),
    *("parallel", "aot", "device", "runtime", "prepare", "tasks"),
    "serve",
  },
  "configs": set(),
}
# Packages that a room never imports.
FORBIDDEN = {
  "ops": {"flax", "optax", "orbax", "grain"},
  "models": {"optax", "orbax", "grain"},
  "data": {"jax", "jaxlib", "flax", "optax", "orbax"},
  "prepare": {"jax", "jaxlib", "flax", "optax", "orbax"},
  "kernels": {"flax"},
}
# What other rooms may import of kernels: the operations that have one form, the
# seam to those that have several, and the platform that is traced for. But
# device compares the forms of each.
KERNEL_DOORS = {"attention", "products", "backends", "target"}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_KERNEL = 600, 60, 120


def room_of(path: str) -> str:
  parts = pathlib.Path(path).with_suffix("").parts
  if parts[0] != "gaze_jax":
    return parts[0]
  return parts[1] if len(parts) > 2 or parts[1] == "cli" else ""


def imports(tree: ast.AST) -> list[tuple[int, str]]:
  """Line and full dotted name of everything that is imported."""
  out = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      out += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"line {node.lineno}: a relative import"
      out += [(node.lineno, f"{node.module}.{a.name}") for a in node.names]
  return out


def violations(path: str, source: str) -> list[str]:
  tree, room = ast.parse(source), room_of(path)
  out = []
  for line, name in imports(tree):
    top, *rest = name.split(".")
    target = rest[0] if rest else ""
    if top == "gaze_jax" and room == "configs":
      out.append(f"line {line}: configs import nothing of gaze_jax")
    elif top == "gaze_jax":
      if target not in SHARED | ARROWS[room] | {room}:
        out.append(f"line {line}: {room or 'a shared file'} imports {name}")
      if target == "kernels" and room not in ("kernels", "device"):
        if not KERNEL_DOORS & set(rest[1:2]):
          out.append(f"line {line}: only kernels import {name}")
    elif top in FORBIDDEN.get(room, ()):
      out.append(f"line {line}: {room} imports {top}")
    if top == "orbax" and path != "gaze_jax/train/checkpoint.py":
      out.append(f"line {line}: only train/checkpoint.py imports orbax")
  return out + local_imports(tree, source) + too_long(tree, source, room)


def local_imports(tree: ast.AST, source: str) -> list[str]:
  """Imports within a function whose line does not say why."""
  lines, out = source.splitlines(), []
  for function in functions(tree):
    for node in ast.walk(function):
      if isinstance(node, ast.Import | ast.ImportFrom):
        if "#" not in lines[node.lineno - 1]:
          out.append(f"line {node.lineno}: an import within a function")
  return out


# Names that come and go with JAX's versions, without notice.
_PRIVATE = re.compile(
  r"(jax|jaxlib|flax|orbax)(\.\w+)*\._\w|jax\.(core|interpreters)\b"
)
KNOWS_PRIVATE = "gaze_jax/runtime/jax_private.py"


def private_names(tree: ast.AST) -> list[str]:
  """What is imported, or written with dots, of JAX's own inside."""
  named = imports(tree) + [
    (node.lineno, ast.unparse(node))
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and not node.attr.startswith("__")
  ]
  return [f"line {n}: {name}" for n, name in named if _PRIVATE.match(name)]


def too_long(tree: ast.AST, source: str, room: str) -> list[str]:
  limit = LONGEST_KERNEL if room == "kernels" else LONGEST_FUNCTION
  out = [
    f"line {f.lineno}: {f.name} has {f.end_lineno - f.lineno + 1} lines"
    for f in functions(tree)
    if f.end_lineno - f.lineno + 1 >= limit
  ]
  if (lines := len(source.splitlines())) >= LONGEST_FILE:
    out.append(f"the file has {lines} lines")
  return out


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
  return [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  ]


@pytest.mark.parametrize("path", FILES)
def test_a_file_keeps_to_its_room(path):
  assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("folder", ["gaze_jax", *PROGRAMS, "tests"])
def test_nothing_reaches_into_jax(folder):
  found = {}
  for path in (ROOT / folder).rglob("*.py"):
    name = str(path.relative_to(ROOT))
    names = private_names(ast.parse(path.read_text(encoding="utf-8")))
    if names and name != KNOWS_PRIVATE:
      found[name] = names
  assert not found


@pytest.mark.parametrize(
  "line",
  [
    "from jax._src import effects",
    "import jax._src.core",
    "jax.core.jaxprs_in_params(x)",
    "from jax import core\n\njax._src.x",
    "from jax.core import Tracer",
    "import orbax.checkpoint._src",
  ],
)
def test_the_test_sees_a_private_name(line):
  assert private_names(ast.parse(line))
  fine = "from jax.extend import core\njax.__version__\njax.extend.core.Jaxpr"
  assert not private_names(ast.parse(fine))


def test_every_room_has_its_arrows():
  assert {room_of(f) for f in FILES} <= ARROWS.keys()


def test_arrows_have_no_cycle():
  reached = {room: set(arrows) for room, arrows in ARROWS.items()}
  for _ in reached:
    for room in reached:
      for target in tuple(reached[room]):
        reached[room] |= reached[target]
  assert not [room for room in reached if room in reached[room]]


@pytest.mark.parametrize(
  "path, line, says",
  [
    ("gaze_jax/ops/x.py", "import flax.linen as nn", "ops imports flax"),
    ("gaze_jax/ops/x.py", "from gaze_jax.models import mllm", "ops imports"),
    ("gaze_jax/models/x.py", "import optax", "models imports optax"),
    ("gaze_jax/models/x.py", "from gaze_jax.train import step", "models"),
    ("gaze_jax/data/x.py", "import jax.numpy as jnp", "data imports jax"),
    ("gaze_jax/data/x.py", "from gaze_jax.ops import rope", "data imports"),
    ("gaze_jax/train/x.py", "from gaze_jax.decode import loop", "train"),
    ("gaze_jax/decode/x.py", "from gaze_jax.train import step", "decode"),
    ("gaze_jax/train/loop.py", "import orbax.checkpoint", "only train/check"),
    ("gaze_jax/ops/x.py", "from gaze_jax.kernels import k", "only kernels"),
    ("gaze_jax/train/x.py", "from gaze_jax.kernels import target", "train im"),
    ("gaze_jax/types.py", "from gaze_jax.ops import rope", "shared file"),
    ("configs/x.py", "from gaze_jax import config", "configs import nothing"),
    ("gaze_jax/ops/x.py", "def f():\n  import os", "within a function"),
    ("gaze_jax/ops/x.py", "def f():\n" + "  pass\n" * 59, "60 lines"),
    ("gaze_jax/ops/x.py", "x = 1\n" * 600, "600 lines"),
  ],
)
def test_the_test_sees_a_violation(path, line, says):
  assert any(says in v for v in violations(path, line))


@pytest.mark.parametrize(
  "path, line",
  [
    ("gaze_jax/ops/x.py", "from gaze_jax import types"),
    ("gaze_jax/ops/gaze.py", "from gaze_jax.kernels import backends"),
    ("gaze_jax/kernels/x.py", "from gaze_jax.kernels import k"),
    ("gaze_jax/train/checkpoint.py", "import orbax.checkpoint"),
    ("gaze_jax/data/x.py", "def f():\n  import emoji  # only here"),
    ("gaze_jax/ops/x.py", "def f():\n" + "  pass\n" * 58),
  ],
)
def test_the_test_lets_the_rest_pass(path, line):
  assert violations(path, line) == []
