"""A tiny random model that is served in a thread of this process."""

import base64
import contextlib
import io

import flax.linen as nn
import jax
import numpy as np
import openai
import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.models import mllm
from gaze_jax.serve import app
from gaze_jax.serve import run


@pytest.fixture(scope="session")
def model(tiny_config):
  """Random, with embeddings large enough for answers to vary."""
  config = tiny_config(model__vision__position_grid=5)
  init = jax.jit(mllm.init, static_argnums=0)
  params = nn.meta.unbox(init(config.model, jax.random.key(0)))
  params["decoder"]["embedding"] *= 20
  tokenizer = tokenizer_lib.Tokenizer.load()
  return api.Model(config, params, tokenizer, cache_bytes=2**28)


@contextlib.contextmanager
def serving(model, **options):
  """A server; `server.url` is its address, `server.lines` its log."""
  lines = []
  server = app.Server(model, lines.append, **(dict(rows=4) | options))
  server.lines = lines
  with run.background(server) as server.url:
    yield server


@pytest.fixture(scope="session")
def serve(model):
  """Makes servers of the model; keywords are those of `app.Server`."""
  return lambda **options: serving(model, **options)


@pytest.fixture(scope="module")
def server(serve):
  with serve() as server:
    yield server


@pytest.fixture(scope="module")
def client(server):
  with openai.OpenAI(
    base_url=f"{server.url}/v1", api_key="none", max_retries=0
  ) as client:
    yield client


def data_uri(number=0, size=(30, 60)):
  """A picture by number, as the parts of a message have it."""
  rng = np.random.default_rng(number)
  pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="session")
def user():
  """A message of the user: pictures by number, then a text."""

  def make(text, *pictures):
    shown = [
      dict(type="image_url", image_url=dict(url=data_uri(n))) for n in pictures
    ]
    return dict(role="user", content=[*shown, dict(type="text", text=text)])

  return make


@pytest.fixture(scope="session")
def picture():
  """The bytes of a picture by number, as `user` sends it."""
  return lambda n: base64.b64decode(data_uri(n).partition(",")[2])
