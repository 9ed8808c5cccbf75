"""Control tokens: only the chat template writes them, no text forges one.

A tokenizer finds its control tokens wherever their names stand in a text. So a
text that holds such a name, or that would complete one where it meets the
template, is broken there by characters that Unicode keeps out of texts, before
it goes into the template. What is rendered is then encoded by a copy of the
tokenizer to which control tokens have other names, made of those characters:
the names that the template wrote are put in their place, and the text's own are
ordinary characters. Nothing is encoded in pieces, so tokens merge across seams
as they do in transformers. Texts without such names go by the tokenizer itself.
"""

import bisect
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers

from gaze_jax.data import samples

# Pairs of characters that are in no text (noncharacters); the first pair that a
# text does not hold all the same. One breaks names, the other seams.
_PAIRS = [chr(0xFDD0 + 2 * i) + chr(0xFDD1 + 2 * i) for i in range(16)]
# Names that only control tokens have; tags of HTML are text of their own.
_SHAPE = re.compile(r"(?!</?[a-z][a-z0-9]*/?>$)[<\[{|].*[>\]}|]", re.DOTALL)
_WORDS = re.compile(r"[\w\s▁]*")


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A text as ids.

  Attributes:
    ids: its tokens.
    starts: of each place that was asked for, the first token past it.
    stops: likewise, but past the token that the place is in.
  """

  ids: list[int]
  starts: list[int]
  stops: list[int]


class ControlTokens:
  """The control tokens of a tokenizer, and texts encoded with and without.

  Args:
    tokenizer: whose added tokens they are among.
    written: texts of its template; an added token in one of them is a control
      token whatever its flag says, unless it is words or white space.
    marks: names that are control tokens in any case.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    written: Iterable[str],
    marks: Iterable[str],
  ):
    self._tokenizer = tokenizer
    tokenizer.encode_special_tokens = False
    written, marks = "\0".join(written), set(marks)
    added = tokenizer.get_added_tokens_decoder()
    self.ids = {
      token.content: number
      for number, token in added.items()
      if token.content in marks or _is_control(token, written)
    }
    # What a vocabulary lacks is a control token in some, whoever writes it.
    unknown = tokenizer.encode(_PAIRS[0], add_special_tokens=False).ids
    self._unwritable = frozenset(self.ids.values()) - set(unknown)
    names = sorted(self.ids, key=len, reverse=True)
    self._names = "|".join(map(re.escape, names)) or "(?!)"
    self._anywhere = re.compile(f"(?=({self._names}))")
    parts = [(n[:i], n[i:]) for n in names for i in range(1, len(n))]
    self._heads = frozenset(head for head, _ in parts)
    self._tails = frozenset(tail for _, tail in parts)
    self._longest = max(map(len, names), default=0)
    self._safe = functools.lru_cache(maxsize=8192)(self._is_safe)

  def protect(self, texts: Sequence[str]) -> tuple[list[str], str]:
    """Texts in which nobody finds a control token, nor a part of one.

    Returns:
      Texts for a template, and the pair of characters that part names in them;
      "" where none had to be.

    Raises:
      samples.DataError: they hold every noncharacter that there is.
    """
    if all(map(self._safe, texts)):
      return list(texts), ""
    for pair in _PAIRS:
      if not any(character in text for text in texts for character in pair):
        safe = [t if self._safe(t) else self._protect(t, *pair) for t in texts]
        return safe, pair
    raise samples.DataError(
      "a text holds all of the noncharacters U+FDD0 to U+FDEF, which leaves"
      " none to tell its control tokens from the template's: take one out"
    )

  def first(self, text: str) -> tuple[int, int] | None:
    """The first control token in a template's text: its id, where it ends."""
    found = re.search(self._names, text)
    return found and (self.ids[found[0]], found.end())

  def plain(self, text: str) -> list[int]:
    """Ids of a text alone, in which nothing is a control token."""
    safe, pair = self.protect([text])
    return self.encode(*safe, pair).ids

  def encode(
    self,
    text: str,
    pair: str,
    starts: Sequence[int] = (),
    stops: Sequence[int] = (),
  ) -> Encoded:
    """Ids of what a template made of protected texts.

    Args:
      text: as it was rendered.
      pair: as `protect` gave it.
      starts: places in it, as numbers of characters.
      stops: likewise.

    Raises:
      samples.DataError: a text makes a control token all the same.
    """
    tokenizer, renamed = self._tokenizer, None
    if pair:
      tokenizer, renamed, substitute = self._renamed(pair)
      starts = [len(substitute(text[:place])) for place in starts]
      stops = [len(substitute(text[:place])) for place in stops]
      text = substitute(text)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids = encoding.ids
    if renamed is not None:
      written = [n for n in renamed if renamed[n] in self._unwritable]
      names = map(tokenizer.id_to_token, written)
      if sum(i in written for i in ids) != sum(map(text.count, names)):
        raise samples.DataError(
          "a text makes control tokens of this tokenizer, and can't be told"
          " from the chat template's own: leave their names out of it"
        )
      ids = [renamed.get(i, i) for i in ids]
    if not starts and not stops:
      return Encoded(ids, [], [])
    begins, ends = zip(*encoding.offsets, strict=True) if ids else ((), ())
    past = lambda place: bisect.bisect_left(begins, place)
    return Encoded(
      ids,
      [min(bisect.bisect_right(ends, p), past(p)) for p in starts],
      [past(p) for p in stops],
    )

  def _is_safe(self, text: str) -> bool:
    """Whether no control token can come of a text, wherever it is put."""
    inner = text.strip()
    reach = range(1, min(self._longest, len(inner) + 1))
    if (
      any(inner[:n] in self._tails for n in reach)
      or any(inner[-n:] in self._heads for n in reach)
      or self._anywhere.search(text)
    ):
      return False
    if self._tokenizer.normalizer is None:
      return True
    ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    return self._unwritable.isdisjoint(ids)

  def _protect(self, text: str, inside: str, seam: str) -> str:
    """With a character inside each name, and one at both ends."""
    places = [found.start() + 1 for found in self._anywhere.finditer(text)]
    pieces = [
      text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)
    ]
    text = inside.join(pieces)
    inner = text.strip()
    at = len(text) - len(text.lstrip())
    return f"{text[:at]}{seam}{inner}{seam}{text[at + len(inner) :]}"

  @functools.lru_cache(maxsize=4)  # noqa: B019
  def _renamed(self, pair: str):
    """The tokenizer with other names for control tokens, which it maps back.

    The names go from the model's own vocabulary too, so that no text reaches
    them by merges or as a piece.
    """
    inside, seam = pair
    names = {c: f"{seam}{n}{seam}" for n, c in enumerate(self.ids)}
    raw = json.loads(self._tokenizer.to_str())
    raw["post_processor"] = None
    for token in raw["added_tokens"]:
      token["content"] = names.get(token["content"], token["content"])
    _rename_model(raw["model"], names)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
    back = {tokenizer.token_to_id(names[c]): i for c, i in self.ids.items()}
    found = re.compile(f"({self._names})(?!{inside})|[{inside}{seam}]")
    substitute = lambda text: found.sub(lambda m: names.get(m[0], ""), text)
    return tokenizer, back, substitute


def _is_control(token: tokenizers.AddedToken, written: str) -> bool:
  name = token.content.strip("▁ \n\t")
  if token.special or _SHAPE.fullmatch(name):
    return True
  return token.content in written and not _WORDS.fullmatch(token.content)


def _rename_model(model: dict[str, Any], names: dict[str, str]) -> None:
  """Renames what a model's vocabulary has, in place."""
  vocabulary = model["vocab"]
  if isinstance(vocabulary, dict):
    model["vocab"] = {names.get(t, t): i for t, i in vocabulary.items()}
  else:  # pieces with scores
    model["vocab"] = [[names.get(t, t), score] for t, score in vocabulary]
  if model.get("unk_token"):
    model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
  if "merges" in model:
    pairs = [
      merge.split(" ") if isinstance(merge, str) else merge
      for merge in model["merges"]
    ]
    gone = lambda a, b: a in names or b in names or a + b in names
    model["merges"] = [[a, b] for a, b in pairs if not gone(a, b)]
