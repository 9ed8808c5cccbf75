"""What tests/api/talk_test.py asks of two devices that share rows; prints JSON.

  python on_rows.py DIRECTORY

Conversations are read in parts that are kept, and answered with and without a
trace, on one device and on both. It has a process of its own: a process has as
many devices as it began with.
"""

import json
import sys

import numpy as np

from gaze_jax import api
from gaze_jax.data import messages
from gaze_jax.decode import scheduler as scheduler_lib


def conversations():
  shown = messages.Part(messages.IMAGE)
  said = lambda i: messages.Part(messages.TEXT, f"what is {i}?")
  draw = lambda n: np.random.default_rng(n).integers(
    0, 255, (30, 60, 3), dtype=np.uint8
  )
  for i in range(6):
    parts = (shown, said(i)) if i else (said(i),)
    talk = (messages.Message(messages.USER, parts),)
    images = [draw(i % 2)] if i else []
    yield api.Request("", talk=talk, images=images, max_tokens=3 + i)


def answers(model, trace):
  """Tokens of each, and what they read."""
  tokens, chosen = {}, {}
  with model.on_mesh():
    scheduler = scheduler_lib.Scheduler(
      model.params,
      model.config.model,
      rows=2,
      cache_bytes=2**28,
      kept_bytes=2**26,
      stop=model.tokenizer.ends,
    )
    for number, request in enumerate(conversations()):
      job = model.prepare(request, in_parts=True, trace=trace)
      scheduler.check(job)
      scheduler.submit(number, job)
    scheduler.cancel(4)
    while scheduler.live or scheduler.waiting:
      while scheduler.admit():
        pass
      for event in list(scheduler.turn(3)):
        if trace:
          chosen.setdefault(event.number, []).append(event.chosen)
        if event.result:
          tokens[event.number] = event.result.tokens
  read = {n: np.concatenate(x).astype(int).tolist() for n, x in chosen.items()}
  return dict(tokens=tokens, read=read)


def main():
  found = []
  for sizes in (None, dict(data=2)):
    model = api.load(sys.argv[1], parallel=sizes)
    found += [answers(model, trace) for trace in (False, True)]
  print(json.dumps(found))


if __name__ == "__main__":
  main()
