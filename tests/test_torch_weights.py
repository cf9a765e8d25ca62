"""Weight files: what PyTorch writes is read exactly, what is no weights is refused untouched."""

import collections
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxcomp.errors import CheckpointError, ShapeError
from jaxcomp.interop.torch_weights import read_weights, write_safetensors, write_torch

WRITERS = {"pth": write_torch, "safetensors": write_safetensors}
DTYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")


def same(a, b):
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and np.array_equal(a[k], b[k])
        for k in a
    )


def arrays():
    rng = np.random.default_rng(0)
    out = {f"layer.{d}": (rng.standard_normal((3, 4)) * 50).astype(d) for d in DTYPES}
    return out | {"scalar": np.array(2.5, np.float32), "none": np.zeros((0, 3), np.float32)}


# --- files made here, without PyTorch --------------------------------------------------------


class Id(tuple):
    """A persistent id, as `torch.save` uses them for storages."""


class Name:
    """Something that is pickled as the global `module.name`."""

    def __init__(self, module, name):
        self.full = f"{module}\n{name}\n".encode()


class Call:
    """Something that is pickled as a call of a global."""

    def __init__(self, module, name, *args):
        self.name, self.args = Name(module, name), args


def dump(value):
    """Protocol 2 bytes of nested values, `Id`s, `Name`s and `Call`s."""
    return b"\x80\x02" + _dump(value) + b"."


def _dump(value):
    if isinstance(value, Name):
        return b"c" + value.full
    if isinstance(value, Call):
        return _dump(value.name) + _dump(value.args) + b"R"
    if isinstance(value, Id):
        return _dump(tuple(value)) + b"Q"
    if isinstance(value, dict):
        return b"}(" + b"".join(_dump(k) + _dump(v) for k, v in value.items()) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_dump, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_dump, value)) + b"e"
    return pickle.dumps(value, 2)[2:-1]


def storage(key="0", count=6, kind="FloatStorage", view=()):
    return Id(("storage", Name("torch", kind), key, "cpu", count, *view))


def tensor(where, shape=(2, 3), strides=(3, 1), offset=0):
    hooks = Call("collections", "OrderedDict")
    words = (where, offset, shape, strides, False, hooks)
    return Call("torch._utils", "_rebuild_tensor_v2", *words)


def zipped(tmp_path, data_pkl, storages=(), name="w.pth", extra=()):
    """A zip as of `torch.save`; without arguments its one storage is 0..5 as float32."""
    path = tmp_path / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for key, data in storages or [("0", np.arange(6, dtype="<f4").tobytes())]:
            archive.writestr(f"archive/data/{key}", data)
        for entry, data in extra:
            archive.writestr(entry, data)
    return path


def legacy(tmp_path, tree, storages, name="w.tar"):
    """A file as `torch.save` wrote before 1.6: storages are (key, element count, bytes)."""
    parts = [dump(0x1950A86A20F9469CFC6C), dump(1001), dump({"little_endian": True}), dump(tree)]
    parts.append(dump([key for key, _, _ in storages]))
    parts += [struct.pack("<q", count) + data for _, count, data in storages]
    (tmp_path / name).write_bytes(b"".join(parts))
    return tmp_path / name


