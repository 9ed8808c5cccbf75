"""Checkpoints on disk: exact, lazy, strict, and whole or not there."""

import errno
import itertools
import json
import os
import pathlib
import pickle
import struct
import sys

import ml_dtypes
import numpy as np
import psutil
import pytest
import safetensors
from safetensors import numpy as st

from gaze_jax.weights import errors
from gaze_jax.weights import formats
from gaze_jax.weights import tensors
from gaze_jax.weights import writer

DTYPES = [np.dtype(t) for t in (ml_dtypes.bfloat16, "f2", "f4")]


def random(shape, dtype, seed=0):
  """Any bits, NaNs included."""
  raw = np.random.default_rng(seed).bytes(
    int(np.prod(shape)) * np.dtype(dtype).itemsize
  )
  return np.frombuffer(raw, dtype).reshape(shape)


def same(a, b):
  return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def pieces(name, x, blocks):
  return writer.Pieces(name, x.shape, x.dtype, lambda: blocks)


def write(path, arrays, **options):
  tensors = [pieces(name, x, [x]) for name, x in arrays.items()]
  writer.write(path, tensors, **options)


def refused(path):
  """The one line that opening says."""
  with pytest.raises(errors.ConversionError) as caught:
    tensors.Tensors(path)
  text = str(caught.value)
  assert "\n" not in text
  assert str(path) in text
  return text


@pytest.fixture
def arrays():
  """Every dtype and odd shapes; odd counts would misalign what follows."""
  shapes = [(), (0,), (3,), (5, 0), (7, 9), (2, 3, 5), (1, 3, 2, 2)]
  return {
    f"{dtype.name}.{i}": random(shape, dtype, i)
    for dtype in DTYPES
    for i, shape in enumerate(shapes)
  }


@pytest.fixture
def sharded(tmp_path):
  """Three shards a, b, c of 40 bytes each and their index."""
  write(
    tmp_path,
    {n: random((10,), "f4", i) for i, n in enumerate("abc")},
    shard_bytes=40,
  )
  return tmp_path


def shard(folder, i):
  return folder / f"model-{i:05d}-of-00003.safetensors"


def edit_index(folder, change):
  path = folder / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  change(index["weight_map"])
  path.write_text(json.dumps(index))


