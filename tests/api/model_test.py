"""The Python API: what it answers, refuses, streams and forks."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax import errors
from gaze_jax.api import directory as directory_lib
from gaze_jax.layout import budgets
from gaze_jax.models import decoder

Q = "what is it?"
FEW = dict(max_tokens=4)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["plain", "crop", "tiles", "patches"])
def test_an_answer_its_cost_its_picture_and_its_page(model, picture, kind):
  ours = model(kind)
  reply = ours.generate(Q, images=[picture()], trace=True, **FEW)
  assert len(reply.tokens) == 4 and reply.reason == "length"
  context = reply.context
  assert context.unit_count == (2 if kind == "tiles" else 1)
  account = reply.accounting()
  tokens = {"tiles": 25 + 3 * 6, "patches": 2 * 4}.get(kind, 25)
  assert account.visual_tokens == context.visual_tokens == tokens
  assert account.as_dict()["visual_kv_fraction"] == account.visual_kv_fraction
  shown = np.unique(np.concatenate([v.regions.ravel() for v in context.views]))
  assert shown.tolist() == list(range(len(context.sizes)))
  assert reply.picture(layers=[1], heads=[0, 3]).width > 336
  with pytest.raises(errors.GazeError, match="no layer 2"):
    reply.picture(layers=[2])
  assert len(reply.animation()) >= 1
  page = reply.page(account)
  assert "<html" in page and Q in page


@pytest.mark.nightly
def test_views_show_what_the_model_saw(model, picture):
  image = picture(size=(30, 60))
  whole = model().encode_image(image).views[0]
  np.testing.assert_array_equal(whole.picture, image)
  cropped = model("crop").encode_image(image).views[0]
  assert cropped.picture.shape == (70, 70, 3)
  want = np.asarray(Image.fromarray(image).resize((140, 70), 3))[:, 35:105]
  np.testing.assert_allclose(cropped.picture.astype(int), want, atol=1)
  square, tiles = model("tiles").encode_image(image).views
  assert square.regions.shape == (5, 5)
  # 3 x 5 tokens; the newlines that end its rows are shown nowhere.
  assert tiles.regions.shape == (3, 5)
  assert tiles.regions.min() == square.regions.max() + 1


def test_ways_of_asking_are_one(model, picture, tmp_path):
  ours, image = model(), picture()
  Image.fromarray(image).save(tmp_path / "a.png")
  want = ours.generate(Q, images=[image], **FEW)
  seen = ours.encode_image(tmp_path / "a.png")
  data = (tmp_path / "a.png").read_bytes()
  for reply in (
    ours.generate(Q, images=[str(tmp_path / "a.png")], **FEW),
    ours.generate(Q, images=[data], **FEW),
    ours.generate(Q, images=[Image.fromarray(image)], **FEW),
    ours.generate(f"<image>\n{Q}", images=[image], **FEW),
    ours.generate(Q, seen, **FEW),
    ours.generate(Q, seen, trace=True, **FEW),
    ours.generate_batch([api.Request(Q, seen, **FEW)] * 3)[2],
  ):
    assert reply.tokens == want.tokens and reply.text == want.text
  other = ours.generate(Q, images=[picture(1)], **FEW)
  assert other.tokens != want.tokens


def test_a_stream_is_the_answer_piece_by_piece(model, picture):
  ours = model()
  seen = ours.encode_image(picture())
  want = ours.generate(Q, seen, max_tokens=12)
  stream = ours.stream(Q, seen, max_tokens=12)
  pieces = list(stream)
  assert "".join(pieces) == want.text and len(pieces) > 1
  assert stream.answer.tokens == want.tokens
  assert stream.answer.reason == want.reason


def test_an_interrupted_stream_is_an_answer_so_far(model, picture):
  ours = model()
  seen = ours.encode_image(picture())
  want = ours.generate(Q, seen, max_tokens=12)
  stream = ours.stream(Q, seen, max_tokens=12)
  for _ in stream:
    stream.stop()
  short = stream.answer
  assert short.reason == "interrupted"
  assert 0 < len(short.tokens) < 12
  assert want.tokens[: len(short.tokens)] == short.tokens
  # It can be gone on from, as an answer of that length can.
  again = ours.generate(Q, seen, max_tokens=len(short.tokens))
  after = [ours.generate("why?", r.context, **FEW) for r in (short, again)]
  assert after[0].tokens == after[1].tokens
  # A loop that is left early is the same.
  stream = ours.stream(Q, seen, max_tokens=12)
  next(iter(stream))
  assert stream.answer.tokens == want.tokens[:1]
  # One that nobody read has asked and said nothing.
  silent = ours.stream(Q, seen, max_tokens=12).answer
  assert (silent.tokens, silent.text) == ((), "")
  assert silent.context.length == want.context.length - len(want.tokens) + 1


def test_stop_strings_end_and_are_cut_off(model, picture):
  ours = model()
  seen = ours.encode_image(picture())
  free = ours.generate(Q, seen, max_tokens=24)
  at = len(free.text) // 2
  stop = free.text[at : at + 3]
  first = free.text.index(stop)
  for reply in (
    ours.generate(Q, seen, max_tokens=24, stop=[stop, "\0never"]),
    ours.generate(Q, seen, max_tokens=24, stop=[stop], trace=True),
  ):
    assert reply.text == free.text[:first] and reply.reason == "stop string"
    assert free.tokens[: len(reply.tokens)] == reply.tokens
    assert len(reply.tokens) < len(free.tokens)
  stream = ours.stream(Q, seen, max_tokens=24, stop=[stop])
  assert "".join(stream) == free.text[:first]
  # Others of the batch say what they would have said.
  both = ours.generate_batch(
    [
      api.Request(Q, seen, max_tokens=24, stop=[stop]),
      api.Request(Q, seen, max_tokens=24),
    ]
  )
  assert both[0].text == free.text[:first] and both[1].text == free.text


def test_every_end_id_ends_an_answer(model, picture, monkeypatch):
  ours = model()
  seen = ours.encode_image(picture())
  free = ours.generate(Q, seen, max_tokens=24)
  at = next(n for n in range(1, 24) if free.tokens[n] not in free.tokens[:n])
  other = free.tokens[at]
  end = ours.tokenizer.eos
  monkeypatch.setattr(ours.tokenizer, "ends", (end, other))
  stream = ours.stream(Q, seen, max_tokens=24)
  text = "".join(stream)
  for reply in (ours.generate(Q, seen, max_tokens=24), stream.answer):
    assert reply.tokens == free.tokens[: at + 1] and reply.reason == "stop"
    assert reply.text == text and free.text.startswith(text)
    # The next turn finds the answer ended as the chat format ends it.
    assert reply.context.pending == (end,)


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(
  tmp_path, monkeypatch, model
):
  ours = model()
  config = ours.config
  decoder = dataclasses.replace(config.model.decoder, vocab_size=2047)
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, decoder=decoder)
  )
  load = lambda path, mesh, **options: (config, ours.params)
  monkeypatch.setattr(directory_lib, "load", load)
  with pytest.raises(errors.GazeError, match="= 2047 are beyond"):
    api.load(tmp_path)


def test_a_conversation_goes_on_and_later_images_append_regions(model, picture):
  ours = model()
  first = ours.generate(Q, images=[picture(0)], **FEW)
  second = ours.generate("and this?", first.context, images=[picture(1)], **FEW)
  assert len(second.context.sizes) == 18
  assert len(second.context.talk) == 4
  third = ours.generate("same?", second.context, **FEW)
  forgetful = ours.generate("same?", **FEW)
  assert third.tokens != forgetful.tokens
  # What was asked before is a value still.
  again = ours.generate("and this?", first.context, images=[picture(1)], **FEW)
  assert again.tokens == second.tokens


@pytest.mark.nightly
def test_budgets_of_all_units(model, picture):
  def read(ours, **budget):
    reply = ours.generate(
      Q, images=[picture(0), picture(1)], trace=True, **FEW, **budget
    )
    return {int(n) for s in reply.steps for n in s.chosen.sum(-1).ravel()}

  plain = model()
  assert read(plain) == {2}  # as trained
  assert read(plain, top_k=0) == {0} == read(plain, share=0.0)
  assert read(plain, top_k=10**12) == {18} == read(plain, share=1.0)
  assert read(plain, share=0.25) == {5}  # of 18, rounded up
  assert read(model(budget="ratio"), share=0.25) == {5}
  assert read(model(budget="ratio", ratio=1.0), top_k=4) == {4}
  assert read(model(budget="per_unit"), share=0.25) == {6}  # 3 of 9, twice


@pytest.mark.nightly
def test_budgets_of_a_tiled_picture(model, picture):
  """It is two units, of which the grid has more regions than the square."""

  shown = dict(images=[picture(0, (70, 140))], **FEW)

  def read(**budget):
    reply = ours.generate(Q, trace=True, **shown, **budget)
    (count,) = {int(n) for s in reply.steps for n in s.chosen.sum(-1).flat}
    return count

  ours = model("tiles", budget="per_unit")
  dense, trained = budgets.of_config(ours.config)
  regions = len(ours.generate(Q, **shown).context.sizes)
  assert regions % 2  # half of it, twice, would be one short
  assert read(share=1.0) == read(top_k=dense) == read(top_k=10**12) == regions
  assert read() == read(top_k=trained) == 2 * trained
  half = -(-dense // 2)
  assert read(share=0.5) == 2 * half
  seen = ours.encode_image(*shown["images"])
  assert ours.generate(Q, seen, share=0.5, max_tokens=1).budget == half


def test_what_can_not_be_asked_is_said_in_one_line(model, picture, tmp_path):
  ours, image = model(), picture()
  (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 99)
  limits = dataclasses.replace(ours, limits=api.Limits(slots=200, units=3))
  cases = [
    (ours, dict(question=" "), "the question is empty"),
    (ours, dict(question="<image> what?"), "names 1 <image>, and 0 are given"),
    (
      ours,
      dict(question="<image><image> what?", images=[image]),
      "names 2 <image>, and 1 are given",
    ),
    (ours, dict(question="<video> what?"), "names 1 <video>"),
    (limits, dict(question=Q, images=[image] * 4), "4 images or frames"),
    (limits, dict(question="word " * 400), "shorten the text"),
    (limits, dict(question=Q, max_tokens=300), "the limit is 200"),
    (ours, dict(question=Q, top_k=-1), "top_k = -1"),
    (ours, dict(question=Q, share=1.5), "share = 1.5"),
    (ours, dict(question=Q, share=0.5, top_k=3), "not both"),
    (ours, dict(question=Q, max_tokens=0), "max_tokens = 0"),
    (ours, dict(question=Q, temperature=-1.0), "temperature"),
    (ours, dict(question=Q, top_p=0.0), "top_p"),
    (ours, dict(question=Q, stop=[""]), "stop string is empty"),
    (ours, dict(question=Q, images=["no.png"]), "no.png: no such file"),
    (ours, dict(question=Q, videos=["no.mp4"]), "no.mp4: no such file"),
    (ours, dict(question=Q, videos=[tmp_path / "broken.mp4"]), "broken.mp4"),
    (ours, dict(question=Q, images=[np.zeros((3, 3))]), "uint8"),
  ]
  for asked, options, says in cases:
    with pytest.raises(errors.GazeError, match=None) as error:
      asked.generate(**options)
    assert says in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(errors.GazeError, match="nothing is asked"):
    ours.generate_batch([])
  with pytest.raises(errors.GazeError, match="trace=True"):
    ours.generate(Q, **FEW).picture()


def test_a_decoder_alone_answers_text_and_refuses_images(model, picture):
  ours = model()
  alone = dataclasses.replace(ours, params=dict(decoder=ours.params["decoder"]))
  want = ours.generate("who?", **FEW)
  assert alone.generate("who?", **FEW).tokens == want.tokens
  assert want.accounting().visual_tokens == 0
  assert want.context.views == ()
  for ask in (
    lambda: alone.generate(Q, images=[picture()]),
    lambda: alone.encode_image(picture()),
  ):
    with pytest.raises(errors.GazeError, match="no projector, vision"):
      ask()


def test_a_video_is_its_frames(model, picture):
  ours = model()
  frames = [picture(i) for i in range(3)]
  video = ours.generate(Q, videos=[frames], **FEW)
  images = ours.generate(Q, images=frames, **FEW)
  assert video.tokens == images.tokens
  assert video.context.unit_count == 3
  seen = ours.encode_video(frames)
  assert ours.generate(Q, seen, **FEW).tokens == video.tokens


def test_a_video_whose_regions_span_frames(model, picture):
  """Those of frame 0; and of 1 and 2 together."""
  ours = model(region=(2, 2, 2), budget="per_unit", top_k=1)
  frames = [picture(i) for i in range(3)]
  reply = ours.generate(Q, videos=[frames], trace=True, **FEW)
  context = reply.context
  assert context.units == (9, 0, 9) and context.visual_tokens == 3 * 25
  assert context.sizes[9:] == tuple(2 * n for n in context.sizes[:9])
  first = [int(v.regions.min()) for v in context.views]
  assert first == [0, 9, 9]
  assert {s.chosen.sum(-1).max() for s in reply.steps} == {3}
  assert "<html" in reply.page(reply.accounting()) and reply.picture().width


@pytest.mark.nightly
def test_regions_of_frames_go_on_and_are_all_read(model, picture):
  ours = model(region=(2, 2, 2), budget="per_unit", top_k=1)
  frames = [picture(i) for i in range(3)]
  context = ours.generate(Q, videos=[frames], **FEW).context
  again = ours.generate(Q, context, images=[picture(7)], **FEW).context
  assert again.units == (9, 0, 9, 9) and again.views[3].regions.min() == 18
  # All read, it is what regions of one frame read.
  of = lambda m: m.generate(Q, videos=[frames], share=1.0, **FEW).tokens
  assert of(ours) == of(model())


@pytest.mark.nightly
@pytest.mark.parametrize("frames", [1, 2])
def test_a_context_comes_back_from_disk(model, picture, tmp_path, frames):
  ours = model(region=(2, 2, frames), budget="per_unit")
  seen = ours.encode_video([picture(0), picture(1)])
  api.save_context(seen, ours, tmp_path / "kept")
  back = api.load_context(tmp_path / "kept", ours)
  jax.tree.map(np.testing.assert_array_equal, back.cache, seen.cache)
  want = ours.generate(Q, seen, trace=True, **FEW)
  got = ours.generate(Q, back, trace=True, **FEW)
  assert got.tokens == want.tokens
  for a, b in zip(got.steps, want.steps, strict=True):
    np.testing.assert_array_equal(a.scores, b.scores)
  for a, b in zip(back.views, seen.views, strict=True):
    np.testing.assert_array_equal(a.picture, b.picture)
    np.testing.assert_array_equal(a.regions, b.regions)
  # A model on CPU has its layers apart: it is the same model.
  split = decoder.split(ours.params["decoder"])
  apart = dataclasses.replace(ours, params=ours.params | dict(decoder=split))
  back = api.load_context(tmp_path / "kept", apart)
  assert apart.generate(Q, back, **FEW).tokens == want.tokens
  # An answer is kept with what it has not read yet.
  api.save_context(want.context, ours, tmp_path / "answered")
  back = api.load_context(tmp_path / "answered", ours)
  after = [ours.generate("why?", c, **FEW) for c in (want.context, back)]
  assert after[0].tokens == after[1].tokens


@pytest.mark.nightly
def test_kept_choices_come_back_too(model, picture, tmp_path):
  ours = model(refresh="question")
  want = ours.generate(Q, images=[picture()], **FEW).context
  api.save_context(want, ours, tmp_path / "kept")
  back = api.load_context(tmp_path / "kept", ours)
  np.testing.assert_array_equal(back.cache.choice, want.cache.choice)
  assert want.cache.choice.any()


def test_contexts_that_can_not_be_used_are_refused(model, picture, tmp_path):
  ours = model()
  seen = ours.encode_image(picture())
  kept = tmp_path / "kept"
  api.save_context(seen, ours, kept)
  with pytest.raises(errors.GazeError, match="kept"):  # it is taken
    api.save_context(seen, ours, kept)
  params = jax.tree.map(lambda x: x, ours.params)
  params["decoder"]["embedding"] = (
    params["decoder"]["embedding"].at[0, 0].add(1e-3)
  )
  for other in (
    model(top_k=3),
    dataclasses.replace(ours, params=params),
  ):
    with pytest.raises(errors.GazeError, match="read by another model"):
      api.load_context(kept, other)
  with pytest.raises(errors.GazeError, match="no context.json here"):
    api.load_context(tmp_path, ours)
  about = (kept / "context.json").read_text()
  for old, new, says in (
    ('"schema": 4', '"version": 1', "schema 1 by an older.*Read the images"),
    ('"schema": 4', '"schema": 5', "schema 5 by a newer.*Update gaze_jax"),
    ('"schema": 4', '"schema": null', "schema = None is no version"),
    ('"views"', '"seen"', "has no views; read the images again"),
  ):
    assert old in about
    (kept / "context.json").write_text(about.replace(old, new))
    with pytest.raises(errors.GazeError, match=says):
      api.load_context(kept, ours)
  (kept / "context.json").write_text(about)
  weights = kept / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-100])
  with pytest.raises(errors.GazeError, match="model.safetensors"):
    api.load_context(kept, ours)
