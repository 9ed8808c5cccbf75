"""Prompts as a checkpoint of transformers wants them: raw text with marks.

The prompt is tokenized as it stands, special tokens included, as with a
tokenizer of transformers; the chat format is up to whoever writes it. Each
`<image>` and `<video>` in it stands for all the tokens of one image or video.
"""

import re
from collections.abc import Sequence

import tokenizers

from gaze_jax import config as config_lib
from gaze_jax.data import images as images_lib
from gaze_jax.data import prompts
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib

IMAGE, VIDEO = "<image>", "<video>"


def make(
  prompt: str,
  tokenizer: tokenizers.Tokenizer,
  model: config_lib.ModelConfig,
  *,
  images: Sequence[images_lib.Picture] = (),
  videos: Sequence[Sequence[images_lib.Picture]] = (),
) -> prompts.Prompt:
  """A prompt with what its marks stand for, in order.

  Args:
    prompt: the whole text, in the model's chat format.
    tokenizer: the model's own.
    model: the model.
    images: as in `units.of_images`.
    videos: frames of each, as in `units.of_video`.
  """
  pieces = split(prompt, tokenizer)
  seen = {
    IMAGE: units.of_images(images, model),
    VIDEO: [units.of_video(frames, model) for frames in videos],
  }
  for mark, given in seen.items():
    assert pieces.count(mark) == len(given), prompt
  parts: list[prompts.Part] = []
  pixels: list[units.Pixels] = []
  for piece in pieces:
    if isinstance(piece, str):
      one = seen[piece].pop(0)
      parts += one.units
      pixels.append(one.pixels)
    else:
      parts.append(row_lib.Text(piece))
  return prompts.Prompt(tuple(parts), units.join(pixels, model))


def split(
  prompt: str, tokenizer: tokenizers.Tokenizer
) -> list[list[int] | str]:
  """The ids between the marks of a prompt, and the marks.

  A mark that the vocabulary has is a token like others. One that it lacks, as
  in LLaVA's own checkpoints, cuts the text, and each piece is tokenized alone.
  """
  ids = {tokenizer.token_to_id(mark): mark for mark in (IMAGE, VIDEO)}
  unknown = [m for m in (IMAGE, VIDEO) if tokenizer.token_to_id(m) is None]
  texts = [prompt]
  if unknown:
    texts = re.split("(" + "|".join(map(re.escape, unknown)) + ")", prompt)
  out: list[list[int] | str] = []
  for i, text in enumerate(texts):
    if text in unknown:
      out.append(text)
      continue
    # What begins a text (a <bos>) begins the prompt alone.
    out.append([])
    for token in tokenizer.encode(text, add_special_tokens=not i).ids:
      if token in ids:
        out += [ids[token], []]
      else:
        out[-1].append(token)
  return [piece for piece in out if piece]
