"""docs/convert.md, run as it is written."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.nightly
def test_the_page_works_as_written(tmp_path):
  page = (ROOT / "docs/convert.md").read_text(encoding="utf-8")
  (made,) = re.findall(r"```python\n(.*?)```", page, re.S)
  commands = re.findall(r"```bash\n(.*?)```", page, re.S)[0].splitlines()
  (tmp_path / "launch").symlink_to(ROOT / "launch")
  said = []
  for command in [["-c", made], *map(_arguments, commands)]:
    ran = subprocess.run(
      [sys.executable, *command],
      cwd=tmp_path,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
    )
    assert ran.returncode == 0, ran.stderr
    said.append(ran.stdout)
  assert "qwen3" in said[1]
  assert "logits of text" in said[2]
  hf, back = tmp_path / "hf", tmp_path / "back"
  assert {p.name for p in back.iterdir()} == {p.name for p in hf.iterdir()}
  assert (back / "config.json").read_bytes() == (
    hf / "config.json"
  ).read_bytes()


def _arguments(line: str) -> list[str]:
  python, *rest = shlex.split(line, comments=True)
  assert python == ".venv/bin/python"
  return rest