# --- exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_read(tmp_path, kind):
    path = tmp_path / f"w.{kind}"
    WRITERS[kind](path, arrays())
    found = read_weights(path)
    assert same({k: found[k] for k in arrays()}, arrays()) and found.keys() == arrays().keys()
    assert all(v.flags.c_contiguous and v.flags.writeable for v in found.values())


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=25, deadline=None)
@given(
    value=st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(np.dtype(d), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map("w{}".format),
)
def test_any_array_and_name_come_back(tmp_path_factory, kind, value, name):
    path = tmp_path_factory.mktemp("w") / "w"
    WRITERS[kind](path, {name: value})
    found = read_weights(path)[name]
    assert found.dtype == value.dtype and found.shape == value.shape
    assert found.tobytes() == value.tobytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_arrays_give_the_same_bytes_and_a_failure_leaves_the_old_file(tmp_path, kind):
    a, b = tmp_path / "a", tmp_path / "sub" / "b"
    for path in (a, b):
        WRITERS[kind](path, arrays())
    assert a.read_bytes() == b.read_bytes()
    before = a.read_bytes()
    with pytest.raises(ShapeError, match="'x' is <U1"):
        WRITERS[kind](a, {"x": np.array("a")})
    assert a.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "sub"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        WRITERS[kind](tmp_path / "folder", arrays())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder", "sub"]


def test_views_strides_and_shared_storages(tmp_path):
    tree = {
        "whole": tensor(storage()),
        "transposed": tensor(storage(), (3, 2), (1, 3)),
        "column": tensor(storage(), (2,), (3,), 1),
        "expanded": tensor(storage(), (4, 2), (0, 1), 4),
        "scalar": tensor(storage(), (), (), 5),
        "part": tensor(storage(view=[("1", 2, 3)]), (2,), (2,)),
        "parameter": Call(
            "torch._utils", "_rebuild_parameter", tensor(storage()), True, Call("torch", "Size", ())
        ),
    }
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    wanted = {
        "whole": base,
        "transposed": base.T,
        "column": base[:, 1],
        "expanded": np.array([[4, 5]] * 4, np.float32),
        "scalar": np.float32(5),
        "part": np.array([2, 4], np.float32),
        "parameter": base,
    }
    raw = np.arange(6, dtype="<f4").tobytes()
    for path in (zipped(tmp_path, dump(tree)), legacy(tmp_path, tree, [("0", 6, raw)])):
        found = read_weights(path)
        assert same(found, wanted)
        found["whole"][:] = -1  # each array has its own memory
        assert same({**found, "whole": base}, wanted)


def test_bfloat16_and_big_endian(tmp_path):
    values = np.array([1.5, -2.0, 3e38, 0.0078125, np.inf, 0], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    tree = {"w": tensor(storage(kind="BFloat16Storage"))}
    path = zipped(tmp_path, dump(tree), [("0", bits.tobytes())])
    wanted = (bits.astype(np.uint32) << 16).view(np.float32).reshape(2, 3)
    assert np.array_equal(read_weights(path)["w"], wanted)
    header = {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    assert np.array_equal(read_weights(safetensors(tmp_path, header, bits.tobytes()))["w"], wanted)
    big = np.arange(6, dtype=">f4")
    order = [("archive/byteorder", "big")]
    path = zipped(tmp_path, dump({"w": tensor(storage())}), [("0", big.tobytes())], extra=order)
    found = read_weights(path)["w"]
    assert np.array_equal(found.ravel(), big) and found.dtype.isnative


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize(
    "keys", [[], ["state_dict"], ["model_state_dict"], ["model", "state_dict"]]
)
def test_training_states_and_prefixes_are_unwrapped(tmp_path, keys, prefix):
    w = tensor(storage())
    names = ("a.weight", "a.num_batches_tracked", "total_ops", "b.total_params")
    tree = {f"{prefix}{name}": w for name in names}
    for key in keys:
        tree = {"epoch": 3, "loss": 0.5, "optimizer": {"state": {0: [w]}}, key: tree}
    found = read_weights(zipped(tmp_path, dump(tree)))
    assert list(found) == ["a.weight"]


def test_a_prefix_that_not_all_names_share_stays(tmp_path):
    tree = {"module.a": tensor(storage()), "b": tensor(storage())}
    assert list(read_weights(zipped(tmp_path, dump(tree)))) == ["module.a", "b"]


PARAMETERS = {
    "featherface_v1_489015.pth": 489_015,
    "retinaface_mobilenet0.25.pth": 426_608,
    "mobilenetv1_0.25_imagenet.tar": 470_072,
    "mobilenetv2_imagenet.pth": 2_223_872,  # MobileNetV2 without its 1,281,000 of the classifier
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_real_files_hold_the_known_number_of_parameters(shared, name):
    weights = read_weights(shared / "weights" / name)
    assert sum(v.size for k, v in weights.items() if "running_" not in k) == PARAMETERS[name]
    assert all(np.isfinite(v).all() for v in weights.values())
    assert not any(k.startswith("module.") for k in weights)


# --- refusals --------------------------------------------------------------------------------


class Evil:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


EVIL = {
    "system": (lambda p: pickle.dumps(Evil(os.system, f"touch {p}"), 2), "(posix|nt).system"),
    "system4": (lambda p: pickle.dumps(Evil(os.system, f"touch {p}"), 4), "(posix|nt).system"),
    "eval": (lambda p: pickle.dumps(Evil(eval, f"open({str(p)!r}, 'w')"), 2), "__builtin__.eval"),
    "exec": (lambda p: pickle.dumps(Evil(exec, f"open({str(p)!r}, 'w')"), 5), "builtins.exec"),
    "counter": (lambda p: pickle.dumps(collections.Counter(), 2), "collections.Counter"),
    "load": (lambda p: dump(Call("torch", "load", str(p))), "torch.load"),
    "attribute": (lambda p: dump(Call("torch._utils", "os.system", "x")), "torch._utils.os.system"),
    "call of data": (lambda p: b"\x80\x02X\x01\x00\x00\x00a)R.", "calls 'str'"),
    "call of a storage": (lambda p: dump(Call("torch", "FloatStorage", 3)), "torch.FloatStorage"),
    "call of a dtype": (lambda p: dump(Call("torch", "float32")), "torch.float32"),
    "filled by a call": (lambda p: dump(Call("collections", "OrderedDict", [(1, 2)])), "arguments"),
    "extension": (lambda p: b"\x80\x02\x82\x01.", "EXT1"),
    "new object": (lambda p: b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "instance": (lambda p: b"(ios\nsystem\n.", "INST"),
    "state": (lambda p: b"\x80\x02ctorch\nSize\n}b.", "sets the state"),
    "id": (lambda p: dump(Id(("module", Name("torch", "Size"), "a", "b"))), "persistent id"),
    "id of text": (lambda p: b"\x80\x02X\x01\x00\x00\x00aQ.", "persistent id"),
    "nested id": (lambda p: dump(storage(key=storage())), "unknown kind"),
    "storage of a call": (
        lambda p: dump(Id(("storage", Name("torch", "Size"), "0", "cpu", 6))),
        "unknown kind",
    ),
    "deep key": (lambda p: b"\x80\x02}" + b")" + b"\x85" * 10**6 + b"Ns.", "key of type tuple"),
    "memo": (lambda p: b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\x7f.", "damaged"),
    "huge text": (lambda p: b"\x80\x02\x8d" + b"\xff" * 8 + b".", "larger than"),
    "huge integer": (lambda p: b"\x80\x02\x8b\xff\xff\xff\x7f.", "integer of"),
    "unhashable": (lambda p: b"\x80\x02}]Ns.", "key of type list"),
    "unfinished": (lambda p: dump({"a": tensor(storage())})[:-9], "ends early|damaged"),
    "empty": (lambda p: b"", "ends early"),
    "lone mark": (lambda p: b"\x80\x02(.", "damaged"),
    "empty stack": (lambda p: b"\x80\x02t.", "damaged"),
    "protocol": (lambda p: b"\x80\x09N.", "protocol 9"),
}


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("case", EVIL)
def test_nothing_but_weights_is_unpickled_and_nothing_runs(tmp_path, case, form):
    make, words = EVIL[case]
    proof = tmp_path / "proof"
    data = make(proof)
    if form == "zip":
        path = zipped(tmp_path, data)
    else:
        path = tmp_path / "w.pth"
        path.write_bytes(dump(0x1950A86A20F9469CFC6C) + dump(1001) + dump({}) + data)
    with pytest.raises(CheckpointError, match=rf"w\.pth.*({words}).*save it again"):
        read_weights(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (tensor(storage(), (7,), (1,)), "outside of its storage"),
        (tensor(storage(), (6,), (1,), 1), "outside of its storage"),
        (tensor(storage(), (2,), (2**62,)), "outside of its storage"),
        (tensor(storage(), (2, 3), (3,)), "outside of its storage"),
        (tensor(storage(), (-2, 3)), "not a count"),
        (tensor(storage(), (True, 3)), "not a count"),
        (tensor(storage(), (1,) * 65, (1,) * 65), "not a list of counts"),
        (tensor(storage(), (2, 3), (-3, 1), 5), "not a count"),
        (tensor("0"), "without a storage"),
        (tensor(storage(count=2**40), (2**40,), (1,)), "announce tensors of 4398046511104 bytes"),
        (tensor(storage(count=7)), "storage '0' is shorter than announced"),
        (tensor(storage(), (2**20, 2**20), (0, 0)), "announce tensors of"),
        (tensor(storage(), (2**40, 2**40), (0, 0)), "announce tensors of"),
        (tensor(storage("1")), "storage '1' is missing"),
        (tensor(storage("../data/0")), "storage '../data/0' is missing"),
        (tensor(storage(view=[("1", 4, 3)]), (1,), (1,)), "view outside"),
        (tensor(storage(kind="QInt8Storage")), "torch.QInt8Storage"),
    ],
)
def test_tensors_outside_of_their_storage_are_refused(tmp_path, tree, words):
    with pytest.raises(CheckpointError, match=rf"w\.pth.*{words}"):
        read_weights(zipped(tmp_path, dump({"w": tree})))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"epoch": 3, "weights": {}}, r"the keys \['epoch', 'weights'\]"),
        ([1, 2], "a list"),
        ({"w": tensor(storage()), "epoch": 3}, "'epoch' in its state dictionary is not a tensor"),
        ({"state_dict": {}}, "no state dictionary"),
        ({3: tensor(storage())}, "'3' in its state dictionary"),
    ],
)
def test_files_without_a_state_dictionary_are_named(tmp_path, tree, words):
    with pytest.raises(CheckpointError, match=words):
        read_weights(zipped(tmp_path, dump(tree)))


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    loop = b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."
    with pytest.raises(CheckpointError, match="no state dictionary"):
        read_weights(zipped(tmp_path, loop))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../escape", "path '../escape'"),
        ("/etc/x", "path '/etc/x'"),
        ("a\\..\\b", "path"),
        ("archive/constants.pkl", "TorchScript"),
        ("other/data.pkl", "not one of torch.save"),
    ],
)
def test_strange_zips_are_refused_and_nothing_is_extracted(tmp_path, name, words):
    folder = tmp_path / "in"
    folder.mkdir()
    path = zipped(folder, dump({"w": tensor(storage())}), extra=[(name, b"x")])
    with pytest.raises(CheckpointError, match=words):
        read_weights(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "w.pth"]


