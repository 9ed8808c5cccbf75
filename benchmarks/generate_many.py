"""Times many requests: one at a time, together, and transformers in batches.

python benchmarks/generate_many.py [--requests=64] [--batches=8,16,64]
    [--batch_size=16] [--rounds=1] [--json=FILE]

A random LLaVA (`small_model`) whose decoder is Qwen3-0.6B's cut to 6 layers,
with images of 144 visual tokens, float32; a checkpoint of transformers that
both sides read. The requests come in one order: a quarter text alone, half with
one image, a quarter with two to four; each wants 4 to 64 new tokens, greedy,
and all regions are read. Methods:

  one at a time      `Model.generate`, each request after the other
  many               `Model.generate_many`, continuous batching
  transformers, B    its `generate` on B requests in a row at a time, padded to
                     the longest prompt and run to the longest answer, which is
                     what it has for images; each answer is cut where it was to
                     end

Every method answers all requests once before it is timed. Texts must be the
same; the two best logits may be too close for two programs to agree on, and a
text that parts there is counted.
"""

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import mixed_requests
from benchmarks import small_model
from benchmarks import timing
from gaze_jax import api
from gaze_jax import cli
from gaze_jax.decode import programs

_BATCHES = flags.DEFINE_list("batches", ["8", "16", "64"], "of transformers")

Texts = list[tuple[int, ...]]


def run(
  asked: Sequence[mixed_requests.Asked],
  shape: small_model.Shape,
  *,
  batches: Sequence[int],
  batch_size: int,
  rounds: int,
) -> list[dict[str, Any]]:
  """A row for each method; see the top of this file.

  Raises:
    errors.GazeError: PyTorch or transformers is not installed.
  """
  small_model.check_installed()
  small_model.torch.set_num_threads(os.cpu_count())
  with tempfile.TemporaryDirectory() as folder:
    small_model.write(pathlib.Path(folder), shape)
    model = api.load(folder)
    theirs, processor = small_model.load(pathlib.Path(folder), shape)
  processor.tokenizer.padding_side = "left"
  methods: dict[str, Callable[[], Texts]] = {
    "one at a time": lambda: _alone(model, asked),
    "many": lambda: _many(model, asked, batch_size),
  } | {
    f"transformers, {b}": lambda b=b: _theirs(theirs, processor, asked, b)
    for b in batches
  }
  rows, want = [], None
  for name, method in methods.items():
    before = programs.compiled()
    texts = method()
    want = want or texts
    compiled, seconds = programs.compiled() - before, []
    for _ in range(rounds):
      start = time.perf_counter()
      method()
      seconds.append(time.perf_counter() - start)
    rows.append(
      dict(
        method=name,
        seconds=min(seconds),
        requests_per_second=len(asked) / min(seconds),
        tokens_per_second=sum(map(len, texts)) / min(seconds),
        texts_that_part=sum(a != b for a, b in zip(texts, want, strict=True)),
        programs=compiled,
      )
    )
    print(_line(rows[-1], rows[0]), flush=True)
  return rows


def _alone(model: api.Model, asked: Sequence[mixed_requests.Asked]) -> Texts:
  return [
    model.generate(
      one.question, images=one.images, max_tokens=one.new_tokens
    ).tokens
    for one in asked
  ]


def _many(
  model: api.Model, asked: Sequence[mixed_requests.Asked], rows: int
) -> Texts:
  given = (mixed_requests.request(one) for one in asked)
  return [one.tokens for one in model.generate_many(given, batch_size=rows)]


def _theirs(
  model: Any, processor: Any, asked: Sequence[mixed_requests.Asked], batch: int
) -> Texts:
  out: Texts = []
  for start in range(0, len(asked), batch):
    some = asked[start : start + batch]
    images = [image for one in some for image in one.images]
    inputs = processor(
      text=[
        small_model.beginning(len(one.images)) + small_model.turn(one.question)
        for one in some
      ],
      images=images or None,
      padding=True,
      return_tensors="pt",
    )
    with small_model.torch.inference_mode():
      ids = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max(one.new_tokens for one in some),
      )
    new = ids[:, inputs["input_ids"].shape[1] :].tolist()
    out += [
      tuple(row[: one.new_tokens]) for row, one in zip(new, some, strict=True)
    ]
  return out


def _line(row: dict[str, Any], first: dict[str, Any]) -> str:
  times = row["requests_per_second"] / first["requests_per_second"]
  return (
    f"{row['method']:18s} {row['seconds']:8.1f} s"
    f" {row['requests_per_second']:7.3f} requests/s"
    f" {row['tokens_per_second']:7.1f} tokens/s {times:5.2f}x"
    f"  {row['texts_that_part']} texts part  {row['programs']} programs"
  )


def main() -> None:
  rows = run(
    mixed_requests.make(mixed_requests.REQUESTS.value),
    mixed_requests.SHAPE,
    batches=[int(b) for b in _BATCHES.value],
    batch_size=mixed_requests.ROWS.value,
    rounds=mixed_requests.ROUNDS.value,
  )
  result = dict(rows=rows, **timing.machine())
  timing.write_json(mixed_requests.JSON.value, result)


if __name__ == "__main__":
  cli.main(main)
