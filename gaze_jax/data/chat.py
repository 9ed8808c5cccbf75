"""Conversations as ids: the model's own chat template, and where it scores.

  messages -> template -> text with marks of images -> ids, and their places

Whatever is asked, trained on or scored comes from here. What a template does
with a text is found out by trying it: how it wants a message, what it puts
around an answer, which marks it writes for images.
"""

import functools
from collections.abc import Sequence

import tokenizers

from gaze_jax.data import chat_files
from gaze_jax.data import chat_template
from gaze_jax.data import control_tokens
from gaze_jax.data import messages
from gaze_jax.data import samples

_MARKS = {messages.IMAGE: "<image>", messages.VIDEO: "<video>"}
# A word that no template has, and two that have no beginning in common.
_PROBE, _OTHERS = "Qzx7", ("Aa", "zz")


class Chat:
  """The chat format of a tokenizer.

  Args:
    tokenizer: is changed: it learns the marks of images that it lacks.
    files: what stands beside it, with a template.

  Attributes:
    control_ids: ids of control tokens.
    identity: the template and all that it is rendered with, as a text.
    end: id that ends an answer.
    name: of the template's file; errors begin with it.
    lead: what the template puts before an answer, and no answer begins with.

  Raises:
    samples.DataError: the template can't be used; naming its file.
  """

  def __init__(
    self, tokenizer: tokenizers.Tokenizer, files: chat_files.ChatFiles
  ):
    self.name, tokens = files.template_file, dict(files.tokens)
    for name, number in files.token_ids.items():
      if token := tokenizer.id_to_token(number):
        tokens.setdefault(name, token)
    self._template = chat_template.Template(files.template, self.name, tokens)
    written = self._template.literals()
    marks = _MARKS | files.marks
    for kind, number in files.mark_ids.items():
      token = tokenizer.id_to_token(number)
      if token and any(token in text for text in written):
        marks[kind] = files.marks.get(kind, token)
    for mark in marks.values():  # which texts may not have either
      tokenizer.add_special_tokens([mark])
    self._marks = marks
    named = [*marks.values(), *tokens.values()]
    self.control_tokens = control_tokens.ControlTokens(
      tokenizer, written, named
    )
    self.control_ids = frozenset(self.control_tokens.ids.values())
    self._kinds = {
      self.control_tokens.ids[m]: kind for kind, m in marks.items()
    }
    self._prefix, self._bos = (), tokens.get("bos_token")
    if files.whole:
      self._prefix = _prefix_ids(tokenizer, self.name)
    rendered = files.template, sorted(tokens.items()), sorted(marks.items())
    self.identity = repr((rendered, self._prefix))
    self._forms: dict[str, str] = {}
    self._find_forms(files.whole)
    self._find_end(tokenizer, tokens.get("eos_token"))
    self.lesson = functools.lru_cache(maxsize=8192)(self._lesson)
    self.opening = functools.lru_cache(maxsize=64)(self._opening)

  def ask(self, talk: messages.Conversation, begins: str = "") -> messages.Flat:
    """Ids of a conversation up to where an answer is to follow.

    Args:
      talk: ends with what the user says.
      begins: what the answer begins with; its rest is to follow.

    Raises:
      samples.DataError: the template refuses it, or writes other marks.
    """
    answer = messages.plain(messages.ASSISTANT, begins)
    (*safe, answer), pair = self._protect((*talk, answer))
    text = self._render(tuple(safe), True)
    if begins:
      text += self._before_answer + answer.parts[0].text
    if not self._systems and any(m.role == messages.SYSTEM for m in talk):
      raise samples.DataError(
        f"{self.name}: the chat template leaves a system text out, so none can"
        " be given"
      )
    return self._with_places(self._encode(text, pair).ids, talk)

  def learn(
    self, talk: messages.Conversation, *, last: bool = False
  ) -> messages.Lesson | None:
    """Ids of a conversation with its answers, and which of them are answers.

    Args:
      talk: ends with an answer.
      last: whether the last answer alone counts.

    Returns:
      None where the template does not keep what it wrote of earlier turns: each
      turn is to be learned as it would be asked, `talk` up to it.

    Raises:
      samples.DataError: the template refuses it, writes other marks, or does
        not write an answer as it asks for one.
    """
    safe, pair = self._protect(talk)
    turns = [i for i, m in enumerate(talk) if m.role == messages.ASSISTANT]
    if last:
      turns = turns[-1:]
    written = [self._write_answer(safe, i) for i in turns]
    if len(turns) > 1 and not self._as_asked:
      return None
    whole, _, _ = written[-1]
    if not all(whole.startswith(text[:stop]) for text, _, stop in written):
      return None
    _, starts, stops = zip(*written, strict=True)
    encoded = self._encode(whole, pair, starts, stops)
    end = -1 if self._kept else self.end
    ends = [-1] * (len(stops) - 1) + [end]  # the template ends the others
    spans = map(messages.Span, encoded.starts, encoded.stops, ends)
    flat = self._with_places(encoded.ids, talk)[: encoded.stops[-1]]
    return messages.Lesson(flat, tuple(spans))

  def _write_answer(
    self, talk: messages.Conversation, turn: int
  ) -> tuple[str, int, int]:
    """A conversation up to an answer: its text, and where the answer is.

    What precedes an answer is always what asks for it.
    """
    asked = self._render(talk[:turn], True)
    if self._as_asked:
      text = self._render(talk[: turn + 1], False)
    else:
      text = asked + "".join(p.text for p in talk[turn].parts) + self._tail
    if not text.startswith(asked) or not text.endswith(self._tail):
      raise samples.DataError(
        f"{self.name}: the chat template writes an answer otherwise than it"
        f" asks for one, after {asked[-20:]!r}, so it can't be learned from:"
        " make both begin alike in it"
      )
    return text, len(asked), len(text) - len(self._tail) + self._kept

  def _lesson(
    self, shown: tuple[str, ...], question: str, answer: str
  ) -> messages.Lesson:
    """`learn` of one question after media of some kinds; it may be old."""
    parts = (*map(messages.Part, shown), messages.Part(messages.TEXT, question))
    user = messages.Message(messages.USER, parts)
    return self.learn((user, messages.plain(messages.ASSISTANT, answer)))

  def _opening(
    self, shown: tuple[str, ...], system: str | None = None
  ) -> messages.Flat:
    """What all conversations begin with, up to the text of the question.

    Args:
      shown: kinds of the media that stand before it.
      system: a system text; None for the template's own.
    """
    user = messages.Message(messages.USER, tuple(map(messages.Part, shown)))
    return self.before_question((*messages.system(system), user))

  def before_question(self, talk: messages.Conversation) -> messages.Flat:
    """What a conversation begins with, whatever the question at its end.

    Args:
      talk: its last message has what the user shows before the question.
    """
    *begins, last = talk
    words = [messages.Part(messages.TEXT, word) for word in _OTHERS]
    flats = [
      self.ask((*begins, last._replace(parts=(*last.parts, word))))
      for word in words
    ]
    return flats[0][: messages.common_prefix(flats)]

  def _render(
    self,
    talk: messages.Conversation,
    ask: bool,
    forms: dict[str, str] | None = None,
  ) -> str:
    forms = forms or self._forms
    plain = [
      dict(role=m.role, content=self._content(m, forms.get(m.role)))
      for m in talk
    ]
    return self._template.render(plain, ask)

  def _content(self, message: messages.Message, form: str | None) -> str | list:
    """A message as the template wants it: a text, or a list of parts."""
    if form == "list":
      return [
        dict(type=messages.TEXT, text=p.text)
        if p.kind == messages.TEXT
        else dict(type=self._kind_of_mark(p.kind))
        for p in messages.trim_around_images(message.parts)
      ]
    return "".join(
      p.text
      if p.kind in messages.TEXTS
      else self._marks[self._kind_of_mark(p.kind)]
      for p in messages.images_on_lines(message.parts)
    )

  def _kind_of_mark(self, kind: str) -> str:
    return kind if self._videos else messages.IMAGE

  def _protect(
    self, talk: messages.Conversation
  ) -> tuple[messages.Conversation, str]:
    """A conversation whose texts can't be taken for the template's own."""
    own = messages.OWN  # which is the template's to find
    texts = [p.text for m in talk for p in m.parts if p.kind != own]
    safe, pair = self.control_tokens.protect(texts)
    rest = iter(safe)
    of = lambda p: p if p.kind == own else p._replace(text=next(rest))
    talk = [m._replace(parts=tuple(map(of, m.parts))) for m in talk]
    return tuple(talk), pair

  def _encode(
    self,
    text: str,
    pair: str,
    starts: Sequence[int] = (),
    stops: Sequence[int] = (),
  ) -> control_tokens.Encoded:
    out = self.control_tokens.encode(text, pair, starts, stops)
    if not self._prefix or (self._bos and text.startswith(self._bos)):
      return out
    shift = lambda places: [p + len(self._prefix) for p in places]
    return control_tokens.Encoded(
      [*self._prefix, *out.ids], shift(out.starts), shift(out.stops)
    )

  def _with_places(
    self, ids: Sequence[int], talk: messages.Conversation
  ) -> messages.Flat:
    """Ids with the places of a conversation in the place of marks."""
    waiting: dict[str, list[messages.Place]] = {kind: [] for kind in _MARKS}
    for place in messages.places(talk):
      kind = talk[place.message].parts[place.part].kind
      waiting[self._kind_of_mark(kind)].append(place)
    found = [self._kinds[i] for i in ids if i in self._kinds]
    for kind, places in waiting.items():
      if (written := found.count(kind)) != len(places):
        raise samples.DataError(
          f"{self.name}: the chat template writes {written}"
          f" {self._marks[kind]} for {len(places)} {kind}s of the conversation;"
          f" it is no template for {kind}s given so"
        )
    if not found:
      return tuple(ids)
    rest = {kind: iter(places) for kind, places in waiting.items()}
    return tuple(
      next(rest[self._kinds[i]]) if i in self._kinds else i for i in ids
    )

  def _find_forms(self, whole: bool) -> None:
    """How the template wants the messages of each role."""
    self._videos = False
    forms = ("list", "text") if whole else ("text", "list")
    shown = messages.question(_PROBE, 1)
    word = messages.plain(messages.USER, _PROBE)
    fits = [f for f in forms if self._accepts(messages.USER, f, (word,))]
    if not fits:
      self._render((word,), True)  # if it refuses, by its own words
      raise samples.DataError(
        f"{self.name}: the chat template does not say what the user says"
      )
    sees = [
      f
      for f in fits
      if self._accepts(messages.USER, f, (shown,), messages.IMAGE)
    ]
    self._forms[messages.USER] = (sees or fits)[0]
    clip = messages.question(_PROBE, 1, messages.VIDEO)
    self._videos = True
    self._videos = self._accepts(
      messages.USER, self._forms[messages.USER], (clip,), messages.VIDEO
    )
    user = messages.plain(messages.USER, "a")
    first = self._forms[messages.USER]
    other = "list" if first == "text" else "text"
    for role in (messages.ASSISTANT, messages.SYSTEM):
      talk = (user, messages.plain(role, _PROBE))
      talk = talk if role == messages.ASSISTANT else talk[::-1]
      fits = [f for f in (first, other) if self._accepts(role, f, talk)]
      self._forms[role] = fits[0] if fits else first
      self._systems = bool(fits)  # of the last one

  def _accepts(
    self,
    role: str,
    form: str,
    talk: messages.Conversation,
    kind: str = "",
  ) -> bool:
    """Whether the template writes a probe, and a mark, as they should be."""
    try:
      text = self._render(talk, False, self._forms | {role: form})
    except chat_template.TemplateError:
      return False
    if kind and text.count(self._marks[kind]) != 1:
      return False
    repeats = any(f"{q}type{q}" in text for q in "'\"")  # a list, written out
    return text.count(_PROBE) == 1 and not repeats

  def _find_end(self, tokenizer: tokenizers.Tokenizer, eos: str | None) -> None:
    """What the template puts around an answer, and what ends one."""
    user = messages.plain(messages.USER, "a")
    asked = self._render((user,), True)
    whole = self._render(
      (user, messages.plain(messages.ASSISTANT, _PROBE)), False
    )
    before, found, self._tail = whole.rpartition(_PROBE)
    if not found:
      raise samples.DataError(
        f"{self.name}: the chat template does not say what the assistant says"
      )
    self._as_asked = before.startswith(asked)
    lead = before.removeprefix(asked) if self._as_asked else ""
    self._before_answer = lead
    # Where but white space differs, answers are learned as they are asked for.
    self._as_asked |= before.split() != asked.split()
    end = self.control_tokens.first(self._tail)
    self._kept = end[1] if end else 0
    number = end[0] if end else eos and tokenizer.token_to_id(eos)
    if number is None:
      raise samples.DataError(
        f"{self.name}: nothing ends an answer: the chat template writes no"
        " control token after it, and tokenizer_config.json names no eos_token;"
        " name one there"
      )
    self.end = number
    # Where the decoder itself takes a space away there is none to take.
    encoded = self._encode(whole, "", [len(asked)], [len(before + _PROBE)])
    answer = encoded.ids[encoded.starts[0] : encoded.stops[0]]
    decoded = tokenizer.decode(answer, skip_special_tokens=False)
    self.lead = lead if lead.isspace() and decoded == lead + _PROBE else ""


def _prefix_ids(tokenizer: tokenizers.Tokenizer, name: str) -> tuple[int, ...]:
  """What a tokenizer puts before a text by itself.

  Raises:
    samples.DataError: it puts something behind it, too.
  """
  bare = tokenizer.encode(_PROBE, add_special_tokens=False).ids
  ids = tokenizer.encode(_PROBE).ids
  at = len(ids) - len(bare)
  if ids[at:] != bare:
    raise samples.DataError(
      f"{name}: the post-processor of the tokenizer.json here puts tokens"
      " behind a prompt, where an answer is to follow; take it out of the file"
    )
  return tuple(ids[:at])