def test_two_files_of_one_name_and_compression_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = zipped(tmp_path, dump({}), extra=[("archive/data/0", b"")])
    with pytest.raises(CheckpointError, match="one name"):
        read_weights(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N" * 10**6 + b".")
    with pytest.raises(CheckpointError, match="compressed"):
        read_weights(path)


FIXTURES = {
    "zip": lambda p: zipped(p, dump({"w": tensor(storage())}), name="good"),
    "legacy": lambda p: legacy(
        p, {"w": tensor(storage())}, [("0", 6, np.arange(6, dtype="<f4").tobytes())], "good"
    ),
    "safetensors": lambda p: write_safetensors(p / "good", {"w": np.arange(6.0)}) or p / "good",
}


@pytest.mark.parametrize("form", FIXTURES)
def test_every_truncation_is_noticed(tmp_path, form):
    data = FIXTURES[form](tmp_path).read_bytes()
    assert read_weights(tmp_path / "good")
    for length in range(len(data)):
        (tmp_path / "cut.pth").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            read_weights(tmp_path / "cut.pth")


@pytest.mark.parametrize("form", FIXTURES)
def test_a_damaged_byte_gives_a_typed_error_or_is_harmless(tmp_path, form):
    data = FIXTURES[form](tmp_path).read_bytes()
    refused = 0
    for place in range(len(data)):
        (tmp_path / "bad.pth").write_bytes(
            data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]
        )
        try:
            read_weights(tmp_path / "bad.pth")
        except CheckpointError:
            refused += 1
    assert refused > len(data) // 4


