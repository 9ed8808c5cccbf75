"""Every kernel compiles for TPUs, and copies no more than it reads."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.nightly
ROOT = pathlib.Path(__file__).parent.parent
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")


def _run(*arguments, **environment):
  return subprocess.run(
    [sys.executable, "benchmarks/tpu.py", *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=1200,
  )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  path = tmp_path_factory.mktemp("tpu") / "rows.json"
  result = _run("--quick", f"--json={path}")
  assert result.returncode == 0, result.stderr
  assert not result.stderr
  return result, json.loads(path.read_text())["rows"]


def _cases(rows, *names):
  return {tuple(row[n] for n in names) for row in rows}


def test_what_is_compiled(ran):
  result, rows = ran
  for topology in TOPOLOGIES:
    mine = [row for row in rows if row["topology"] == topology]
    alone = [row for row in mine if row["program"] == "attend_pages"]
    assert _cases(alone, "visual_tokens", "heads", "choice") == {
      (tokens, heads, choice)
      for tokens in (576, 65536)
      for heads in ("32/8", "28/4")
      for choice in ("query_head", "kv_group")
    }
    assert _cases(alone, "dtype") == {("float32",), ("bfloat16",)}
    steps = [row for row in mine if row["program"] == "decode"]
    assert _cases(steps, "form") == {("dense",), ("gather",), ("kernel",)}
    others = {"attend_regions", "attend_visual", "prompt"}
    assert others < {row["program"] for row in mine}
    assert f"\n{topology}, TPU" in result.stdout
  assert _cases(rows, "topology") == {(name,) for name in TOPOLOGIES}
  assert not any(row["failure"] for row in rows)


def test_bytes_of_the_decode_kernel(ran):
  _, rows = ran
  alone = [row for row in rows if row["program"] == "attend_pages"]
  for row in alone:
    assert row["ideal_bytes"] <= row["moved_bytes"]
    assert row["moved_bytes"] <= 1.1 * row["ideal_bytes"], row
    assert row["ratio"] == row["moved_bytes"] / row["ideal_bytes"]
  # 2 of 16 regions, the descriptors of 16, a query and an output.
  (row,) = (
    row
    for row in alone
    if row["topology"] == "v5e:2x2"
    and (row["visual_tokens"], row["dtype"]) == (576, "bfloat16")
    and (row["heads"], row["choice"]) == ("28/4", "kv_group")
  )
  ideal = 4 * 2 * 36 * 128 * 2 * 2 + 4 * 16 * 128 * 4 + 2 * 28 * 128 * 2
  assert row["ideal_bytes"] == ideal


def test_temporaries_hold_no_regions(ran):
  _, rows = ran
  for row in rows:
    if row["form"] == "kernel" and row["ideal_bytes"]:
      # A step keeps up to 768 KiB on v5p, however many regions there are.
      assert row["temp_bytes"] < 0.1 * row["ideal_bytes"] + 3 * 2**18, row
  large = [row for row in rows if row["visual_tokens"] == 65536]
  steps = [row for row in large if row["program"] == "decode"]
  for topology in TOPOLOGIES:
    forms = {row["form"]: row for row in steps if row["topology"] == topology}
    assert forms["gather"]["moved_bytes"] > 2 * forms["gather"]["ideal_bytes"]
    assert forms["kernel"]["temp_bytes"] < 2**20


@pytest.mark.parametrize(
  "argument, says",
  [
    ("--topologies=v9:2x2", "--topologies=v9:2x2: libtpu knows no such"),
    ("--programs=attend", "--programs=attend: the programs are decode, "),
    ("--topology=v5e:2x2", "flag 'topology'"),
  ],
)
def test_a_mistake_is_one_line(argument, says):
  _is_one_line(_run(argument, "--quick"), says)


def test_a_kernel_that_moves_too_much_is_a_failure(tmp_path):
  """With pages of 36 tokens counted as 44."""
  (tmp_path / "sitecustomize.py").write_text("""
from gaze_jax.kernels import attend_pages_tpu
count = attend_pages_tpu.fetched_bytes
attend_pages_tpu.fetched_bytes = lambda *a, tokens, **k: count(
  *a, tokens=tokens + 8, **k
)
""")
  path = os.pathsep.join(
    filter(None, (str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH")))
  )
  result = _run(
    "--topologies=v5e:2x2",
    "--programs=attend_pages",
    "--quick",
    PYTHONPATH=path,
  )
  _is_one_line(result, "programs failed, first attend_pages (kernel) for v5e")
  assert "times the ideal" in result.stderr
  assert result.stdout.count("FAILED: moves 1.") == 12


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["highest", "bfloat16"])
def test_kernels_compile_whatever_precision_is_set(precision):
  result = _run(
    "--topologies=v5e:2x2",
    "--quick",
    JAX_DEFAULT_MATMUL_PRECISION=precision,
  )
  assert result.returncode == 0, result.stderr


def _is_one_line(result, says):
  assert result.returncode == 1, result.stdout
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
  assert says in lines[0]
