"""What is compared on a device, and that what is wrong is found."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gaze_jax import errors
from gaze_jax.device import cases
from gaze_jax.device import check
from gaze_jax.device import report
from gaze_jax.device import times

ROOT = pathlib.Path(__file__).parents[2]
SIZE = dataclasses.replace(cases.SMALL, regions=4, pages=((9, 64),))


def _operation(wrong, refuses=cases._served):
  """Products with a table, and a form that is not quite that."""
  (operation,) = cases.operations(["table_product"], cases.SMALL, "gpu")
  right = operation.forms[cases.PLAIN].function
  form = cases.Form(lambda *x: wrong(right(*x)), refuses)
  return dataclasses.replace(
    operation, forms=operation.forms | {"new": form}, trained=False
  )


def _off(by):
  """Each logit off by so much of the largest."""
  return lambda x: {
    "logits": x["logits"] + by * jnp.abs(x["logits"]).max().astype(jnp.float32)
  }


def _broken(results):
  raise RuntimeError("no such\nkernel")


@pytest.mark.parametrize(
  "wrong, failure",
  [
    (_off(0.5 * check.FLOOR), None),
    (_off(2 * check.FLOOR), "logits is off by 2 times what it may be"),
    (
      lambda x: {"logits": x["logits"].at[0, 3].set(jnp.nan)},
      "new: logits is infinite or NaN, or should be",
    ),
    (_broken, "new: RuntimeError: no such kernel"),
  ],
)
def test_a_form_that_is_wrong_fails_and_the_rest_goes_on(wrong, failure):
  rows = list(check.compare([_operation(wrong)], threads=2))
  assert len(rows) == 8  # two forms, dtypes and precisions
  assert {row.failure for row in rows if row.form == "new"} == {failure}
  assert not any(row.failure for row in rows if row.form == cases.PLAIN)
  assert all("FAILED" in check.text(row) for row in rows if row.failure)


def test_a_form_that_is_not_for_a_dtype_says_so():
  refuses = {"float32": "bfloat16 alone", "bfloat16": None}.get
  rows = list(check.compare([_operation(_off(0), refuses)]))
  notes = {r.dtype: r.note for r in rows if r.form == "new"}
  assert notes == {"float32": "bfloat16 alone", "bfloat16": ""}
  assert not any(row.failure for row in rows)


def test_errors_by_hand():
  want = np.array([0.0, 4.0, -np.inf, np.nan])
  got = want + np.array([0.0, 2.0, 0, 0])
  np.testing.assert_allclose(check._error(got, want), 2**0.5 / 4)
  assert check._error(np.array([0.0, 4, 0, np.nan]), want) is None
  assert check._error(np.array([0.0, np.nan, -np.inf, 0]), want) is None


def test_choices_that_differ(monkeypatch):
  """Over scores that do, and over equal ones."""
  choose = cases.choose

  def other(query, *rest):
    shift = 1 if query.dtype == jnp.bfloat16 else 0
    return {
      name: (score, jnp.roll(members, shift, axis=-1))
      for name, (score, members) in choose(query, *rest).items()
    }

  monkeypatch.setattr(cases, "choose", other)
  rows = list(check.choices(SIZE, ("default",)))
  for row in rows:
    assert (row.failure is not None) == (row.dtype == "bfloat16"), row

  def equal(*arguments):
    return {
      name: (jnp.zeros_like(score), members)
      for name, (score, members) in other(*arguments).items()
    }

  monkeypatch.setattr(cases, "choose", equal)
  rows = list(check.choices(SIZE, ("default",)))
  assert not any(row.failure for row in rows)
  assert {row.note for row in rows if row.dtype == "bfloat16"} == {
    "128 of 128 differ, 128 of them over equal scores",
    "32 of 32 differ, 32 of them over equal scores",
  }


def test_a_tpu_and_a_gpu_run_their_own_forms():
  forms = lambda platform: {
    (x.name, form)
    for x in cases.operations(list(cases.NAMES), SIZE, platform)
    for form in x.forms
  }
  files = [x.stem for x in (ROOT / "gaze_jax/kernels").glob("*_*.py")]
  files = [x for x in files if x.endswith(("_tpu", "_gpu", "_cpu"))]
  assert len(files) > 8 and all(hasattr(cases, x) for x in files)
  plain = {(name, "xla") for name in cases.NAMES}
  kernels = [f"attend_{x}" for x in ("pages", "regions", "segments", "visual")]
  assert forms("tpu") == plain | {(name, "pallas") for name in kernels}
  assert forms("gpu") == plain | {("attend_visual", "cudnn")}
  new = {name for name, form in forms("cpu") if form.startswith("pallas")}
  assert new == set(kernels)


def test_bounds():
  """20,480 tokens: 569 pages of 8 heads, 57 of them chosen."""
  forms = times._decoding(20_480, 8, "tpu")
  page = 2 * 36 * 128 * 2
  assert {name: size for name, (size, _) in forms.items()} == {
    "dense": 8 * 569 * page,
    "xla": 8 * 57 * page,
    "pallas": 8 * 57 * page,
  }
  (row,) = times._measured(
    "decode", 36, {"xla": (819_000, lambda: 1 / 0)}, 1, "TPU v5 lite"
  )
  assert row.bound_milliseconds == pytest.approx(1e-3)
  assert "ZeroDivisionError" in row.failure and "FAILED" in times.text(row)


def test_on_a_cpu(capsys):
  found = report.run(["region_scores", "times"])
  told = capsys.readouterr().out
  assert "kernels are interpreted" in told and "0 of " in told
  assert "bandwidth of 'cpu' is not in the table" in told
  assert json.loads(json.dumps(found))["failed"] == 0
  assert [row["form"] for row in found["rows"]] == ["xla", "cpu"] * 2
  assert all(0 <= row["error"] < 1e-6 for row in found["rows"])
  assert {x["form"] for x in found["times"]} == {"dense", "xla", "cpu"}
  assert all(x["milliseconds"] > 0 for x in found["times"])


@pytest.mark.nightly
def test_all_of_it_on_a_cpu(tmp_path):
  path = tmp_path / "rows.json"
  result = subprocess.run(
    [sys.executable, "launch/device_check.py", f"--json={path}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  rows = json.loads(path.read_text())["rows"]
  assert {row["operation"] for row in rows} == {"choice", *cases.NAMES}
  kernels = [row for row in rows if "pallas" in row["form"]]
  assert {row["direction"] for row in kernels} == {"forward", "backward"}
  assert {row["shape"] for row in kernels} >= {"36 x 128", "9 x 64"}


def test_a_part_that_is_not_there():
  with pytest.raises(errors.GazeError, match="attend: the parts are choice"):
    report.run(["attend"])
