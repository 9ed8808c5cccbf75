"""A conversation line by line, in this process: what is said to each line."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax.decode import accounting

Q = "what is it?"
FEW = dict(max_tokens=3)


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
  """What steps cost is another test's."""
  monkeypatch.setattr(accounting, "_ROUNDS", 1)


@pytest.fixture(scope="session")
def files(picture, tmp_path_factory):
  """Paths of two pictures, and of the second one's folder."""
  folder = tmp_path_factory.mktemp("chat")
  for number, name in enumerate("ab"):
    Image.fromarray(picture(number)).save(folder / f"{name}.png")
  return folder / "a.png", folder / "b.png", folder


@pytest.fixture
def talk(model):
  """Makes a chat: a function of lines that gives what is said to each."""

  def make(ours=None, within=None, *, afresh=False, **options):
    said: list[str] = []
    within = within or (lambda stop: contextlib.nullcontext())
    options = FEW | options
    ours = ours or model()
    chat = api.Chat(ours, said.append, options, within, afresh=afresh)

    def tell(*lines):
      out = []
      for line in lines:
        said.clear()
        chat.run([line])
        out.append("".join(said))
      return out

    return tell

  return make


def line(answer):
  return f"{answer.text}  [{answer.reason}]\n"


@pytest.mark.nightly
def test_a_conversation_is_the_api_turn_by_turn(talk, model, picture, files):
  ours, (a, b, _) = model(), files
  first = ours.generate(Q, images=[picture(0)], **FEW)
  second = ours.generate("and now?", first.context, images=[picture(1)], **FEW)
  third = ours.generate("same?", second.context, **FEW)
  tell = talk()
  assert tell(f"/image {a}", Q, f"/image {b}", " and now? ", "", "same?") == [
    *("", line(first), "", line(second), "", line(third))
  ]
  # A new one knows nothing, and pictures that waited are forgotten too.
  alone = ours.generate(Q, **FEW)
  assert tell(f"/image {a}", "/new", Q)[2] == line(alone) != line(first)
  # Several pictures at once are in order.
  both = ours.generate(Q, images=[picture(0), picture(1)], **FEW)
  assert tell("/new", f"/image {a} '{b}'", Q)[2] == line(both)
  assert tell("/new", f"/image {a}", f"/image {b}", Q)[3] == line(both)


@pytest.mark.nightly
def test_a_video_is_shown_too(talk, model, picture, files):
  shots = [Image.fromarray(picture(n)) for n in range(3)]
  shots[0].save(files[2] / "a.gif", save_all=True, append_images=shots[1:])
  want = model().generate(Q, videos=[files[2] / "a.gif"], frames=2, **FEW)
  assert want.context.unit_count == 2
  tell = talk(frames=2)
  assert tell(f"/video {files[2]}/a.gif", Q)[1] == line(want)
  tell = talk(frames=2, afresh=True)
  assert tell(f"/video {files[2]}/a.gif", Q)[1] == line(want)


@pytest.mark.nightly
def test_afresh_each_question_comes_after_the_images_alone(
  talk, model, picture, files
):
  ours, (a, b, _) = model(), files
  tell = talk(afresh=True)
  seen = ours.encode_image(picture(0))
  want = [line(ours.generate(q, seen, **FEW)) for q in (Q, "and now?")]
  assert tell(f"/image {a}", Q, "and now?", Q)[1:] == [*want, want[0]]
  other = ours.generate(Q, ours.encode_image(picture(1)), **FEW)
  assert tell(f"/image {b}", Q, Q)[1:] == [line(other)] * 2
  assert tell("/new", Q)[1] == line(ours.generate(Q, **FEW))


