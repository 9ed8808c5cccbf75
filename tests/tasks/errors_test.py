"""What is wrong with files of picture tasks is told in one line."""

import io
import json
import shutil

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from gaze_jax import errors
from gaze_jax.data import skipped
from gaze_jax.tasks import media
from gaze_jax.tasks import registry
from tests.tasks import expected_items
from tests.tasks import published
from tests.tasks import published_letters

WRITERS = published.WRITERS | published_letters.WRITERS
CASES = [(name, layout) for name, forms in WRITERS.items() for layout in forms]
OFFICIAL = [case for case in CASES if case[1] == "official"]


def refusal(name, root):
  """The one line by which a task's files are refused."""
  with pytest.raises(errors.GazeError) as error:
    task, items = expected_items.of(name, root)
    for item in items:
      task.prompt(item.fields)
  return one_line(error)


def skip(medium, most=expected_items.MOST_PIXELS):
  """Why a picture is none, and the line that says it."""
  with pytest.raises(skipped.SkipError) as error:
    media.picture(medium, most)
  return error.value.reason, one_line(error)


def one_line(error):
  text = str(error.value)
  assert "\n" not in text and 0 < len(text) < 1000
  return text


def files(root):
  return sorted(path for path in root.rglob("*") if path.is_file())


# --- Files that are not there.


def test_a_folder_that_is_not_there(tmp_path):
  text = refusal("gqa", tmp_path)
  assert f"gqa: its files are not in {tmp_path}/gqa" in text
  assert "testdev_balanced_instructions/testdev-*.parquet" in text
  assert "testdev_balanced_images/testdev-*.parquet" in text
  assert "or **/testdev_balanced_questions.json" in text
  assert "lmms-lab-encoder/GQA" in text and "there is no such folder" in text


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_looked_for_is_named(name, tmp_path):
  """Each pattern of each form, and where the files come from."""
  text = refusal(name, tmp_path)
  task = registry.TASKS[name]
  for form in task.forms:
    assert all(pattern in text for pattern in form.patterns)
  assert task.source in text


@pytest.mark.parametrize(
  "name, layout, file",
  [
    ("gqa", "parquet", "testdev_balanced_images"),
    ("textvqa_ocr", "official", "TextVQA_Rosetta_OCR_v0.2_val.json"),
    ("scienceqa_img", "official", "pid_splits.json"),
    ("cv_bench", "parquet", "test_3d.parquet"),
    ("pope", "full", "popular-00000-of-00001.parquet"),
  ],
)
def test_one_of_several_files_is_missing(name, layout, file, tmp_path):
  WRITERS[name][layout](tmp_path)
  for path in files(tmp_path):
    if file in str(path):
      path.unlink()
  text = refusal(name, tmp_path)
  assert "its files are not in" in text and file.split("-")[0] in text


@pytest.mark.parametrize(
  "file, remedy",
  [
    ("data-00000-of-00001.arrow", "datasets.load_from_disk(DIR).to_parquet"),
    ("GQA.tsv", "VLMEvalKit's, which is not read"),
    ("images.zip", "archives there must be unpacked first"),
    ("images.tar.part.aa", "archives there must be unpacked first"),
  ],
)
def test_files_in_a_form_that_is_not_read(file, remedy, tmp_path):
  path = tmp_path / "gqa" / "testdev" / file
  path.parent.mkdir(parents=True)
  path.write_bytes(b"?")
  assert remedy in refusal("gqa", tmp_path)


# --- Files that are broken.


