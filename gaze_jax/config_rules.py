"""Which values and combinations of a config make sense, and why.

`config.from_config_dict` holds a config to these rules when it is read.
"""

import re
from collections.abc import Iterator
from typing import Any

# A rule is a fact that must hold, and what to say when it does not.
Rules = list[tuple[bool, str]]


def rules(config: Any) -> Iterator[tuple[bool, str]]:
  """The rules of a `config.Config`; the later ones rely on the earlier."""
  yield from _model_rules(config.model)
  yield from _tiling_rules(config.model)
  yield from _gaze_rules(config.model)
  yield from _data_rules(config)
  yield from _train_rules(config)


def _model_rules(model: Any) -> Rules:
  vision, decoder = model.vision, model.decoder
  v, d = "model.vision", "model.decoder"
  return [
    (
      # So400m reads 384 pixels in patches of 14, and was trained to drop six.
      vision.image_size % vision.patch_size == 0
      or vision.grid == vision.position_grid,
      f"{v}.image_size = {vision.image_size} is not a multiple of"
      f" patch_size = {vision.patch_size}",
    ),
    (
      vision.width % vision.heads == 0,
      f"{v}.width = {vision.width} is not a multiple of heads = {vision.heads}",
    ),
    (
      0 <= vision.layers_used <= vision.depth,
      f"{v}.hidden_state = {vision.hidden_state} does not exist in a tower"
      f" of depth {vision.depth}",
    ),
    (
      not vision.max_patches or not vision.class_token,
      f"{v}.max_patches = {vision.max_patches} is a NaFlex tower, which has no"
      " class_token",
    ),
    (
      not vision.max_patches or model.projector.positions == "none",
      f"{v}.max_patches = {vision.max_patches} gives pictures of any aspect,"
      " and model.projector.positions are those of squares",
    ),
    (
      vision.weights == "random" or vision.patch_size == 14,
      f"{v}.weights = {vision.weights!r} is a tower of patch_size 14",
    ),
    (
      decoder.query_heads % decoder.kv_heads == 0,
      f"{d}.query_heads = {decoder.query_heads} is not a multiple of"
      f" kv_heads = {decoder.kv_heads}",
    ),
    (
      decoder.head_dim % 2 == 0,
      f"{d}.head_dim = {decoder.head_dim} must be even for RoPE",
    ),
  ]


def _tiling_rules(model: Any) -> Rules:
  tiling, size, t = model.tiling, model.vision.image_size, "model.tiling"
  if tiling.kind == "none":
    return []
  wrong = [p for p in tiling.pinpoints if any(n % size for n in p)]
  return [
    (
      bool(tiling.pinpoints),
      f"{t}.kind = {tiling.kind!r} needs {t}.pinpoints, the sizes that an image"
      " may be fitted into",
    ),
    (
      not wrong,
      f"{t}.pinpoints has {wrong[:1]}, which are no multiples of"
      f" model.vision.image_size = {size}",
    ),
    (
      not model.vision.max_patches,
      f"{t}.kind = {tiling.kind!r} cuts squares, and"
      " model.vision.max_patches makes a tower of other shapes",
    ),
  ]


def _gaze_rules(model: Any) -> Rules:
  gaze, depth, g = model.gaze, model.decoder.depth, "model.gaze"
  learns = gaze.gradient != "none"
  return [
    (
      gaze.descriptor != "submean"
      or 2 <= gaze.sub_cells <= gaze.region[0] * gaze.region[1],
      f"{g}.sub_cells = {gaze.sub_cells} must be 2 to the tokens of a region"
      " with descriptor = 'submean'",
    ),
    (
      all(i < depth for i in gaze.dense_layers)
      and len(set(gaze.dense_layers)) == len(gaze.dense_layers),
      f"{g}.dense_layers = {gaze.dense_layers} must name layers 0 to"
      f" {depth - 1}, each once",
    ),
    (
      gaze.route_prompt or gaze.refresh == "token",
      f"{g}.refresh = 'question' keeps what the prompt's last token chose, and"
      " with route_prompt = False no prompt token chooses",
    ),
    (
      not learns or gaze.implementation != "pallas",
      f"{g}.gradient = {gaze.gradient!r} sends a gradient into the scores, and"
      " the kernel of implementation = 'pallas' has none; use 'auto'",
    ),
    (
      not learns or len(gaze.dense_layers) < depth,
      f"{g}.gradient = {gaze.gradient!r} trains scores, and dense_layers leaves"
      " no layer that has any",
    ),
    (
      gaze.gradient != "straight_through"
      or gaze.top_k > 0
      or gaze.budget == "ratio",
      f"{g}.gradient = 'straight_through' reaches the scores of chosen regions,"
      " and top_k = 0 chooses none",
    ),
  ]


def _data_rules(config: Any) -> Rules:
  data, model = config.data, config.model
  slots = data.max_units * (model.vision.tokens + model.gaze.context_tokens)
  return [
    (
      data.sequence_length > slots,
      f"data.sequence_length = {data.sequence_length} leaves no room for"
      f" text beside {slots} visual and context slots",
    ),
    (
      model.tiling.kind == "none" or data.max_units >= 2,
      f"data.max_units = {data.max_units}: with model.tiling.kind ="
      f" {model.tiling.kind!r} an image alone is two units, so 2 at least",
    ),
    (
      model.decoder.weights == "random"
      or data.tokenizer == model.decoder.weights,
      f"model.decoder.weights = {model.decoder.weights!r} knows the ids of one"
      f" tokenizer; set data.tokenizer = {model.decoder.weights!r}",
    ),
    (
      data.source != "llava_json" or bool(data.path),
      "data.source = 'llava_json' needs data.path, the JSON file",
    ),
  ]


def _train_rules(config: Any) -> Rules:
  train, schedule = config.train, config.train.k_schedule
  model = config.model
  return [
    (
      train.batch_size % train.accumulation == 0,
      f"train.batch_size = {train.batch_size} is not a multiple of"
      f" train.accumulation = {train.accumulation}",
    ),
    *(_group_rule(*group) for group in train.groups),
    (
      train.features == "none" or model.vision.frozen,
      "train.features = 'cached' needs model.vision.frozen = True: the"
      " features of a tower that trains change",
    ),
    (
      train.features == "none"
      or (model.tiling.kind == "none" and not model.vision.max_patches),
      "train.features = 'cached' keeps each image as one square, and with"
      f" model.tiling.kind = {model.tiling.kind!r}, model.vision.max_patches ="
      f" {model.vision.max_patches} images differ; set train.features = 'none'",
    ),
    (
      schedule.dense_until <= schedule.final_at,
      f"train.k_schedule.dense_until = {schedule.dense_until} is past final_at"
      f" = {schedule.final_at}",
    ),
    (
      schedule.kind != "random" or schedule.final_at < 1,
      "train.k_schedule.kind = 'random' draws from final_at on, and final_at"
      f" = {schedule.final_at} is the end of the run",
    ),
    (
      train.keep_every % train.save_every == 0,
      f"train.keep_every = {train.keep_every} must be a multiple of"
      f" train.save_every = {train.save_every}, or 0 for none",
    ),
    (
      config.parallel.data >= 1 or config.parallel.data == -1,
      f"parallel.data = {config.parallel.data} must be 1 or more, or -1 for the"
      " devices that the other axes leave",
    ),
  ]


def _group_rule(pattern: str, share: float) -> tuple[bool, str]:
  try:
    re.compile(pattern)
  except re.error as error:
    return False, f"train.groups: {pattern!r} is no regular expression: {error}"
  return True, ""