@pytest.mark.nightly
def test_the_end_is_said_unless_the_model_ended(talk, model, monkeypatch):
  ours = model()
  free = ours.generate(Q, max_tokens=8)
  assert talk(max_tokens=8)(Q) == [f"{free.text}  [length]\n"]
  stop = free.text[len(free.text) // 2 :][:2]
  cut = free.text[: free.text.index(stop)]
  assert talk(max_tokens=8, stop=[stop])(Q) == [f"{cut}  [stop string]\n"]
  monkeypatch.setattr(ours.tokenizer, "ends", (free.tokens[4],))
  ended = ours.generate(Q, max_tokens=8)
  assert ended.reason == "stop" and len(ended.tokens) <= 5
  assert talk(max_tokens=8)(Q) == [f"{ended.text}\n"]


def test_an_interrupted_answer_is_gone_on_from(talk, model):
  @contextlib.contextmanager
  def at_once(stop):
    stop()
    yield

  ours = model()
  (said, after) = talk(within=at_once)(Q, "why?")
  first = ours.generate(Q, max_tokens=1)
  assert said == f"{first.text}  [interrupted]\n"
  then = ours.generate("why?", first.context, max_tokens=1)
  assert after == f"{then.text}  [interrupted]\n"


@pytest.mark.nightly
def test_the_budget_changes_from_now_on(talk, files, tmp_path):
  tell = talk()

  def budget(*lines):
    tell(*lines, Q, f"/cost {tmp_path}/cost.json")
    return json.loads((tmp_path / "cost.json").read_text())["budget"]

  assert budget(f"/image {files[0]}") == 2  # as trained
  assert budget("/top_k 7") == 7
  assert budget("/share 0.5") == 5  # of 9, rounded up
  assert budget() == 5
  assert budget("/top_k 0") == 0


@pytest.mark.nightly
def test_costs_pages_and_help(talk, files, tmp_path):
  tell = talk()
  tell(f"/image {files[0]}", Q)
  (cost,) = tell("/cost")
  assert cost.startswith("visual tokens                25\n")
  assert cost.endswith(" ms\n") and cost.count("\n") == 5
  assert tell(f"/html {tmp_path}/page.html") == [""]
  assert Q in (tmp_path / "page.html").read_text()
  (told,) = tell("/help")
  for command in ("image", "video", "top_k", "share", "cost", "html", "keep"):
    assert f"/{command} " in told
  for command in ("load", "new", "quit"):
    assert f"/{command} " in told


@pytest.mark.nightly
def test_a_conversation_is_kept_and_taken_up(talk, files, tmp_path):
  tell = talk()
  tell(f"/image {files[0]}", Q)
  assert tell(f"/keep {tmp_path}/kept", "/new", "why?")[0] == ""
  assert tell("/new", Q, f"/load {tmp_path}/kept")[2] == ""
  assert tell("/cost") == [
    "error: nothing was answered yet; ask something first\n"
  ]
  loaded = tell("why?")
  again = talk()
  assert again(f"/image {files[0]}", Q, "why?")[2:] == loaded


def test_nothing_is_read_after_quit(model):
  for word in ("/quit", " /exit "):
    lines = iter([word, "more"])
    api.Chat(model(), print, {}, contextlib.nullcontext).run(lines)
    assert next(lines) == "more"


def test_what_can_not_be_done_is_said_and_changes_nothing(
  talk, files, tmp_path
):
  a, b, folder = files
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "file").touch()
  (tmp_path / "bad.png").write_text("no picture")
  wrong = {
    "/sing": "/sing is no command; /help lists them",
    "/": "/ is no command",
    "/image 'a.png": "No closing quotation",
    f"/image {b} {tmp_path}/bad.png": "bad.png: not an image file",
    f"/image {b} {folder}/no.png": "no.png: no such file",
    "/video no.mp4": "no.mp4: no such file",
    "/top_k": "/top_k takes other words; /help says which",
    "/top_k 3 4": "/top_k takes other words",
    "/top_k many": "many: give a number",
    "/top_k -1": "top_k = -1: give 0 or more",
    "/share 2": "share = 2.0: give a share from 0 to 1",
    "/share nan": "share = nan",
    "/html page.txt": "page.txt: the viewer is a page",
    f"/html {tmp_path}/no/page.html": "there is no folder",
    f"/cost {tmp_path}/no/cost.json": "cost.json: No such file",
    f"/keep {tmp_path}/taken": "taken",
    f"/load {tmp_path}": "no context.json here",
    "<image> what?": "names 1 <image>, and 0 are given",
    "? " * 40_000: "shorten the text",
  }
  tell, calm = talk(), talk()
  tell(f"/image {a}", Q), calm(f"/image {a}", Q)
  for asked, says in wrong.items():
    (said,) = tell(asked)
    assert says in said and said.startswith("error: "), asked
    assert said.count("\n") == 1 == said.count("error")
  assert tell("why?") == calm("why?")
  # Pictures that a question could not be asked with wait for the next one.
  tell(f"/image {a}"), calm(f"/image {a}")
  assert "names 2" in tell("<image><image>?")[0]
  assert tell("and?") == calm("and?")


def test_commands_before_any_answer_say_so(talk, tmp_path):
  for command in ("/cost", f"/html {tmp_path}/a.html", f"/keep {tmp_path}/a"):
    assert "nothing was answered yet" in talk()(command)[0]
  assert not list(tmp_path.iterdir())


def test_pictures_shown_to_begin_with(model, picture, files):
  said = []
  within = lambda stop: contextlib.nullcontext()
  chat = api.Chat(model(), said.append, FEW, within)
  chat.show_images([str(files[0])])
  chat.run([Q])
  image = np.asarray(picture(0))
  want = model().generate(Q, images=[image], **FEW)
  assert "".join(said) == line(want)
