"""What may differ between a run and the next, and how the rest is said."""

import json

import pytest

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.train import compatibility

DATA = dict(samples=64, texts="t", pictures="p", any_order="s")


def config(path="t.json"):
  data = dict(source="llava_json", path=path)
  return config_lib.from_config_dict(dict(data=data))


def others(**changes):
  return compatibility.input_differences(
    dict(data=DATA), dict(data=DATA | changes), config()
  )


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(texts="u", pictures="q"), "(the same samples in another order)"),
    (dict(texts="u", any_order="x"), "(other texts)"),
    (dict(pictures="q", any_order="x"), "(other pictures)"),
    (dict(DATA, samples=63, texts="u", pictures="q", any_order="x"), "-> 63 "),
  ],
)
def test_other_data_are_said_by_what_differs(changes, says):
  (said,) = others(**changes)
  assert said.startswith("data.path = 't.json': 64 samples, ") and says in said
  before, now = said.removesuffix(")").split(": ")[1].split(" -> ")
  assert before != now.split(" (")[0]


def test_the_same_data_are_none():
  assert others() == others(new="what an older gaze_jax does not know") == []
  # What a checkpoint does not say is not compared.
  assert compatibility.input_differences({}, dict(data=DATA), config()) == []
  older = dict(data=dict(samples=64))
  assert compatibility.input_differences(older, dict(data=DATA), config()) == []
  (said,) = compatibility.input_differences(
    older, dict(data=dict(samples=9)), config()
  )
  assert "64 samples" in said and "9 samples" in said and said[-1] != ")"


def test_other_tokenizers_and_weights_are_said_by_their_field():
  old = dict(tokenizer=dict(hash="a"), weights={"x.safetensors": "b"})
  new = dict(tokenizer=dict(hash="c"), weights={"y.safetensors": "b"})
  one, two = compatibility.input_differences(old, new, config())
  assert one.startswith("data.tokenizer = '': ") and " -> " in one
  assert two.startswith("train.init_from = '': ") and " -> " in two


def test_what_is_read_by_a_run(tiny_config):
  one = tiny_config()
  source = plugins.source(one.data.source).make(one, "train")
  read = compatibility.inputs(one, source)
  assert read.keys() == {"data", "tokenizer", "weights"}
  assert read["data"]["samples"] == 12 and read["weights"] == {}
  assert json.loads(json.dumps(read)) == read
  assert compatibility.model_inputs(one).keys() == {"tokenizer", "weights"}
  trains = tiny_config(model__vision__frozen=False, train__features="none")
  assert compatibility.model_inputs(trains).keys() == {"tokenizer"}


def test_where_things_lie_and_how_long_is_free():
  old = config_lib.to_dict(config("t.json"))
  new = config_lib.to_dict(config("u.json"))
  new["data"] |= dict(image_folder="x", eval_path="y", tokenizer="z")
  new["data"] |= dict(max_skipped=0.5, max_pixels=7)
  new["train"] |= dict(init_from="w", steps=7)
  assert compatibility.config_differences(old, new) == []
  # Without contents to compare, where things lie is all that is known.
  strict = compatibility.config_differences(old, new, by_content=False)
  assert [line.split(":")[0] for line in strict] == [
    *(f"data.{k}" for k in ("image_folder", "max_pixels", "max_skipped")),
    *("data.path", "data.tokenizer", "train.init_from"),
  ]
  assert "data.path: 't.json' -> 'u.json'" in strict


def test_the_config_that_a_run_was_called_with_last(tmp_path):
  saved, file = config(), tmp_path / "config.json"

  def call(raw):
    file.write_bytes(
      raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    )
    return compatibility.latest_config(saved, file)

  assert compatibility.latest_config(saved, file) == saved
  moved = config_lib.to_dict(config("u.json"))
  assert call(moved).data.path == "u.json"
  other = config_lib.to_dict(saved)
  other["train"]["learning_rate"] = 0.5
  for raw in (other, b"{", dict(data=3), b"\xff", dict(data=dict(paht="x"))):
    assert call(raw) == saved


def test_a_tokenizer_is_told_by_what_it_does(tmp_path):
  raw = json.loads(tokenizer_lib.SHIPPED.read_text(encoding="utf-8"))
  shipped = tokenizer_lib.Tokenizer.load()

  def made(name):
    file = tmp_path / name
    file.write_text(json.dumps(raw, indent=2, sort_keys=True))
    return tokenizer_lib.Tokenizer.load(str(file)).fingerprint()

  assert made("same.json") == shipped.fingerprint()
  merges = raw["model"]["merges"]
  merges[0], merges[1] = merges[1], merges[0]
  raw["model"]["merges"] = merges[:-1]
  assert made("merges.json") != shipped.fingerprint()
  raw["model"]["merges"] = merges
  vocabulary = raw["model"]["vocab"]
  vocabulary["a"], vocabulary["o"] = vocabulary["o"], vocabulary["a"]
  assert made("swapped.json") != shipped.fingerprint()
