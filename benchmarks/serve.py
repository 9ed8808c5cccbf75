"""Times a server's clients against `generate_many`, in one run.

python benchmarks/serve.py [--requests=64] [--clients=32] [--batch_size=16]
    [--rounds=1] [--json=FILE]

The model and the requests of benchmarks/generate_many.py. The clients are those
of the `openai` package, in a process of their own; each sends its next request
once it has the answer to the last. Both sides answer all requests once before
they are timed. The server's memory for pictures that were read holds about one
request, so what it had read then it reads again. Greedy texts must be the same;
where the two best logits are too close two programs may part, which is counted.
"""

import asyncio
import base64
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import mixed_requests
from benchmarks import small_model
from benchmarks import timing
from gaze_jax import api
from gaze_jax import cli
from gaze_jax.serve import app as app_lib
from gaze_jax.serve import run as run_lib

_CLIENTS = flags.DEFINE_integer("clients", 32, "at once", 1)
_ASK = flags.DEFINE_bool("ask", False, "be the clients: JSON in, texts out")

_NAME = "gaze"


def run(
  asked: Sequence[mixed_requests.Asked],
  shape: small_model.Shape,
  *,
  clients: int,
  batch_size: int,
  rounds: int,
) -> list[dict[str, Any]]:
  """A row for `generate_many`, and one for the server.

  Raises:
    errors.GazeError: PyTorch or transformers is not installed.
  """
  small_model.check_installed()
  with tempfile.TemporaryDirectory() as folder:
    small_model.write(pathlib.Path(folder), shape)
    model = api.load(folder)

  def many() -> tuple[list[str], float]:
    start = time.perf_counter()
    given = map(mixed_requests.request, asked)
    answers = list(model.generate_many(given, batch_size=batch_size))
    return [one.text for one in answers], time.perf_counter() - start

  server = app_lib.Server(
    model,
    lambda line: None,
    name=_NAME,
    rows=batch_size,
    kept_bytes=_one_request(model, asked),
  )
  rows = [_timed("generate_many", many, len(asked), rounds)]
  bodies = [_body(one) for one in asked]
  with run_lib.background(server) as url:
    served = lambda: _clients(url, bodies, clients)
    name = f"server, {clients} clients"
    rows.append(_timed(name, served, len(asked), rounds))
  want = rows[0].pop("texts")
  for row in rows:
    texts = row.pop("texts", want)
    row["texts_that_part"] = sum(map(str.__ne__, texts, want))
    row["ratio"] = row["requests_per_second"] / rows[0]["requests_per_second"]
    print(_line(row), flush=True)
  return rows


def _one_request(
  model: api.Model, asked: Sequence[mixed_requests.Asked]
) -> int:
  """Bytes for what the largest request shows, and so for little else."""
  most = max(asked, key=lambda one: len(one.images))
  context = model.encode(images=most.images)
  return 2 * context.nbytes


def _timed(
  name: str,
  ask: Callable[[], tuple[list[str], float]],
  count: int,
  rounds: int,
) -> dict[str, Any]:
  """The row of a side; `ask` gives all texts and the seconds they took."""
  texts, _ = ask()
  seconds = [ask()[1] for _ in range(rounds)]
  return dict(
    method=name,
    seconds=min(seconds),
    requests_per_second=count / min(seconds),
    texts=texts,
  )


def _body(one: mixed_requests.Asked) -> dict[str, Any]:
  """A request as a client sends it."""
  parts = [
    dict(type="image_url", image_url=dict(url=_data_uri(image)))
    for image in one.images
  ]
  parts.append(dict(type="text", text=one.question))
  return dict(
    model=_NAME,
    temperature=0,
    max_completion_tokens=one.new_tokens,
    messages=[dict(role="user", content=parts)],
  )


def _data_uri(image: Image.Image) -> str:
  file = io.BytesIO()
  image.save(file, "PNG")
  content = base64.b64encode(file.getvalue()).decode()
  return f"data:image/png;base64,{content}"


def _clients(
  url: str, bodies: Sequence[dict[str, Any]], clients: int
) -> tuple[list[str], float]:
  """Texts of the answers, from clients in another process, and the seconds.

  Those count from where its packages are imported.
  """
  given = dict(url=url, bodies=list(bodies), clients=clients)
  done = subprocess.run(
    [sys.executable, __file__, "--ask"],
    input=json.dumps(given),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  texts, seconds = json.loads(done.stdout)
  return texts, seconds


async def _ask(given: dict[str, Any]) -> tuple[list[str], float]:
  """Sends requests, so many at a time."""
  import openai  # of the tests alone

  texts, waiting = {}, iter(enumerate(given["bodies"]))
  async with openai.AsyncOpenAI(
    base_url=f"{given['url']}/v1", api_key="none", max_retries=0, timeout=3600
  ) as client:

    async def one_client() -> None:
      for number, body in waiting:
        got = await client.chat.completions.create(**body)
        texts[number] = got.choices[0].message.content

    await client.models.list()
    start = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(given["clients"])))
    seconds = time.perf_counter() - start
  return [texts[number] for number in sorted(texts)], seconds


def _line(row: dict[str, Any]) -> str:
  return (
    f"{row['method']:20s} {row['seconds']:8.1f} s"
    f" {row['requests_per_second']:7.3f} requests/s {row['ratio']:5.2f}x"
    f"  {row['texts_that_part']} texts part"
  )


def main() -> None:
  if _ASK.value:
    print(json.dumps(asyncio.run(_ask(json.load(sys.stdin)))))
    return
  rows = run(
    mixed_requests.make(mixed_requests.REQUESTS.value),
    mixed_requests.SHAPE,
    clients=_CLIENTS.value,
    batch_size=mixed_requests.ROWS.value,
    rounds=mixed_requests.ROUNDS.value,
  )
  result = dict(rows=rows, **timing.machine())
  timing.write_json(mixed_requests.JSON.value, result)


if __name__ == "__main__":
  cli.main(main)