@pytest.mark.parametrize("name, layout", CASES)
@pytest.mark.parametrize("what", ["empty", "page", "short"])
def test_every_file_may_be_broken(name, layout, what, tmp_path):
  """A table or a text that is none is named; a picture is refused alone."""
  WRITERS[name][layout](tmp_path)
  for path in files(tmp_path):
    whole = path.read_bytes()
    broken = {
      "empty": b"",
      "page": b"<!DOCTYPE html><html>Not found</html>",
      "short": whole[: len(whole) // 2],
    }
    path.write_bytes(broken[what])
    if path.suffix in (".jpg", ".png"):
      medium = media.Named(str(path.parent), path.name)
      assert skip(medium)[0] == "unreadable image"
    elif path.suffix not in (".txt", ".csv") and is_read(path):
      assert str(path) in refusal(name, tmp_path)
    path.write_bytes(whole)


def is_read(path):
  """Whether a file is of the task and the split that are scored."""
  mmmu = "mmmu/" in str(path)
  others = ("dev-",) if mmmu else ("en/test-", "cn/", "textvqa/TextVQA_Rosetta")
  return not any(x in str(path) for x in others)


def test_a_table_that_is_broken_inside(tmp_path):
  """Its end, which says what is where, is whole; pages are not."""
  published.textvqa_parquet(tmp_path)
  path = files(tmp_path)[0]
  _spoil(path, "question")
  text = refusal("textvqa", tmp_path)
  assert str(path) in text and "no Parquet table, or a broken one" in text


def test_pictures_in_a_table_that_is_broken_inside(tmp_path):
  published.gqa_parquet(tmp_path)
  path = next(tmp_path.rglob("testdev_balanced_images/*"))
  _, items = expected_items.of("gqa", tmp_path)
  _spoil(path, "image.bytes")
  reason, text = skip(items[0].images[0])
  assert reason == "unreadable table" and "column 'image'" in text
  published_letters.science_full(tmp_path)  # where it is read at once
  _spoil(next(tmp_path.rglob("ScienceQA-FULL/*")), "image.bytes")
  assert "column 'image' can't be read" in refusal("scienceqa_img", tmp_path)


def _spoil(path, column):
  """Overwrites the pages of a column in the first row group."""
  group = parquet.ParquetFile(path).metadata.row_group(0)
  chunk = next(
    one
    for one in map(group.column, range(group.num_columns))
    if one.path_in_schema == column
  )
  start = chunk.dictionary_page_offset or chunk.data_page_offset
  whole = bytearray(path.read_bytes())
  whole[start : start + chunk.total_compressed_size] = (
    b"\xff" * chunk.total_compressed_size
  )
  path.write_bytes(whole)


def test_a_table_with_a_text_that_is_none(tmp_path):
  published.chartqa_parquet(tmp_path)
  path = files(tmp_path)[0]
  found = parquet.read_table(path)
  broken = found["question"].cast(pyarrow.binary()).to_pylist()
  broken[0] = b"\xff\xfe"
  made = pyarrow.array(broken, pyarrow.binary()).view(pyarrow.string())
  at = found.schema.get_field_index("question")
  parquet.write_table(found.set_column(at, "question", made), path)
  assert str(path) in refusal("chartqa", tmp_path)


def test_a_table_without_rows(tmp_path):
  published.chartqa_parquet(tmp_path)
  path = files(tmp_path)[0]
  parquet.write_table(parquet.read_table(path)[:0], path)
  assert f"chartqa: no item in {path}" in refusal("chartqa", tmp_path)


# --- Columns and keys.


@pytest.mark.parametrize(
  "name, layout, column",
  [
    ("gqa", "parquet", "imageId"),
    ("textvqa", "parquet", "answers"),
    ("textvqa_ocr", "parquet", "ocr_tokens"),
    ("mmvp", "parquet", "Correct Answer"),
    ("mmbench_en_dev", "parquet", "L2-category"),
    ("mmmu_val", "merged", "image_7"),
    ("mathvista_format", "parquet", "decoded_image"),
    ("scienceqa_img", "img", "image"),
  ],
)
def test_a_table_that_lacks_a_column(name, layout, column, tmp_path):
  """It is named, and those that are there."""
  WRITERS[name][layout](tmp_path)
  for path in tmp_path.rglob("*.parquet"):
    found = parquet.read_table(path)
    if column in found.column_names:
      names = [x if x != column else "other" for x in found.column_names]
      parquet.write_table(found.rename_columns(names), path)
  text = refusal(name, tmp_path)
  assert f"no column '{column}'" in text
  assert "it has '" in text and "'other'" in text


JSON_KEYS = [
  ("gqa", "testdev_balanced_questions.json", ("201",), "imageId"),
  ("textvqa", "TextVQA_0.5.1_val.json", ("data", 1), "answers"),
  ("textvqa_ocr", "TextVQA_Rosetta_OCR_v0.2_val.json", ("data", 0), "image_id"),
  ("ocrbench", "OCRBench.json", (2,), "answers"),
  ("emoji_scenes", "questions.json", (0,), "kind"),
  ("scienceqa_img", "problems.json", ("11",), "choices"),
  ("scienceqa_img", "pid_splits.json", (), "test"),
  ("mathvista_cot", "testmini.json", ("8",), "precision"),
]


@pytest.mark.parametrize("name, file, where, key", JSON_KEYS)
def test_json_that_lacks_a_key(name, file, where, key, tmp_path):
  text = _refused_json(name, file, where, tmp_path, lambda one: one.pop(key))
  assert f"no column '{key}'; it has '" in text
  assert file in text and str(where[-1] if where else "") in text


@pytest.mark.parametrize("name, file, where, key", JSON_KEYS)
def test_json_with_something_else_in_the_place_of_an_object(
  name, file, where, key, tmp_path
):
  """An item that is a text; the whole file a number; and no JSON at all."""
  if where:
    text = _refused_json(name, file, where, tmp_path, None)
    assert file in text and "an object is needed, got str" in text
  path = next(tmp_path.rglob(file), None) or _written(name, file, tmp_path)
  for content in ("7", "[1]", "{", '"x"', '{"data": 7}'):
    path.write_text(content)
    assert str(path) in refusal(name, tmp_path)


def _refused_json(name, file, where, root, change):
  """After a change of the object there, or with a text in its place."""
  path = _written(name, file, root)
  value = json.loads(path.read_text(encoding="utf-8"))
  found, above = value, None
  for key in where:
    above, found = found, found[key]
  if change is None:
    above[where[-1]] = "a text"
  else:
    change(found)
  path.write_text(json.dumps(value), encoding="utf-8")
  return refusal(name, root)


def _written(name, file, root):
  list(WRITERS[name].values())[-1](root)
  return next(root.rglob(file))


@pytest.mark.parametrize("content", ["7", '{"a": 1}', '["q"]', '[["q", "a"]]'])
def test_questions_of_easy_vqa_are_lists_of_three(content, tmp_path):
  published.easy_vqa_package(tmp_path)
  path = tmp_path / "easy_vqa" / "data" / "test" / "questions.json"
  path.write_text(content)
  text = refusal("easy_vqa", tmp_path)
  assert str(path) in text and ("list" in text or "question, answer" in text)


def test_splits_of_scienceqa(tmp_path):
  """A split that is no list, and a problem that is not there."""
  published_letters.science_official(tmp_path)
  path = tmp_path / "scienceqa" / "pid_splits.json"
  path.write_text('{"test": 3}')
  assert f'{path}: under "test" a list' in refusal("scienceqa_img", tmp_path)
  path.write_text('{"test": ["99"]}')
  assert "no problem 99, of test" in refusal("scienceqa_img", tmp_path)


@pytest.mark.parametrize(
  "content, why",
  [
    ("\n", "no column 'Index', 'Question'"),
    ("Index,Question,Options\n1,a,b\n", "no column 'Correct Answer'; it has"),
    ("lndex,Question,Options,Correct Answer\n1,a\n", "row 2: 2 cells under 4"),
    ("lndex,Question,Options,Correct Answer\nx,a,b,c\n", "Index 'x' is no"),
    ("lndex,Question,Options,Correct Answer\n1,a,b,c\n", "have no (b): 'b'"),
    (f'"{"x" * 200_000}', "no CSV (field larger than"),
  ],
)
def test_a_table_of_mmvp_that_is_none(content, why, tmp_path):
  path = tmp_path / "mmvp" / "Questions.csv"
  path.parent.mkdir()
  path.write_text(content)
  assert why in refusal("mmvp", tmp_path)


@pytest.mark.parametrize("line", ["Is it?", "Is it? Yes", "1.jpg\tIs it?\tYes"])
def test_a_line_of_mme_has_one_tab(line, tmp_path):
  published.mme_official(tmp_path)
  path = next(tmp_path.rglob("existence/*.txt"))
  path.write_text(f"Is it?\tYes\n\n{line}\n")
  text = refusal("mme", tmp_path)
  assert f"{path}: one tab" in text and f"got {line!r}" in text


def test_gqas_question_about_a_picture_that_is_in_no_table(tmp_path):
  published.gqa_parquet(tmp_path)
  path = next(tmp_path.rglob("testdev_balanced_images/*"))
  parquet.write_table(parquet.read_table(path)[1:], path)
  text = refusal("gqa", tmp_path)
  assert "question 201 is about picture n1" in text and str(path) in text


def test_textvqas_question_without_tokens(tmp_path):
  published.textvqa_official(tmp_path)
  path = next(tmp_path.rglob("*Rosetta*"))
  path.write_text('{"data": []}')
  assert "nothing about picture 00a3" in refusal("textvqa_ocr", tmp_path)


def test_options_of_mmmu_that_are_no_list(tmp_path):
  rows = [published_letters.MMMU[0] | {"options": "A or B"}]
  path = tmp_path / "mmmu" / "Math" / "validation-0.parquet"
  published_letters.mmmu_table(path, rows)
  text = refusal("mmmu_val", tmp_path)
  assert "options of validation_Art_Theory_1 are no list: 'A or B'" in text


@pytest.mark.parametrize("precision", [None, float("nan"), 3.0, "x"])
def test_mathvistas_decimals_are_one_or_two(precision, tmp_path):
  text = _refused_json(
    *("mathvista_format", "testmini.json", ("3",), tmp_path),
    lambda one: one.update(precision=precision),
  )
  assert "problem 3 wants a float" in text and "known: integer" in text


# --- Copies.


@pytest.mark.parametrize("name", ["gqa", "mmmu_val", "pope", "seed"])
def test_an_id_that_is_there_twice(name, tmp_path):
  """As where an old download lies beside a new one."""
  layout, write = next(iter(WRITERS[name].items()))
  write(tmp_path)
  for path in list(tmp_path.rglob("*.parquet")):
    copy = tmp_path / path.relative_to(tmp_path).parts[0] / "old"
    copy = copy / path.parent.name / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, copy)
  text = refusal(name, tmp_path)
  assert f"{name}: item '" in text and "twice: keep one copy" in text


