"""The benchmark runs, and its table says what its rows do."""

import json
import math
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import generate_models
from benchmarks import step_shares
from gaze_jax import errors

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("optimized")]
ROOT = pathlib.Path(__file__).parent.parent
FIELDS = {
  "visual_tokens": int,
  "batch": int,
  "dtype": str,
  "heads": str,
  "method": str,
  "milliseconds": float,
  "median_milliseconds": float,
  "bound_milliseconds": float,
  "bytes": (int, float),
  "pages_read": float,
  "ratio_to_bound": float,
  "speedup": float,
}
DENSE = {"jax_dense", "torch_dense"}
METHODS = {"jax_dense", "gaze_query_head", "gaze_kv_group", "gaze_all_regions"}


def _run(*arguments, script="attention"):
  return subprocess.run(
    [sys.executable, f"benchmarks/{script}.py", *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  out = tmp_path_factory.mktemp("benchmark")
  result = _run(
    "--only=576",
    "--dtypes=float32",
    "--rounds=1",
    f"--json={out / 'rows.json'}",
    f"--plot={out / 'plot.png'}",
  )
  assert result.returncode == 0, result.stderr
  return result, json.loads((out / "rows.json").read_text()), out / "plot.png"


def _lines(table):
  """The rows that were measured in turns, together."""
  lines = {}
  for row in table["rows"]:
    key = tuple(row[k] for k in ("visual_tokens", "batch", "dtype", "heads"))
    lines.setdefault(key, {})[row["method"]] = row
  return lines


def test_rows_of_the_table(ran):
  _, table, _ = ran
  for row in table["rows"]:
    for field, kind in FIELDS.items():
      assert isinstance(row[field], kind), (field, row[field])
    assert row["milliseconds"] > 0
    assert row["milliseconds"] <= row["median_milliseconds"]
  lines = _lines(table)
  assert set(lines) == {
    (576, batch, "float32", heads)
    for batch in (1, 8)
    for heads in ("32/8", "28/4")
  }
  for methods in lines.values():
    assert set(methods) - {"torch_dense"} == METHODS


def test_ratios_follow_from_the_rows(ran):
  _, table, _ = ran
  for methods in _lines(table).values():
    fastest = min(methods[m]["milliseconds"] for m in methods if m in DENSE)
    for row in methods.values():
      ms = row["milliseconds"]
      assert math.isclose(row["speedup"], fastest / ms, rel_tol=1e-9)
      bound = row["bytes"] / row["bandwidth_gigabytes"] / 1e6
      assert math.isclose(row["bound_milliseconds"], bound, rel_tol=1e-9)
      assert math.isclose(row["ratio_to_bound"], ms / bound, rel_tol=1e-9)


def test_bytes_that_must_be_read(ran):
  _, table, _ = ran
  for (_, batch, _, heads), methods in _lines(table).items():
    q, h = map(int, heads.split("/"))
    page = 36 * 128 * 4 * 2
    for name in ("jax_dense", "gaze_all_regions"):
      assert methods[name]["bytes"] == batch * h * 16 * page
    shared = methods["gaze_kv_group"]  # 2 of 16 regions
    assert shared["pages_read"] == 2 / 16
    descriptors = batch * h * 16 * 128 * 4
    assert shared["bytes"] == batch * h * 2 * page + descriptors
    alone = methods["gaze_query_head"]
    assert 2 / 16 < alone["pages_read"] <= min(1, 2 * (q // h) / 16)


def test_output(ran):
  result, table, plot = ran
  for row in table["rows"]:
    assert f"{row['milliseconds']:8.3f}" in result.stdout
  if table["torch"] is None:
    assert result.stdout.count("pip install torch") == 1
  with Image.open(plot) as picture:
    assert picture.size == (720, 480)


@pytest.mark.parametrize(
  "argument, says",
  [
    ("--only=577", "--only=577: the sizes are 576, 1024, "),
    ("--only=many", "give whole numbers"),
    ("--dtypes=float64", "one of float32, bfloat16"),
    ("--plot=picture", "is not a format of pictures"),
  ],
)
def test_a_mistake_is_one_line(argument, says):
  result = _run(argument)
  assert result.returncode == 1
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
  assert says in lines[0]


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
  out = tmp_path_factory.mktemp("generate")
  result = _run(
    "--shape=tiny",
    "--only=576",
    "--rounds=1",
    f"--json={out / 'rows.json'}",
    f"--plot={out / 'plot.png'}",
    script="generate",
  )
  assert result.returncode == 0, result.stderr
  return result, json.loads((out / "rows.json").read_text()), out / "plot.png"


def test_rows_of_generate(generated):
  result, table, plot = generated
  rows = {row["method"]: row for row in table["rows"]}
  ours = {"dense", "gaze_query_head", "gaze_kv_group"}
  assert set(rows) - {"transformers"} == ours
  assert ("transformers" in rows) == (table["transformers"] is not None)
  for row in rows.values():
    assert (row["visual_tokens"], row["batch"]) == (576, 1)
    ms = row["milliseconds_per_step"]
    assert 0 < ms <= row["median_milliseconds"]
    assert math.isclose(row["ratio_to_bound"], ms / row["bound_milliseconds"])
    bound = row["bytes"] / row["bandwidth_gigabytes"] / 1e6
    assert math.isclose(row["bound_milliseconds"], bound)
    assert f"{ms:8.2f}" in result.stdout
  with Image.open(plot) as picture:
    assert picture.size == (720, 480)


def test_bytes_that_a_step_must_read(generated):
  """Weights by hand: 4,100 embeddings of 64, three layers, scales."""
  rows = {row["method"]: row for row in generated[1]["rows"]}
  layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64 + 2 * 16
  weights = 4 * (4100 * 64 + 64 + 3 * layer)
  token = 2 * 16 * 4
  heads = 3 * 2  # layers, KV heads
  assert rows["dense"]["bytes"] == weights + heads * 576 * token
  assert rows["dense"]["pages_read"] == 1
  shared = rows["gaze_kv_group"]  # 2 of 16 regions; the 17th is empty
  assert shared["pages_read"] == 2 / 16
  descriptors = heads * 17 * 16 * 4
  assert shared["bytes"] == weights + heads * 2 * 36 * token + descriptors
  assert 2 / 16 < rows["gaze_query_head"]["pages_read"] <= 4 / 16


@pytest.mark.parametrize(
  "arguments, says",
  [
    (["--only=577"], "--only=577: there are 576, 4608, 20480"),
    (["--batches=2"], "--batches=2: there are 1, 8"),
    (["--only=576", "--batches=8"], "nothing to run: the cases are 576"),
    (["--plot=picture"], "is not a format of pictures"),
    (["--methods=sparse"], "--methods=sparse: there are dense, gaze_query"),
  ],
)
def test_a_mistake_to_generate_is_one_line(arguments, says):
  result = _run(*arguments, script="generate")
  assert result.returncode == 1
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
  assert says in lines[0]


def test_generate_times_the_methods_that_are_asked_for(tmp_path):
  out = tmp_path / "rows.json"
  arguments = ("--shape=tiny", "--only=576", "--methods=gaze_kv_group")
  result = _run(*arguments, "--rounds=1", f"--json={out}", script="generate")
  assert result.returncode == 0, result.stderr
  rows = json.loads(out.read_text())["rows"]
  assert [row["method"] for row in rows] == ["dense", "gaze_kv_group"]


def test_rows_of_train(tmp_path):
  out = tmp_path / "rows.json"
  arguments = ("--shape=tiny", "--rounds=1", f"--json={out}")
  result = _run(*arguments, script="train")
  assert result.returncode == 0, result.stderr
  table = json.loads(out.read_text())
  rows = {row["method"]: row for row in table["rows"]}
  assert list(rows) == ["transformers", "dense", "gaze"]
  for row in rows.values():
    tokens = 2 * 192 / row["seconds"]
    assert math.isclose(row["tokens_per_second"], tokens)
    assert 0 < row["bound_seconds"] and row["seconds"] <= row["median_seconds"]
  assert abs(rows["dense"]["loss"] - rows["transformers"]["loss"]) < 1e-4
  # One of four regions, and the context tokens.
  read = rows["gaze"]["visual_read"]  # a float32 mean
  assert math.isclose(read, (36 + 4) / 144, rel_tol=1e-6)
  assert list(table["shares"]) == list(rows)
  for shares in table["shares"].values():
    assert all(shares[kind] > 0 for kind in ("products", "attention", "rest"))


def test_operations_side_by_side_share_their_time():
  spans = [
    (0, 10, "a"),
    (6, 10, "b"),
    (7, 9, "b"),
    (20, 21, "a"),
    (20, 22, "c"),
  ]
  # 6 alone, 1 of two, 2 of three, 1 of two; half of 1; half of 1, and 1.
  want = {"a": 6 + 0.5 + 2 / 3 + 0.5 + 0.5, "b": 0.5 + 4 / 3 + 0.5, "c": 1.5}
  assert step_shares.divided(spans) == pytest.approx(want)
  assert step_shares.divided([]) == {}


def test_other_logits_of_transformers_are_refused():
  config = generate_models.SHAPES["tiny"]
  params = generate_models.weights(config)
  case = generate_models.make(config, 100, 2)
  dense = generate_models.ours(params, case, None).call
  model = generate_models.transformers_model(config, params)
  for form in generate_models.theirs(model, case).values():
    first, again = form().numpy(), form().numpy()  # the same step again
    assert (first == again).all()
  name, _ = generate_models.faster(case, model, dense)
  assert name in ("DynamicCache", "StaticCache")
  weight = model.model.layers[1].mlp.up_proj.weight
  weight.data = 1.1 * weight.data  # a copy: the memory is ours, too
  with pytest.raises(errors.GazeError, match="differ from ours"):
    generate_models.faster(case, model, dense)
