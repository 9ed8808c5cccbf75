"""Pixels by the files of transformers: which file, and what it asks for."""

import codecs
import json

import numpy as np
import pytest
from transformers.models.clip import image_processing_pil_clip as clip_pixels
from transformers.models.siglip import image_processing_pil_siglip as siglip

import compare
from gaze_jax.data import images
from gaze_jax.models import vision
from gaze_jax.weights import errors
from gaze_jax.weights.families import image_processors
from gaze_jax.weights.families import towers

NESTED, ALONE = image_processors.NESTED, image_processors.ALONE
VIDEO = image_processors.VIDEO
SIGLIP = dict(model_type="siglip_vision_model", image_size=28, patch_size=7)
CLIP = dict(model_type="clip_vision_model")
A, B = (
  dict(image_processor_type="CLIPImageProcessor", image_mean=[x] * 3)
  for x in (0.25, 0.5)
)


@pytest.mark.parametrize(
  "files, want",
  [
    ({}, None),
    ({ALONE: A}, (ALONE, A)),
    ({NESTED: dict(image_processor=A)}, (NESTED, A)),
    ({NESTED: dict(image_processor=A), ALONE: B}, (NESTED, A)),
    # As transformers 4 wrote it, and with a null for what is elsewhere.
    ({NESTED: dict(patch_size=14), ALONE: B}, (ALONE, B)),
    ({NESTED: dict(image_processor=None), ALONE: B}, (ALONE, B)),
    ({NESTED: dict(patch_size=14)}, None),
  ],
)
def test_the_file_is_the_one_that_transformers_takes(tmp_path, files, want):
  for name, value in files.items():
    text = codecs.BOM_UTF8 + json.dumps(value).encode()
    (tmp_path / name).write_bytes(text)
  assert image_processors.find(tmp_path) == want
  if want:
    for name, value in files.items():  # which reads no byte-order mark
      (tmp_path / name).write_text(json.dumps(value))
    kind = clip_pixels.CLIPImageProcessorPil
    assert kind.get_image_processor_dict(tmp_path)[0] == want[1]


@pytest.mark.parametrize(
  "files, want",
  [
    ({}, []),
    ({VIDEO: dict(image_mean=[0.5] * 3, size=dict(height=28, width=28))}, []),
    ({VIDEO: dict(image_mean=[0.25] * 3)}, ["mean = (0.25, 0.25, 0.25) for a"]),
    (
      {NESTED: dict(video_processor=dict(resample=2)), VIDEO: dict(size=56)},
      ["resample = bilinear for a video, bicubic for a picture"],
    ),
    ({NESTED: dict(image_processor=A), VIDEO: dict(size=56)}, ["image_size ="]),
    ({VIDEO: dict(do_rescale=False)}, ["do_rescale = False is not computed"]),
  ],
)
def test_what_frames_are_not_given_is_said(tmp_path, files, want):
  for name, value in files.items():
    (tmp_path / name).write_text(json.dumps(value))
  c = towers.config(SIGLIP)
  said = image_processors.other_for_videos(tmp_path, c)
  assert len(said) == len(want)
  for line, start in zip(said, want, strict=True):
    assert line.startswith(start)


@pytest.mark.parametrize(
  "name, text, message",
  [
    (NESTED, '{"image_processor": []}', "image_processor is not a JSON object"),
    (NESTED, "{", "is not JSON"),
    (ALONE, "[" * 200_000, "nested too deep"),
    (ALONE, "", "the file is empty"),
    (ALONE, "version https://git-lfs.github.com/spec/v1", "git lfs pull"),
  ],
)
def test_a_broken_file_is_named(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(errors.ConversionError, match=message) as caught:
    image_processors.find(tmp_path)
  assert name in str(caught.value)


@pytest.mark.parametrize(
  "raw",
  [
    {"do_normalize": False},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
    {"rescale_factor": 1 / 127.5, "do_normalize": False},
    {"image_mean": 0.25, "image_std": 2.0, "do_convert_rgb": False},
    {"size": 30, "crop_size": 20, "resample": 2},
    {"size": [24, 24], "crop_size": [24, 24], "do_center_crop": True},
    {"size": {"height": 24, "width": 24}, "do_center_crop": False},
    {"size": {"shortest_edge": 24, "longest_edge": None}, "crop_size": 24},
  ],
  ids=str,
)
def test_pixels_are_those_of_transformers(raw):
  raw = {"size": 24, "crop_size": 24} | raw
  c = towers.config(CLIP, raw)
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (40, 28, 3), dtype=np.uint8)
  theirs = clip_pixels.CLIPImageProcessorPil(**raw)
  (want,) = theirs(picture, return_tensors="np")["pixel_values"]
  got = np.asarray(vision.normalise(images.preprocess(picture, c), c))
  got = got.transpose(2, 0, 1)
  compare.close(got, want)
  # And those of what goes out again.
  written = image_processors.write(c)
  kind = clip_pixels.CLIPImageProcessorPil
  if written["image_processor_type"] == "SiglipImageProcessor":
    kind = siglip.SiglipImageProcessorPil
  back = kind(**written)
  (again,) = back(picture, return_tensors="np")["pixel_values"]
  compare.close(again, want)