def test_a_copy_of_official_questions(tmp_path):
  published.ocrbench_official(tmp_path)
  copy = tmp_path / "ocrbench" / "new" / "OCRBench.json"
  copy.parent.mkdir()
  copy.write_text("[]")
  text = refusal("ocrbench", tmp_path)
  assert str(copy) in text and "keep one of these 2" in text


# --- Single pictures.


def test_pictures_that_are_null(tmp_path):
  """The question is one of the task's; its picture is missing."""
  types = published.columns({"image": published.IMAGE}, "type question answer")
  row = {"type": "human_test", "question": "?", "answer": "1"}
  some = [None, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": None}]
  rows = [row | {"image": one} for one in some]
  published.table(tmp_path / "chartqa" / "test-0.parquet", types, rows)
  _, items = expected_items.of("chartqa", tmp_path)
  for number, item in enumerate(items):
    reason, text = skip(item.images[0])
    assert reason == "missing image"
    where = f"test-0.parquet, row group {number // 2}, row {number % 2}"
    assert where in text and "'image' has no bytes" in text


def test_pictures_of_another_type(tmp_path):
  """Bytes by themselves are read; the text of some is no picture."""
  for kind, value in (
    (pyarrow.binary(), published.encoded("green")),
    (pyarrow.string(), "aGVsbG8="),
  ):
    types = published.columns({"image": kind}, "type question answer")
    path = tmp_path / str(kind) / "chartqa" / "test-0.parquet"
    published.table(path, types, [{"question": "?", "image": value}])
  _, items = expected_items.of("chartqa", tmp_path / "binary")
  assert expected_items.shown(items[0]) == "green"
  _, items = expected_items.of("chartqa", tmp_path / "string")
  assert skip(items[0].images[0])[0] == "missing image"


def test_a_list_of_pictures_that_is_empty(tmp_path):
  types = published.columns(
    {"image": pyarrow.list_(published.IMAGE)},
    "question_id question answer data_type choice_a choice_b choice_c choice_d",
  )
  row = {"question": "?", "data_type": "image", "answer": "A"}
  rows = [row | {"question_id": "1", "image": []}]
  rows += [row | {"question_id": "2", "image": None}]
  published.table(tmp_path / "seed" / "test-0.parquet", types, rows)
  _, items = expected_items.of("seed", tmp_path)
  assert [skip(x.images[0])[0] for x in items] == ["missing image"] * 2


def test_rows_of_scienceqa_whose_picture_has_neither_bytes_nor_path(tmp_path):
  """It is as good as null: the row is no item."""
  published_letters.science_full(tmp_path)
  path = files(tmp_path)[0]
  found = parquet.read_table(path)
  cells = found["image"].to_pylist()
  cells = [one or {"bytes": None, "path": None} for one in cells]
  at = found.schema.get_field_index("image")
  made = pyarrow.array(cells, published.IMAGE)
  assert made.null_count == 0
  parquet.write_table(found.set_column(at, "image", made), path)
  _, items = expected_items.of("scienceqa_img", tmp_path)
  assert [item.id for item in items] == ["0", "2"]


@pytest.mark.parametrize("name, layout", OFFICIAL)
def test_a_file_of_a_picture_that_is_missing(name, layout, tmp_path):
  """Items are there all the same; the picture's name and folder are told."""
  WRITERS[name][layout](tmp_path)
  for path in files(tmp_path):
    if path.suffix in (".png", ".jpg"):
      path.unlink()
  _, items = expected_items.of(name, tmp_path)
  for item in items:
    reason, text = skip(item.images[0])
    assert reason == "missing image" and f" is not in {tmp_path}" in text
    assert "data.image_folder" not in text


def test_names_of_pictures_that_are_missing_by_name(tmp_path):
  published.ocrbench_official(tmp_path)
  path = next(tmp_path.rglob("OCRBench.json"))
  path.write_text(path.read_text().replace('"docVQA/3.png"', "null"))
  _, items = expected_items.of("ocrbench", tmp_path)
  assert skip(items[3].images[0]) == (
    "missing image",
    f"'None' is not in {path.parent}",
  )


@pytest.mark.parametrize(
  "up", ["../secret.png", "/secret.png", "a/../../b.png"]
)
def test_a_name_that_leads_out_of_the_folder(up, tmp_path):
  published.emoji_scenes_files(tmp_path)
  (tmp_path / "secret.png").write_bytes(published.encoded("red"))
  (tmp_path / "b.png").write_bytes(published.encoded("red"))
  path = tmp_path / "emoji_scenes" / "questions.json"
  name = f"{tmp_path}{up}" if up[0] == "/" else up
  path.write_text(path.read_text().replace("pictures/b.png", name))
  _, items = expected_items.of("emoji_scenes", tmp_path)
  reason, text = skip(items[2].images[0])
  assert reason == "image outside the folder"
  assert text == f"{name!r} is not in {path.parent}"


@pytest.mark.parametrize("content", [b"<html>", b"x", None])
def test_a_picture_in_a_table_that_is_broken(content, tmp_path):
  """Another file, a few letters, half a picture."""
  whole = published.encoded("red", "JPEG")
  cell = {"bytes": content or whole[: len(whole) // 2], "path": None}
  types = published.columns({"image": published.IMAGE}, "type question answer")
  path = tmp_path / "chartqa" / "test-0.parquet"
  published.table(path, types, [{"question": "?", "image": cell}])
  _, items = expected_items.of("chartqa", tmp_path)
  assert skip(items[0].images[0])[0] == "unreadable image"


def test_a_picture_that_is_too_large(tmp_path):
  published.chartqa_parquet(tmp_path)
  _, items = expected_items.of("chartqa", tmp_path)
  assert media.picture(items[0].images[0], 48).shape == (6, 8, 3)
  assert "the limit is 47" in skip(items[0].images[0], 47)[1]


def test_a_table_that_went_after_it_was_read(tmp_path):
  published.textvqa_parquet(tmp_path)
  _, items = expected_items.of("textvqa", tmp_path)
  files(tmp_path)[0].unlink()
  assert skip(items[0].images[0])[0] == "unreadable table"


# --- Pictures as they are stored.


def _stored(tmp_path, image, name, **how):
  path = tmp_path / name
  image.save(path, **how)
  found = media.picture(media.Named(str(tmp_path), name), 10_000)
  with Image.open(path) as there:
    np.testing.assert_array_equal(found, np.asarray(there.convert("RGB")))
  in_table = {"image": {"bytes": path.read_bytes(), "path": name}}
  types = {"image": published.IMAGE}
  published.table(tmp_path / "t.parquet", types, [in_table])
  cell = media.Cell(str(tmp_path / "t.parquet"), 0, 0, "image")
  np.testing.assert_array_equal(found, media.picture(cell, 10_000))
  return found


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_picture_is_not_turned_by_its_exif(name, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  image = Image.new("RGB", (30, 20), "blue")
  image.paste("red", (0, 0, 15, 20))
  found = _stored(tmp_path, image, name, exif=exif)
  assert found.shape == (20, 30, 3)
  assert found[10, 2, 0] > 200 and found[10, -3, 2] > 200


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
def test_a_picture_is_not_laid_over_white(mode, tmp_path):
  """What is below a transparent pixel is shown; deep grey as Pillow has it."""
  if mode == "P":
    image = Image.new("P", (3, 2), 1)
    image.putpalette([9, 9, 9, 200, 30, 40])
    found = _stored(tmp_path, image, "a.png", transparency=1)
    assert found[0, 0].tolist() == [200, 30, 40]
    return
  value = {"RGBA": (200, 30, 40, 0), "LA": (70, 0), "L": 70, "I;16": 70}[mode]
  found = _stored(tmp_path, Image.new(mode, (3, 2), value), "a.png")
  assert found[0, 0].tolist() == ([200, 30, 40] if mode == "RGBA" else 3 * [70])


def test_the_first_picture_of_an_animation_is_shown(tmp_path):
  red, blue = (Image.new("RGB", (3, 2), x) for x in ("red", "blue"))
  out = io.BytesIO()
  red.save(out, "GIF", save_all=True, append_images=[blue])
  (tmp_path / "a.gif").write_bytes(out.getvalue())
  found = media.picture(media.Named(str(tmp_path), "a.gif"), 10_000)
  assert found[0, 0].tolist() == [255, 0, 0]
