"""The text of ids that come one after the other.

Decoding all ids anew with each that comes takes a time that grows with the
square of the answer. What is told here is never taken back, since nothing that
follows can change it, and together with the rest it is what the tokenizer makes
of all ids at once.
"""

import codecs
import re

import tokenizers

# Of byte-level tokens each character stands for a byte (GPT-2's table): what
# Latin-1 prints for itself, and the others for the bytes that are left.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [b for b in range(256) if b not in _PRINTED]
_BYTES = {chr(b): b for b in _PRINTED}
_BYTES |= {chr(256 + n): b for n, b in enumerate(_OTHERS)}
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token of one byte
_BEFORE = 4  # tokens before the newest, at most, that tell how it is written


class Spelling:
  """Text as its ids come.

  Special ids, and ids that no token has, show nothing.

  Args:
    tokenizer: whose decoder makes the text.
    space: a character that is left out where the text begins with it.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, space: str = ""):
    self._tokenizer, self._space = tokenizer, space
    added = tokenizer.get_added_tokens_decoder()
    self._hidden = {i for i, token in added.items() if token.special}
    self._way: _Bytes | _Window = _Window(tokenizer)
    if re.match(rb'{"type":"ByteLevel"', _decoder(tokenizer)):
      self._way = _Bytes()

  def add(self, token: int) -> str | None:
    """Takes one more id.

    Returns:
      The text that is certain now and was not before; "" within a character,
      None for an id that shows nothing.
    """
    word = self._tokenizer.id_to_token(token)
    if token in self._hidden or word is None:
      return None
    text = self._way.add(token, word)
    if text and self._space:
      text, self._space = text.removeprefix(self._space), ""
    return text

  @property
  def rest(self) -> str:
    """What follows the text told so far, if no more ids come."""
    return self._way.rest.removeprefix(self._space)


class _Bytes:
  """Of a byte-level decoder: UTF-8 in pieces."""

  def __init__(self):
    self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

  def add(self, token: int, word: str) -> str:
    del token
    known = all(c in _BYTES for c in word)  # an added token may be no bytes
    data = bytes(map(_BYTES.get, word)) if known else word.encode()
    return self._utf8.decode(data)

  @property
  def rest(self) -> str:
    return self._utf8.getstate()[0].decode("utf-8", "replace")


class _Window:
  """Of any other decoder: the newest tokens, and a few before them.

  Those before are decoded twice, with the newest and without; a decoder sees by
  them that it is not at the start of a text. Bytes that stand for themselves
  are held until another token follows: the decoder takes a run of them for
  UTF-8 as a whole, or for none.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
    decoder = _decoder(tokenizer)
    self._runs = b'"ByteFallback"' in decoder
    self._cut = b'"ByteLevel"' in decoder  # among others
    self._before: list[int] = []
    self._new: list[int] = []

  def add(self, token: int, word: str) -> str:
    self._new.append(token)
    if self._runs and _BYTE.fullmatch(word):
      return ""
    text = self.rest
    if self._cut and text.endswith("\ufffd"):
      return ""
    ids = self._before + self._new
    self._new = []
    for count in range(1, _BEFORE + 1):
      self._before = ids[-count:]
      if self._decode(self._before):
        break
    return text

  @property
  def rest(self) -> str:
    if not self._new:
      return ""
    told = self._decode(self._before) if self._before else ""
    return self._decode(self._before + self._new)[len(told) :]


def _decoder(tokenizer: tokenizers.Tokenizer) -> bytes:
  """JSON of its decoder; b"" for none."""
  decoder = tokenizer.decoder
  return decoder.__getstate__() if decoder else b""