def test_a_damaged_number_in_a_zip_fails_its_checksum(tmp_path):
    path = FIXTURES["zip"](tmp_path)
    raw = np.arange(6, dtype="<f4").tobytes()
    path.write_bytes(path.read_bytes().replace(raw, raw[:-1] + b"\x41"))
    with pytest.raises(CheckpointError, match=r"damaged.*CRC.*copy or download"):
        read_weights(path)


def test_what_is_no_file_of_weights_is_said(tmp_path):
    text = b"<html>404: not found</html>"
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    cases = [
        (b"", "0 bytes"),
        (text, "neither a file of torch.save nor safetensors"),
        (tar.getvalue(), "tar archive"),
        (pickle.dumps({"w": 1}, 2) + b" " * 9, "not one of torch.save"),
        ((tmp_path / "arrays.npz").read_bytes(), "no data.pkl"),
    ]
    for data, words in cases:
        (tmp_path / "w.pth").write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"w\.pth.*{words}"):
            read_weights(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(tmp_path / "none.pth")


def safetensors(tmp_path, header, data=b"", text=None):
    text = json.dumps(header).encode() if text is None else text
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (entry("F8_E4M3", (8,)), "dtype 'F8_E4M3'"),
        (entry(shape=(3,)), "place or size of 'w'"),
        (entry(offsets=(8, 0)), "place or size of 'w'"),
        (entry(shape=(2**62, 2**62)), "place or size"),
        (entry(shape=(1,), offsets=(0, 4)), "8 bytes of tensors where its header announces 4"),
        (entry() | {"v": entry()["w"]}, "place or size of 'v'"),
        (entry(shape=(-2,)), "header is damaged"),
        (entry(shape=(2.0,)), "header is damaged"),
        (entry(offsets=(0, 8, 8)), "header is damaged"),
        ({"w": 3}, "header is damaged"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, header, words):
    with pytest.raises(CheckpointError, match=rf"w\.safetensors.*{words}"):
        read_weights(safetensors(tmp_path, header, bytes(8)))


def test_headers_that_are_no_dictionary_of_unique_names(tmp_path):
    one = json.dumps(entry())[1:-1]
    for text in (f"{{{one},{one}}}", "{" + "[" * 10**5, '{"w": {"dtype": }}', "{}x"):
        with pytest.raises(CheckpointError, match="header"):
            read_weights(safetensors(tmp_path, None, bytes(8), text.encode()))


# --- against PyTorch itself ------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_torch_save(torch, tmp_path, new, protocol):
    torch.manual_seed(0)
    names = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    names += ("complex64", "complex128", *(("uint16", "uint32", "uint64") if new else ()))
    base = torch.randn(4, 6)
    state = {name: (20 * base).abs().to(getattr(torch, name)) for name in names}
    state["bfloat16"] = base.to(torch.bfloat16)
    state |= {"base": base, "view": base[1:3, ::2], "t": base.t(), "row": base[2]}
    state |= {"expanded": base[:1].expand(5, 6), "scalar": torch.tensor(3.0)}
    state |= {"parameter": torch.nn.Parameter(base + 1), "none": torch.zeros(0, 4)}
    state |= {"channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    wanted = {k: v.detach().float() if k == "bfloat16" else v.detach() for k, v in state.items()}
    torch.save(
        {"epoch": 1, "lr": 1e-3, "done": None, "sizes": base.shape, "dtype": torch.float32,
         "device": torch.device("cpu"), "model_state_dict": collections.OrderedDict(state)},
        tmp_path / "w.pth", _use_new_zipfile_serialization=new, pickle_protocol=protocol,
    )  # fmt: skip
    found = read_weights(tmp_path / "w.pth")
    assert same(found, {k: v.numpy() for k, v in wanted.items()})


def test_a_module_and_its_optimiser(torch, tmp_path):
    net = torch.nn.DataParallel(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    )
    optimiser = torch.optim.AdamW(net.parameters())
    net(torch.zeros(2, 3, 5, 5)).sum().backward()
    optimiser.step()
    state = {"state_dict": net.state_dict(), "optimizer": optimiser.state_dict()}
    torch.save(state, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    wanted = net.module.state_dict()
    assert found.keys() == {k for k in wanted if "num_batches" not in k}
    assert all(np.array_equal(v, wanted[k].numpy()) for k, v in found.items())
    torch.save(net, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.parallel\..*DataParallel"):
        read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_opens_what_is_written(torch, tmp_path, mmap):
    write_torch(tmp_path / "w.pth", arrays() | {"c": np.array([1 + 2j], np.complex64)})
    found = torch.load(tmp_path / "w.pth", weights_only=True, mmap=mmap)
    assert isinstance(found, collections.OrderedDict)
    numpy = {k: v.numpy() for k, v in found.items()}
    assert same(numpy, arrays() | {"c": np.array([1 + 2j], np.complex64)})


def test_storages_are_aligned_for_mapping_into_memory(tmp_path):
    write_torch(tmp_path / "w.pth", arrays())
    data = (tmp_path / "w.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            assert (info.header_offset + 30 + name + extra) % 64 == 0
            assert info.date_time == (1980, 1, 1, 0, 0, 0)


def test_safetensors_of_the_reference_package(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    package.save_file(arrays(), tmp_path / "theirs")
    found = read_weights(tmp_path / "theirs")
    assert found.keys() == arrays().keys()
    assert all(np.array_equal(v, arrays()[k]) for k, v in found.items())
    write_safetensors(tmp_path / "ours", arrays(), {"note": "x"})
    assert same(dict(sorted(package.load_file(tmp_path / "ours").items())),
                dict(sorted(arrays().items())))  # fmt: skip