class TestRoundTrip:
  def test_bitwise_through_the_library_and_back(self, tmp_path, arrays):
    write(tmp_path, arrays)
    theirs = st.load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == arrays.keys()
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
      assert file.metadata() == {"format": "pt"}  # transformers 4 asks for it
    for name, x in arrays.items():
      assert same(theirs[name], x), name
    source = tensors.Tensors(tmp_path)
    assert source.listed.keys() == arrays.keys()
    for name, x in arrays.items():
      got = source.read(name)
      assert same(got, x), name
      assert got.flags.writeable and got.flags.c_contiguous
      assert source.listed[name].bytes == x.nbytes

  def test_everything_is_aligned(self, tmp_path, arrays):
    """As the format asks: whoever maps the file reads in place."""
    halves = [x for x in arrays.values() if x.dtype != np.float16]
    assert sum(x.size for x in halves if x.itemsize == 2) % 2  # in any order
    write(tmp_path, {"odd" * n: x for n, x in enumerate(halves, 1)})
    raw = (tmp_path / "model.safetensors").read_bytes()
    assert int.from_bytes(raw[:8], "little") % 8 == 0
    for tensor in tensors.Tensors(tmp_path).listed.values():
      assert tensor.offset % tensor.dtype.itemsize == 0, tensor

  def test_what_the_library_writes(self, tmp_path, arrays):
    st.save_file(arrays, tmp_path / "model.safetensors")
    source = tensors.Tensors(tmp_path)
    assert all(same(source.read(n), x) for n, x in arrays.items())

  def test_every_tensor_is_aligned(self, tmp_path, arrays):
    write(tmp_path, arrays)
    for t in tensors.Tensors(tmp_path).listed.values():
      assert t.offset % t.dtype.itemsize == 0, t

  def test_a_tensor_in_pieces(self, tmp_path):
    a, b = random((6, 5), "f4", 1), random((4, 3, 2), "f2", 2)
    parts = pieces("b", b, [b[:1, :2], b[:1, 2:], b[1:]])
    writer.write(tmp_path, [parts, pieces("a", a, [a[:4], a[4:]])])
    source = tensors.Tensors(tmp_path)
    assert same(source.read("a"), a) and same(source.read("b"), b)

  @pytest.mark.parametrize("dtype", DTYPES)
  @pytest.mark.parametrize("tile", [1, 3, 256])
  def test_pieces_in_another_order(self, tmp_path, monkeypatch, dtype, tile):
    monkeypatch.setattr(writer, "_TILE", tile)
    x = {"m": random((7, 5), dtype).T}
    for axes in itertools.permutations(range(3)):
      x[f"t{axes}"] = random((4, 7, 5), dtype).transpose(axes)
    x["part"] = random((9, 8, 7), dtype)[2:7, ::2, 1:3].transpose(2, 0, 1)
    write(tmp_path, x)
    source = tensors.Tensors(tmp_path)
    assert all(same(source.read(n), v) for n, v in x.items())

  def test_a_file_by_name(self, tmp_path):
    x = {"a": random((3,), "f4")}
    write(tmp_path / "unused.safetensors", x)
    assert os.listdir(tmp_path) == ["unused.safetensors"]
    assert same(
      tensors.Tensors(tmp_path / "unused.safetensors").read("a"), x["a"]
    )

  @pytest.mark.parametrize(
    "limit, held",
    [
      (1000, ["abc"]),
      (120, ["abc"]),
      (119, ["ab", "c"]),
      (80, ["ab", "c"]),
      (79, ["a", "b", "c"]),
      (1, ["a", "b", "c"]),
    ],
  )
  def test_shards(self, tmp_path, limit, held):
    x = {n: random((10,), "f4", i) for i, n in enumerate("abc")}
    write(tmp_path, x, shard_bytes=limit)
    names = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    if len(held) == 1:
      assert os.listdir(tmp_path) == ["model.safetensors"]
    else:
      n = len(held)
      want = [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
      assert names == want
      index = json.loads(
        (tmp_path / "model.safetensors.index.json").read_text()
      )
      assert index["metadata"]["total_size"] == 120
      assert index["weight_map"] == {
        name: file for file, ns in zip(want, held, strict=True) for name in ns
      }
    assert ["".join(sorted(st.load_file(tmp_path / n))) for n in names] == held
    source = tensors.Tensors(tmp_path)
    assert all(same(source.read(n), v) for n, v in x.items())

  def test_transformers_loads_it(self, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
      vocab_size=32,
      hidden_size=16,
      intermediate_size=24,
      num_hidden_layers=2,
      num_attention_heads=2,
      num_key_value_heads=1,
    )
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    config.save_pretrained(tmp_path)
    write(tmp_path, state, shard_bytes=3000)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded, info = transformers.Qwen2ForCausalLM.from_pretrained(
      tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in loaded.state_dict().items():
      assert same(value.numpy(), state[name]), name

  def test_every_element_is_given(self, tmp_path):
    x = np.zeros((2, 3), "f4")
    for rows, count in ((1, 12), (3, 36)):
      blocks = [np.zeros((rows, 3), "f4")]
      with pytest.raises(errors.ConversionError, match=f"a: {count} bytes we"):
        writer.write(tmp_path, [pieces("a", x, blocks)])

  def test_only_weights_are_written(self, tmp_path):
    with pytest.raises(errors.ConversionError, match="a is int64; write it as"):
      write(tmp_path, {"a": np.zeros(2, "i8")})


INDICES = [
  (),
  (slice(2, 5),),
  (slice(None), slice(1, 2)),
  (slice(3, 3), slice(None)),
  (slice(-2, None), slice(0, 2000)),
  (slice(0, 4), slice(3, 5), slice(1, 2)),
  (slice(5, 2), slice(None), slice(1, 6)),
  (slice(None), slice(None), slice(0, 7)),
]


class TestParts:
  @pytest.mark.parametrize("gap", [0, 3, 4096, 10**9])
  @pytest.mark.parametrize("block", [1, 20, 2**24])
  def test_equal_to_numpy(self, tmp_path, monkeypatch, gap, block):
    """With gaps read or skipped, and buffers from a row to everything."""
    monkeypatch.setattr(formats, "_GAP", gap)
    monkeypatch.setattr(formats, "_BLOCK", block)
    x = {
      d.name + str(len(s)): random(s, d)
      for d in DTYPES
      for s in [(6, 5, 7), (6, 3000)]
    }
    write(tmp_path, x)
    source = tensors.Tensors(tmp_path)
    for name, value in x.items():
      for index in INDICES:
        if len(index) <= value.ndim:
          assert same(source.read(name, index), value[index]), (name, index)

  @pytest.mark.parametrize(
    "index", [(slice(0, 4, 2),), (slice(None),) * 3, (slice(None, None, -1),)]
  )
  def test_steps_are_a_mistake(self, tmp_path, index):
    write(tmp_path, {"a": random((4, 4), "f4")})
    with pytest.raises(ValueError, match="is no part of"):
      tensors.Tensors(tmp_path).read("a", index)

  @pytest.mark.parametrize(
    "index, most",
    [
      ((slice(10, 20),), 10 * 32768),
      ((slice(10, 11), slice(5, 6)), 4096),
      ((slice(None), slice(0, 100)), 512 * (200 + 4096)),
      ((slice(3, 3),), 0),
    ],
  )
  def test_no_other_part_is_read(self, tmp_path, monkeypatch, index, most):
    write(tmp_path, {"a": random((512, 16384), "f2"), "b": random((9,), "f2")})
    source = tensors.Tensors(tmp_path)
    asked = []
    whole = formats._read_into

    def read_into(file, out, offset):
      asked.append(out.nbytes)
      whole(file, out, offset)

    monkeypatch.setattr(formats, "_read_into", read_into)
    got = source.read("a", index)
    assert got.nbytes <= sum(asked) <= max(most, got.nbytes)

  def test_opening_and_reading_hold_no_memory(self, tmp_path):
    size = 2**28
    rows = [np.zeros((1, 2**19), "f2")] * 256
    shape = np.broadcast_to(rows[0], (256, 2**19))
    writer.write(tmp_path, [pieces("a", shape, rows)])
    before = psutil.Process().memory_info().rss
    source = tensors.Tensors(tmp_path)
    for i in range(256):
      source.read("a", (slice(i, i + 1),))
    assert source.listed["a"].bytes == size
    assert psutil.Process().memory_info().rss - before < size / 8
    assert not [
      f for f in psutil.Process().open_files() if str(tmp_path) in f.path
    ]

  def test_a_file_that_shrinks(self, tmp_path):
    write(tmp_path, {"a": random((1000,), "f4")})
    source = tensors.Tensors(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 2000)
    with pytest.raises(errors.ConversionError, match="became shorter"):
      source.read("a")

  def test_a_file_that_goes_away(self, tmp_path):
    write(tmp_path, {"a": random((1000,), "f4")})
    source = tensors.Tensors(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(errors.ConversionError, match="can't be read: No such"):
      source.read("a")

  def test_an_unknown_name(self, tmp_path):
    write(tmp_path, {"a": random((1,), "f4")})
    with pytest.raises(errors.ConversionError, match="there is no tensor b"):
      tensors.Tensors(tmp_path).read("b")


class TestWhichFiles:
  def test_shards_without_an_index(self, sharded):
    (sharded / "model.safetensors.index.json").unlink()
    assert set(tensors.Tensors(sharded).listed) == set("abc")

  def test_an_index_by_name(self, sharded):
    source = tensors.Tensors(sharded / "model.safetensors.index.json")
    assert set(source.listed) == set("abc")

  def test_files_that_the_index_leaves_out_are_no_part_of_it(self, sharded):
    st.save_file({"z": np.zeros(1)}, sharded / "consolidated.safetensors")
    assert set(tensors.Tensors(sharded).listed) == set("abc")

  def test_one_whole_file_is_the_checkpoint(self, tmp_path):
    write(tmp_path, {"a": random((1,), "f4")})
    write(tmp_path / "unused.safetensors", {"b": random((1,), "f4")})
    assert set(tensors.Tensors(tmp_path).listed) == {"a"}

  def test_not_there(self, tmp_path):
    assert "not there; give the directory" in refused(tmp_path / "x")

  def test_no_directory(self, tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert "not a file of weights (.safetensors," in refused(path)
    assert "neither a file nor a directory" in refused("/dev/null")

  def test_no_weights(self, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "no weights in this directory (model.safete" in refused(tmp_path)

  def test_two_checkpoints(self, sharded):
    write(sharded, {"a": random((1,), "f4")})
    text = refused(sharded)
    assert "model.safetensors and model.safetensors.index.json are" in text
    assert "delete the one that is stale" in text

  def test_several_pickles(self, tmp_path):
    for name in ("a.pth", "b.pt"):
      (tmp_path / name).write_bytes(b"")
    assert "a.pth, b.pt: which one holds the weights?" in refused(tmp_path)

  @pytest.mark.parametrize("module", ["files", "tensors"])
  def test_unreadable(self, tmp_path, monkeypatch, module):
    write(tmp_path, {"a": random((1,), "f4")})
    method = {"files": "open", "tensors": "iterdir"}[module]

    def deny(self, *_, **__):
      raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, method, deny)
    assert "can't be read: Permission denied" in refused(tmp_path)


class TestIndex:
  def test_missing_shard(self, sharded):
    shard(sharded, 2).unlink()
    text = refused(sharded)
    assert "model-00002-of-00003.safetensors of model.safetensors.index" in text
    assert "missing; download the 1 of 3 shards" in text

  def test_missing_shard_without_an_index(self, sharded):
    (sharded / "model.safetensors.index.json").unlink()
    shard(sharded, 3).unlink()
    text = refused(sharded)
    assert "model-00003-of-00003.safetensors missing beside" in text
    assert "download the 1 of 3 shards" in text

  def test_tensor_in_another_shard(self, sharded):
    edit_index(sharded, lambda m: m.update(a=shard(sharded, 2).name))
    edit_index(sharded, lambda m: m.update(b=shard(sharded, 1).name))
    text = refused(sharded)
    assert (
      "not where the index says: a (said to be in model-00002-of-00003."
      "safetensors, it is in model-00001-of-00003.safetensors)"
    ) in text
    assert "download all of them again" in text

  def test_tensor_in_no_shard(self, sharded):
    edit_index(sharded, lambda m: m.update(z=m["a"]))
    text = refused(sharded)
    assert "z (said to be in model-00001-of-00003.safetensors, absent)" in text

  def test_tensor_that_is_not_in_the_index(self, sharded):
    write(shard(sharded, 1), {n: random((1,), "f4") for n in "ax"})
    text = refused(sharded)
    assert "does not name: x (in model-00001-of-00003.safetensors)" in text

  @pytest.mark.parametrize("with_index", [True, False])
  def test_tensor_in_two_shards(self, sharded, with_index):
    write(shard(sharded, 2), {n: random((1,), "f4") for n in "ab"})
    if not with_index:
      (sharded / "model.safetensors.index.json").unlink()
    text = refused(sharded)
    assert "tensors in two files: a (in model-00001-of-00003." in text
    assert "and model-00002-of-00003.safetensors)" in text

  @pytest.mark.parametrize(
    "text, says",
    [
      (b"{", "the index is no JSON"),
      (b"\xff\xfe\x00", "the index is no JSON"),
      (b"[" * 10**5, "the index is no JSON"),
      (b'{"weight_map": {"a": "b", "a": "c"}}', "a is there twice"),
      (b"{}", "no weight_map"),
      (b"[]", "no weight_map"),
      (b'{"weight_map": {}}', "no weight_map"),
      (b'{"weight_map": {"a": 3}}', "no weight_map"),
      (b'{"weight_map": {"a": "config.json"}}', "no file of weights"),
    ],
  )
  def test_garbage(self, tmp_path, text, says):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text)
    assert says in refused(tmp_path)
    assert "download it again" in refused(path)

  @pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "..", "a/../../x.bin", "..\\x.bin"],
  )
  def test_a_path_outside(self, tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    write(tmp_path / "x.safetensors", {"a": random((1,), "f4")})
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": name}}))
    text = refused(folder)
    assert repr(name) in text and "outside its directory" in text
    assert "do not trust" in text


def header(table, data=b""):
  raw = json.dumps(table).encode()
  return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype, shape, *offsets):
  return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class TestFile:
  def test_truncated(self, sharded):
    path = shard(sharded, 2)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    text = refused(sharded / path.name)
    assert f"truncated: {size} bytes expected, {size - 1} found; b is" in text
    assert "download or copy it again" in text

  def test_longer(self, sharded):
    path = shard(sharded, 2)
    size = path.stat().st_size
    with path.open("ab") as file:
      file.write(b"12")
    assert f"{size} bytes expected, {size + 2} found: the rest" in refused(path)

  @pytest.mark.parametrize(
    "content, says",
    [
      (b"", "the file is empty"),
      (b"\0" * 5, "header is truncated: at least 8 bytes expected, 5 found"),
      (b"\xff" * 5, "header is truncated: at least 8 bytes expected, 5 found"),
      (
        struct.pack("<Q", 90) + b'{"a',
        ": 98 bytes expected, 11 found",
      ),
      (b"\xff" * 20, "a header of 18,446,744,073,709,551,615 bytes, the limit"),
      (struct.pack("<Q", 10**8 + 1) + b"{", "a header of 100,000,001 bytes"),
      (struct.pack("<Q", 4) + b"\0\1\2\3", "the safetensors header is garbage"),
      (struct.pack("<Q", 4) + b'{"a"', "the safetensors header is no JSON"),
      (struct.pack("<Q", 4) + b"{\xff\xff}", "header is no JSON"),
      (
        struct.pack("<Q", 6 * 10**5 + 0) + b'{"a":[' * 10**5,
        "header is no JSON",
      ),
      (pickle.dumps({"a": 1}), "a pickle (torch.save), not safetensors"),
      (b"PK\3\4" + b"\0" * 99, "a pickle (torch.save), not safetensors"),
      (b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
      (header({"a": 3}), "the header's entry of a is garbage: 3"),
      (header({"a": {"dtype": "F32"}}), "entry of a is garbage"),
      (header({"a": entry("F32", [-1], 0, 0)}), "entry of a is garbage"),
      (header({"a": entry("F32", [True], 0, 4)}), "entry of a is garbage"),
      (header({"a": entry("F7", [1], 0, 4)}, b"1234"), "unknown dtype F7"),
      (header({"a": entry("F32", [2], 0, 4)}, b"1234"), "[2] and has 4 bytes"),
      (header({"a": entry("F32", [1], 4, 8)}, b"12345678"), "a has a gap"),
      (
        header(
          {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)},
          b"123456",
        ),
        "b overlaps",
      ),
      (
        struct.pack("<Q", 110)
        + b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        + b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'.ljust(57)
        + b"1234",
        "a is there twice",
      ),
    ],
  )
  def test_no_sound_file(self, tmp_path, content, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert says in refused(path)

  def test_a_header_that_looks_like_a_pickle(self, tmp_path):
    """640 bytes of header begin with the bytes of pickle protocol 2."""
    table = {"a": entry("F32", [1], 0, 4), "__metadata__": {"x": ""}}
    pad = 640 - len(json.dumps(table).encode())
    table["__metadata__"]["x"] = " " * pad
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(table, b"\0\0\x80?"))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert tensors.Tensors(path).read("a").tolist() == [1.0]


class TestDtypes:
  def test_buffers_are_listed_and_not_read(self, tmp_path):
    st.save_file(
      {
        "position_ids": np.arange(3),
        "w": np.ones(2, "f4"),
        "m": np.ones(1, "?"),
      },
      tmp_path / "model.safetensors",
    )
    source = tensors.Tensors(tmp_path)
    assert source.listed["position_ids"].dtype == np.int64
    with pytest.raises(
      errors.ConversionError, match="position_ids is int64, and weights are"
    ):
      source.read("position_ids")

  @pytest.mark.parametrize(
    "name, code, width, says",
    [
      ("w.weight", "F8_E4M3", 1, "w.weight (float8_e4m3fn)"),
      ("w.weight", "F8_E5M2", 1, "w.weight (float8_e5m2)"),
      ("w.weight", "I8", 1, "w.weight (int8)"),
      ("w.weight", "U8", 1, "w.weight (uint8)"),
      ("w.qweight", "I32", 4, "w.qweight (int32)"),
      ("w.weight_scale", "F32", 4, "w.weight_scale (float32)"),
    ],
  )
  def test_quantised(self, tmp_path, name, code, width, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(
      header({name: entry(code, [2], 0, 2 * width)}, b"\0" * 2 * width)
    )
    text = refused(tmp_path)
    assert f"quantised: {says}" in text
    assert "dequantise the checkpoint first" in text

  def test_packed_to_less_than_a_byte(self, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({"w": entry("F4", [2, 3], 0, 3)}, b"123"))
    assert "w (float4_e2m1fn)" in refused(tmp_path)

  def test_the_first_few_names(self, tmp_path):
    st.save_file(
      {f"w{i}": np.zeros(1, "i1") for i in range(6)},
      tmp_path / "model.safetensors",
    )
    assert "w3 (int8) and 2 more; dequantise" in refused(tmp_path)

  def test_by_its_config(self, tmp_path):
    write(tmp_path, {"a": random((1,), "f4")})
    config = {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "quantization_config in config.json; deq" in refused(tmp_path)

  def test_ordinary_names_are_none(self, tmp_path):
    names = ("logit_scale", "layer_scale1.lambda1", "blocks.0.weight")
    write(tmp_path, {n: random((1,), "f4") for n in names})
    assert set(tensors.Tensors(tmp_path).listed) == set(names)


class Payload:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


class TestTorch:
  @pytest.fixture
  def torch(self):
    return pytest.importorskip("torch")

  @pytest.fixture
  def state(self, torch):
    torch.manual_seed(0)
    x = {
      "a": torch.randn(7, 5).bfloat16(),
      "b": torch.randn(4, 6, 3).half(),
      "c": torch.randn(5, 4).T,  # no row-major order on disk
      "scalar": torch.tensor(2.0),
      "empty": torch.zeros(0, 3),
      "position_ids": torch.arange(3),
      "grad": torch.nn.Parameter(torch.randn(3)),
    }
    return {**x, "tied": x["a"]}

  @staticmethod
  def numpy(value):
    bits = value.detach().contiguous()
    if str(bits.dtype) == "torch.bfloat16":
      return bits.float().numpy().astype(ml_dtypes.bfloat16)
    return bits.numpy()

  @pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pth", "x.pt"])
  @pytest.mark.parametrize("mapped", [1, 2**28])
  def test_round_trip(self, torch, state, tmp_path, monkeypatch, name, mapped):
    monkeypatch.setattr(formats, "_MAPPED", mapped)  # mapped anew for every row
    torch.save(state, tmp_path / name)
    source = tensors.Tensors(tmp_path)
    assert source.listed.keys() == state.keys()
    for key in state.keys() - {"position_ids"}:
      want = self.numpy(state[key])
      got = source.read(key)
      assert same(got, want), key
      assert got.flags.writeable and got.flags.c_contiguous
      for index in INDICES:
        if len(index) <= want.ndim:
          assert same(source.read(key, index), want[index]), (key, index)
    with pytest.raises(errors.ConversionError, match="position_ids is int64"):
      source.read("position_ids")

  def test_shards(self, torch, tmp_path):
    table = {}
    for i, name in enumerate("ab", 1):
      file = f"pytorch_model-{i:05d}-of-00002.bin"
      torch.save({name: torch.full((2,), i)}, tmp_path / file)
      table[name] = file
    assert set(tensors.Tensors(tmp_path).listed) == {"a", "b"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    assert set(tensors.Tensors(tmp_path).listed) == {"a", "b"}
    (tmp_path / table["b"]).unlink()
    assert "pytorch_model-00002-of-00002.bin of pyt" in refused(tmp_path)

  def test_mapped_pages_do_not_pile_up(self, torch, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_MAPPED", 2**24)
    torch.save({"a": torch.zeros(2**8, 2**18)}, tmp_path / "x.pth")  # 256 MiB
    source = tensors.Tensors(tmp_path)
    process, most = psutil.Process(), 0
    before = process.memory_info().rss
    for i in range(0, 2**8, 4):
      source.read("a", (slice(i, i + 4),))
      most = max(most, process.memory_info().rss - before)
    assert most < 2**26

  def test_nothing_is_executed(self, torch, tmp_path):
    evil = tmp_path / "evil"
    torch.save({"a": Payload(evil)}, tmp_path / "pytorch_model.bin")
    text = refused(tmp_path / "pytorch_model.bin")
    assert "more than tensors, or broken; nothing in it was run" in text
    assert "nothing in it was run (it asks for posix.system)" in text
    assert (
      "False" not in text and "save the state dict with safetensors" in text
    )
    raw = tmp_path / "raw.bin"
    raw.write_bytes(pickle.dumps({"a": Payload(evil)}))
    assert "not a zip of torch.save; nothing in it was run" in refused(raw)
    old = tmp_path / "old.bin"
    torch.save({"a": Payload(evil)}, old, _use_new_zipfile_serialization=False)
    assert "not a zip of torch.save; nothing in it was run" in refused(old)
    named = tmp_path / "x.safetensors"
    named.write_bytes(raw.read_bytes())
    assert "a pickle" in refused(named)
    assert not evil.exists()
    os.system(f"touch {evil}")  # what it would have done
    assert evil.exists()

  def test_truncated(self, torch, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    os.truncate(path, path.stat().st_size - 500)
    assert "the zip is truncated; download" in refused(path)
    os.truncate(path, 0)
    assert "the file is empty" in refused(path)

  @pytest.mark.parametrize(
    "what, says",
    [
      ([1, 2], "not a dict of tensors by name (list"),
      ({"model": {}, "epoch": 3}, "by name (dict keys ['model', 'epoch'])"),
    ],
  )
  def test_something_else(self, torch, tmp_path, what, says):
    torch.save(what, tmp_path / "x.pth")
    text = refused(tmp_path / "x.pth")
    assert says in text and "save model.state_dict() alone" in text

  def test_sparse(self, torch, tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "x.pth")
    assert "a is no plain tensor" in refused(tmp_path / "x.pth")

  def test_without_torch(self, torch, tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    text = refused(tmp_path / "pytorch_model.bin")
    assert "pip install torch" in text
    assert "convert on a machine with torch" in text


class TestDestination:
  def test_it_appears_at_the_end(self, tmp_path):
    to = tmp_path / "new" / "model"
    with writer.destination(to) as folder:
      write(folder, {"a": random((1,), "f4")})
      (folder / "config.json").write_text("{}")
      (folder / "hf").mkdir()
      assert not to.exists()
      assert folder.parent == to.parent  # a rename, and no copy
    assert sorted(os.listdir(to)) == ["config.json", "hf", "model.safetensors"]
    assert os.listdir(to.parent) == ["model"]
    assert to.stat().st_mode & 0o777 == to.parent.stat().st_mode & 0o777

  def test_all_is_flushed_before_it_gets_its_name(self, tmp_path, monkeypatch):
    to, calls, flush = tmp_path / "to", [], os.fsync

    def fsync(handle):
      calls.append((os.readlink(f"/proc/self/fd/{handle}"), to.exists()))
      flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with writer.destination(to) as folder:
      (folder / "sub").mkdir()
      (folder / "sub" / "x").write_text("x")
    want = {str(folder), f"{folder}/sub", f"{folder}/sub/x"}
    assert {path for path, there in calls if not there} == want
    assert calls[-1] == (str(tmp_path), True)

  def test_an_empty_directory_is_taken(self, tmp_path):
    (tmp_path / "to").mkdir()
    with writer.destination(tmp_path / "to") as folder:
      (folder / "x").write_text("x")
    assert os.listdir(tmp_path / "to") == ["x"]

  def test_something_is_there(self, tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine").write_text("x")
    for path, says in (
      (tmp_path / "to", "to: the directory is not empty .mine.; choose a new"),
      (tmp_path / "to" / "mine", "mine: a file is there; choose a new"),
      (tmp_path / "to" / "mine" / "x", "x: can't be made: .*Not a directory"),
    ):
      with pytest.raises(errors.ConversionError, match=says):
        with writer.destination(path):
          raise AssertionError("not reached")
    assert (tmp_path / "to" / "mine").read_text() == "x"
    assert os.listdir(tmp_path) == ["to"]

  def test_something_comes_meanwhile(self, tmp_path):
    to = tmp_path / "to"
    with pytest.raises(errors.ConversionError, match="not empty"):
      with writer.destination(to) as folder:
        (folder / "x").write_text("x")
        to.mkdir()
        (to / "theirs").write_text("y")
    assert os.listdir(tmp_path) == ["to"] and os.listdir(to) == ["theirs"]

  @pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, errors.ConversionError, ValueError]
  )
  def test_nothing_is_left(self, tmp_path, error):
    def blocks():
      yield np.zeros(2, "f4")
      raise error("stop")

    with pytest.raises(error):
      with writer.destination(tmp_path / "a" / "b" / "to") as folder:
        tensor = writer.Pieces("a", (4,), np.dtype("f4"), blocks)
        writer.write(folder, [tensor])
    assert os.listdir(tmp_path) == []

  def test_nothing_is_left_when_a_flush_is_interrupted(
    self, tmp_path, monkeypatch
  ):
    def interrupt(_):
      raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
      with writer.destination(tmp_path / "to") as folder:
        (folder / "x").write_text("x")
    assert os.listdir(tmp_path) == []

  @pytest.mark.parametrize(
    "error",
    [
      OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
      OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
      ValueError("RESOURCE_EXHAUSTED: write: No space left on device"),
    ],
  )
  def test_a_full_disk(self, tmp_path, error):
    to = tmp_path / "to"
    with pytest.raises(errors.ConversionError) as caught:
      with writer.destination(to):
        raise error
    assert str(caught.value).startswith(f"{to}: the disk is full, and nothing")
    assert os.listdir(tmp_path) == []

  def test_a_disk_that_is_really_full(self, tmp_path):
    to = tmp_path / "to"
    with pytest.raises(errors.ConversionError, match="to: the disk is full"):
      with writer.destination(to) as folder:
        (folder / "x.safetensors").symlink_to("/dev/full")
        write(folder / "x.safetensors", {"a": random((1,), "f4")})
    assert os.listdir(tmp_path) == []

  def test_an_error_of_the_disk_names_the_file(self, tmp_path):
    (tmp_path / "x.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left.*x.safetensors"):
      write(tmp_path / "x.safetensors", {"a": random((1,), "f4")})
