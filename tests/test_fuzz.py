"""Thousands of wrong options and broken datasets: each ends in a configuration or in data, or in one sentence; nothing else, and soon.

The usual tests try some hundred; ``python -m pytest -m slow tests/test_fuzz.py`` tries thousands, other ones each time.
"""

import contextlib
import csv
import io
import json
import math
import os
import shutil
import signal
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from compare import CompareConfig
from convert import ConvertConfig
from evaluate import EvaluateConfig
from finetune import FinetuneConfig
from linear_probe import ProbeConfig
from predict import PredictConfig
from pretrain import PretrainConfig
from publish import PublishConfig
from quickstart import QuickstartConfig
from rocl_transfer import UserError, load_classifier
from rocl_transfer.config import command_line, parse
from rocl_transfer.data import load_images, store_splits
from rocl_transfer.errors import one_line
from rocl_transfer.hub import find, load_projector, look_up, made_from
from rocl_transfer.options import write_options

MODEL = Path(__file__).parents[1] / "model_cards" / "resnet8_cifar.r_le_digits"
CPU = torch.device("cpu")


def tries(some, thousands):
    """How often: the same few in the usual tests, many others with -m slow."""
    return pytest.mark.parametrize("count", [pytest.param(some, id="some"), pytest.param(thousands, id="thousands", marks=pytest.mark.slow)])


def fuzz(count, check, *strategies):
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    options = settings(max_examples=count, deadline=None, derandomize=count < 1000, database=None, suppress_health_check=quiet)
    options(given(*strategies)(check))()


@contextlib.contextmanager
def soon(seconds=30):
    """What hangs is interrupted."""

    def interrupt(*_):
        raise TimeoutError(f"still not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Options ---------------------------------------------------------------------------------------------------------------------------------------

BASES = {
    PretrainConfig: ["--output_dir", "x", "--data.name", "digits", "--model.name", "m"],
    ProbeConfig: ["--output_dir", "x", "--data.name", "digits", "--model.name", "m"],
    FinetuneConfig: ["--output_dir", "x", "--data.name", "digits", "--model.name", "m"],
    EvaluateConfig: ["--output_dir", "x", "--data.name", "digits", "--model.name", "m"],
    CompareConfig: ["a", "b"],
    PublishConfig: ["--run", "x", "--repo_id", "user/x"],
    ConvertConfig: ["a.pt", "--output_dir", "x"],
    PredictConfig: ["a.png", "--model.name", "m"],
    QuickstartConfig: [],
}


def dotted(config_class):
    """Every option's name, as the written-out configuration has it, and the names of its groups."""

    def names(table, prefix=""):
        for name, value in table.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{name}.")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        write_options(parse(config_class, BASES[config_class]), path)
        return sorted(names(yaml.safe_load(path.read_text())))


NAMES = {config_class: dotted(config_class) for config_class in BASES}
ODD = [
    "", " ", "-1", "0", "1", "2", "0.5", "1e-3", "8/255", "1/0", "1/2/3", "nan", "inf", "-inf", ".nan", "-.inf", "1e999", "9" * 30,
    "-" + "9" * 5000, "0x" + "f" * 5000, "0x10", "0o17", "1_000", "1:30", "true", "no", "null", "~", "none", "auto", "all", "l2", "linf", "[]",
    "{}", "[1, 2]", "[2, 1]", "[nan, nan]", "[0, .inf]", "[1, 1]", "[a, b]", "[[1], [2]]", "{a: 1}", "{name: x}", "[", "{", "]", "'", '"',
    "a: b: c", "- 1", "&a [*a]", "*a", "!!python/object/apply:os.system ['false']", "!!python/name:os.system", "!!binary x", "!!int x", "!x y",
    "2020-99-99", "2020-01-01", "a\nb", "\t", "\r", "\x1b[2J", "\u2028", "\u202e", "\udcff", "😀", "ñ", "x" * 300, "x" * 5000, "../..", "/",
    "/dev/null", "/proc/self/mem", "~nobody", "..", "hf-hub:", "hf-hub:a/b/c", "local-dir:", "digits", "resnet18", "--seed", "-x", "--", "a=b",
    "__class__", "[" * 20_000, "- " * 20_000, "lars", "adamw", "cosine", "steps", "test",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=8),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.lists(st.one_of(st.floats(), st.text(max_size=3), st.none()), max_size=3).map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
)


def option(names):
    name = st.one_of(st.sampled_from(names), st.sampled_from(names), st.text("abcdefghijklmnopqrstuvwxyz_.+-", max_size=12))
    return st.one_of(
        st.tuples(name, VALUES).map(lambda pair: [f"--{pair[0]}", pair[1]]),
        st.tuples(name, VALUES).map(lambda pair: [f"--{pair[0]}={pair[1]}"]),
        name.map(lambda name: [f"--{name}"]),
        VALUES.map(lambda value: [value]),
    )


def words():
    chosen = st.sampled_from(list(BASES))
    return chosen.flatmap(
        lambda config_class: st.tuples(
            st.just(config_class),
            st.lists(option(NAMES[config_class]), min_size=1, max_size=4).map(lambda parts: [word for part in parts for word in part]),
        )
    )


def as_a_command(config_class, given_words, folder):
    """The configuration, or None where there is one sentence and status 2; anything else fails."""
    reached, shown = [], io.StringIO()
    before, sys.argv = sys.argv, ["recipe.py", *given_words]
    try:
        with soon(), contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
            command_line(reached.append, config_class)
    finally:
        sys.argv = before
    if not reached and ended.value.code == 0:
        assert any(word.startswith(("-h", "--help", "--print", "--data.help")) for word in given_words), given_words
        return None
    said = shown.getvalue()
    assert ended.value.code == (0 if reached else 2), said
    if not reached:
        assert said.startswith("error: "), said
        assert len(said.splitlines()) == 1, said
        assert len(said) > len("error: x\n")
        return None
    assert said == ""
    config = reached[0]
    for number in numbers(vars(config)):
        assert math.isfinite(number), config
    if "\\udc" in repr(config):  # images and runs may have names that are no UTF-8; the recipes that take them write no configuration
        assert config_class in (PredictConfig, CompareConfig, ConvertConfig)
        return config
    write_options(config, folder / "written.yaml")
    assert parse(config_class, ["--config", str(folder / "written.yaml")]) == config
    return config


def numbers(value):
    if isinstance(value, float):
        yield value
    elif hasattr(value, "__dataclass_fields__"):
        yield from numbers(vars(value))
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)


@tries(150, 6000)
def test_fuzzed_options_on_the_command_line_end_in_a_sentence(tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    ends = []

    def check(chosen):
        config_class, more = chosen
        ends.append(as_a_command(config_class, [*BASES[config_class], *more], tmp_path) is None)

    fuzz(count, check, words())
    assert 0.5 < sum(ends) / len(ends) < 1  # most are wrong, and some are right


TREES = st.recursive(
    st.one_of(st.sampled_from(ODD), st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["name", "lr", "attack", "a.b", "", "é"]), inner, max_size=3)
    ),
    max_leaves=6,
)
RAW = [
    "", "\n", "%YAML 9.9\n---\n{}", "a: 1\n---\nb: 2", "<<: 3", "<<: {seed: 3}", "? [1, 2]\n: 3", "null: 1", "1: 2", "'': 1", "'.': 1", "a b: 1",
    "seed: *x", "&a {b: *a}", "seed: !!python/object/apply:os.mkdir [ran]", "seed: !!python/object/new:os.mkdir [ran]", "!!python/module:os",
    "[" * 30_000, "- " * 30_000, "{a: " * 30_000, "seed: 0x" + "f" * 9000, "seed: " + "9" * 9000, "print_config: true", "print_shtab: bash",
    "help: 1", "config: x", "__path__: x", "class_path: os.system", "data: {class_path: os.system, init_args: {command: 'mkdir ran'}}",
    "data: {__dict__: {}}", 'data: {name: "a\\0b"}', 'output_dir: "a\\0b"', "a: !!binary zzz", "a: 2020-99-99", "\x00", "\t- x", "\ufeffseed: 1",
    "seed: 1\nseed: x", "seed: [1", "🙂: 🙂",
    "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *(f"{b}: &{b} [" + f"*{a}, " * 9 + "]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))]),
]  # fmt: skip


def files():
    """A class and the bytes of a YAML file: its options with wrong values, other ones, and what is no such file."""

    def of(config_class):
        flat = st.dictionaries(st.one_of(st.sampled_from(NAMES[config_class]), st.text(max_size=4)), TREES, min_size=1, max_size=4)
        text = st.one_of(
            flat.map(lambda table: yaml.safe_dump(table, allow_unicode=False).encode()),
            st.sampled_from(RAW).map(lambda raw: raw.encode()),
            st.tuples(st.sampled_from(RAW), flat).map(lambda both: f"{both[0]}\n{yaml.safe_dump(both[1])}".encode()),
            st.binary(max_size=40),
        )
        return st.tuples(st.just(config_class), text)

    return st.sampled_from(list(BASES)).flatmap(of)


@tries(150, 6000)
def test_fuzzed_options_in_a_file_end_in_a_sentence(tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    ends = []

    def check(chosen):
        config_class, content = chosen
        (tmp_path / "c.yaml").write_bytes(content)
        ends.append(as_a_command(config_class, [*BASES[config_class], "--config", "c.yaml"], tmp_path) is None)

    fuzz(count, check, files())
    assert sum(ends) > len(ends) / 2
    assert not (tmp_path / "ran").exists()


# Datasets --------------------------------------------------------------------------------------------------------------------------------------


def encoded(seed, kind="PNG", size=(9, 7)):
    rng, file = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def png_of(width, height, pixels=b""):
    """A PNG that says it is of this size, and holds little."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


WHOLE = [encoded(seed, kind) for seed, kind in enumerate(("PNG", "PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA"))]
BYTES = st.one_of(
    st.sampled_from(WHOLE),
    st.sampled_from(WHOLE),
    st.tuples(st.sampled_from(WHOLE), st.floats(0, 1)).map(lambda cut: cut[0][: int(len(cut[0]) * cut[1])]),
    st.tuples(st.sampled_from(WHOLE), st.integers(0, 60), st.binary(min_size=1, max_size=4)).map(
        lambda b: b[0][: b[1]] + b[2] + b[0][b[1] + len(b[2]) :]
    ),
    st.sampled_from(
        [
            b"",
            b"P6 0 0 255\n",
            b"P6 99999999 99999999 255\n",
            b"%!PS-Adobe\n%%BoundingBox: 0 0 9 9\n",
            b"\x80\x04.",
            b"GIF89a",
            b"PK\x03\x04",
            png_of(60_000, 60_000),
            png_of(0, 5),
            png_of(5, 0),
            png_of(2**31 - 1, 1),
        ]
    ),
    st.binary(max_size=30),
)
ENDINGS = st.sampled_from(
    [".png", ".png", ".jpg", ".JPEG", ".gif", ".webp", ".tif", ".eps", ".txt", ".zip", ".tar", ".py", ".csv", ".json", ".parquet", ".mp4", ""]
)
STEMS = st.one_of(
    st.text("abc \n\t\x1b'\"\\*?[]{}%$#&;,é😀\u202e\u2028\udcff", min_size=1, max_size=4),
    st.sampled_from(["metadata", "labels", "-rf", "~", "con", "x" * 200]),
)
FOLDERS = st.one_of(STEMS, st.sampled_from(["train", "test", "val", "validation", "Train", "TEST", "dev", "a", "b", "__MACOSX", ".hidden"]))


def image_folder(root, files):
    for parts, stem, ending, content in files:
        place = root.joinpath(*parts)
        with contextlib.suppress(OSError):  # a file where a folder should be
            place.mkdir(parents=True, exist_ok=True)
            for copy in range(4):
                (place / f"{stem}{copy}{ending}").write_bytes(content)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def used(name, **options):
    """Whether the data was taken; else there is one sentence."""
    with soon(60):
        try:
            data = load_images(str(name), **options)
            needed = options.get("labels_needed", True)
            splits = ("train", "validation", "test") if needed else ("train",)
            data, stores = store_splits(data, splits, CPU, in_memory=True, workers=1, max_unreadable=0.9, labels_needed=needed)
        except UserError:
            return False
    for split, store in stores.items():
        assert len(store) == len(getattr(data, split))
        for batch in store.batches([torch.arange(len(store))]):
            assert batch.shape[1:] == (3, data.image_size, data.image_size)
    for listed in (*data.notes, *data.unreadable):
        assert listed == one_line(listed)
    json.dumps(data.facts(data.train, "train")).encode()
    "".join((*data.notes, *data.unreadable, *(data.class_names if needed else ()))).encode()  # a card is UTF-8
    return True


LABELLED = st.lists(st.tuples(st.lists(FOLDERS, min_size=1, max_size=2), STEMS, ENDINGS, BYTES), min_size=2, max_size=6)
FLAT = st.lists(st.tuples(st.lists(FOLDERS, max_size=3), STEMS, ENDINGS, BYTES), max_size=6)


@tries(100, 3000)
def test_fuzzed_folders_of_images_end_in_a_sentence(tmp_path, count):
    ends, numbered = [], iter(range(10**9))

    def check(files, needed, size):
        folder = tmp_path / str(next(numbered))
        folder.mkdir()
        ends.append(used(image_folder(folder, files), labels_needed=needed, image_size=size))
        shutil.rmtree(folder)

    fuzz(count, check, st.one_of(LABELLED, FLAT), st.booleans(), st.sampled_from([None, 8]))
    assert {True, False} == set(ends)


CELLS = st.one_of(
    st.sampled_from(
        [
            "a.png",
            "b.png",
            "c.png",
            "a.png",
            "b.png",
            "c.png",
            "0",
            "1",
            "train",
            "test",
            "",
            "nan",
            "1" * 5000,
            "007",
            "x\ny",
            "../a.png",
            "/dev/zero",
            "pipe",
            "\x00",
            "-1",
            "1.0",
            "1e400",
            "😀",
            '"',
        ]
    ),
    st.text(max_size=4),
)
HEADS = st.sampled_from(["file", "image", "label", "labels", "split", "kind", "", "file", "label"])


@tries(100, 3000)
def test_fuzzed_tables_of_paths_end_in_a_sentence(tmp_path, count):
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.png").write_bytes(WHOLE[number])
    os.mkfifo(tmp_path / "pipe")
    path, ends = tmp_path / "table.csv", []

    def check(header, rows, raw, times, needed, columns):
        text = io.StringIO()
        csv.writer(text).writerows([header, *rows * times])
        path.write_bytes(raw if raw is not None else text.getvalue().encode(errors="surrogateescape"))
        ends.append(used(path, labels_needed=needed, **columns))

    rows = st.one_of(
        st.lists(st.lists(CELLS, max_size=4), max_size=5),
        st.lists(st.tuples(st.sampled_from(["a.png", "b.png", "c.png"]), CELLS, st.sampled_from(["train", "test"])), min_size=2, max_size=4),
    )
    header = st.one_of(st.just(["file", "label", "split"]), st.lists(HEADS, max_size=4))
    raw = st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=60))
    columns = st.sampled_from([{}, {}, {"image_column": "file"}, {"label_column": "label"}, {"image_column": "label", "label_column": "label"}])
    fuzz(count, check, header, rows, raw, st.sampled_from([1, 4]), st.booleans(), columns)
    assert {True, False} == set(ends)


def safetensors(header, body=b"", length=None):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 192, 2**31, 2**63, 2**70, -1, 1.5, "1", None])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "U8", "U8", "F32", "I64", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U16", "U64", "BF16", "?", None, 3]),
        "shape": st.one_of(
            st.lists(SIZES, max_size=5), st.sampled_from([[12, 3, 2, 2], [12, 1, 2, 2], [12], [12, 1], [0, 3, 2, 2], [12, 3, 0, 0], [12, 3, 1, 1]])
        ),
        "data_offsets": st.one_of(
            st.lists(SIZES, max_size=3), st.sampled_from([[0, 144], [0, 48], [144, 156], [0, 12], [0, 96], [0, 0], [0, 36], [48, 144]])
        ),
    }
)


@tries(100, 3000)
def test_fuzzed_files_of_tensors_end_in_a_sentence(tmp_path, count):
    path, ends = tmp_path / "data.safetensors", []
    good = safetensors(
        {
            "images": {"dtype": "U8", "shape": [12, 3, 2, 2], "data_offsets": [0, 144]},
            "labels": {"dtype": "U8", "shape": [12], "data_offsets": [144, 156]},
        },
        bytes(144) + b"\0\1" * 6,
    )
    path.write_bytes(good)
    assert used(path)

    def check(content, needed):
        path.write_bytes(content)
        ends.append(used(path, labels_needed=needed))

    headers = st.dictionaries(
        st.sampled_from(["images", "labels", "__metadata__", "x"]), st.one_of(ENTRY, ENTRY, st.none(), st.just({"a": "b"})), max_size=3
    )
    lengths = st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, 1, 2**20, 10**8, 2**63, 2**64 - 1]))
    content = st.one_of(
        st.builds(safetensors, headers, st.sampled_from([b"", bytes(48), bytes(144), bytes(156), bytes(240)]), lengths),
        st.tuples(st.integers(0, len(good)), st.binary(max_size=3)).map(lambda cut: good[: cut[0]] + cut[1] + good[cut[0] + len(cut[1]) :]),
        st.binary(max_size=40),
    )
    fuzz(count, check, content, st.booleans())
    assert False in ends


@tries(15, 1500)
def test_fuzzed_parquet_ends_in_a_sentence(tmp_path, count):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture = st.one_of(
        st.none(), st.fixed_dictionaries({"bytes": st.one_of(st.none(), BYTES), "path": st.sampled_from([None, "a.png", "/dev/zero", "x\ny"])})
    )
    values = st.one_of(
        st.lists(st.integers(0, 2), min_size=12, max_size=12),
        st.lists(st.one_of(st.none(), st.text(max_size=2)), min_size=12, max_size=12),
        st.lists(st.one_of(st.none(), st.floats()), min_size=12, max_size=12),
        st.lists(st.binary(max_size=2), min_size=12, max_size=12),
        st.lists(st.lists(st.integers(0, 1), max_size=2), min_size=12, max_size=12),
        st.lists(picture, min_size=12, max_size=12),
    )
    good = [{"bytes": WHOLE[number % 3], "path": None} for number in range(12)]
    columns = st.tuples(
        st.sampled_from([{"image": good}, {"image": good}, {}]),
        st.dictionaries(st.sampled_from(["image", "label", "labels", "x", "a\nb", ""]), values, max_size=2),
    )
    numbered = iter(range(10**9))

    def check(both, needed, cut):
        folder = tmp_path / f"p{next(numbered)}"
        folder.mkdir()
        with contextlib.suppress(pyarrow.ArrowInvalid, UnicodeEncodeError):
            table = pyarrow.table({**both[0], **both[1]})
            parquet.write_table(table, folder / "train.parquet")
            if cut < 1:
                whole = (folder / "train.parquet").read_bytes()
                (folder / "train.parquet").write_bytes(whole[: int(len(whole) * cut)])
            used(folder, labels_needed=needed)
        shutil.rmtree(folder)

    fuzz(count, check, columns, st.booleans(), st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1)))


@tries(30, 2000)
def test_fuzzed_names_of_data_and_models_end_in_a_sentence(tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)

    def check(name):
        if "\0" in name:  # which parse refuses
            return
        for use in (lambda: used(f"./{name}"), lambda: load_classifier(f"./{name}"), lambda: find(f"local-dir:{name}")):
            with contextlib.suppress(UserError), soon():
                use()

    fuzz(count, check, st.one_of(st.sampled_from(ODD), st.text(max_size=6)))


# Models ----------------------------------------------------------------------------------------------------------------------------------------

SETTINGS = {
    "architecture": [
        "resnet18", "resnet8_cifar.x", "../x", "hf-hub:a/b", "local-dir:/", "os.system", "", None, 3, ["resnet8_cifar"], "vit_base_patch16_224",
    ],
    "num_classes": [0, 9, -1, 10**4, 2**70, "10", None, 1.5, [10]],
    "label_names": [[], ["a"], "abc", 3, {"a": 1}, [1] * 10, [None] * 10, ["a"] * 10, ["x\ny"] * 10, [["a"]] * 10],
    "model_args": [
        [], "x", 3, {"img_size": 16}, {"num_classes": 3}, {"pretrained": False}, {"checkpoint_path": "/etc/passwd"},
        {"pretrained_cfg": {"url": "x"}}, {"pretrained_cfg_overlay": {"file": "x"}}, {"pretrained_filter_fn": "os.system"}, {"block": "os.system"},
        {"act_layer": "os.system"}, {"features_only": True}, {"cache_dir": "/"}, {"kwargs_filter": ["x"]}, {"model_cls": "os.system"},
        {"drop_rate": "x"}, {"": 1},
    ],
    "pretrained_cfg": [{}, [], "x", None, 3],
    "rocl_transfer": [
        {}, [], None, {"sha256": 3}, {"sha256": []}, {"trained_on": 3}, {"pretrained_on": {}}, {"trained_on": {"data": [], "cut": {}}},
        {"projector_sha256": "0" * 64}, {"projector_sha256": 3},
    ],
    "auto_map": [{"AutoModel": "modeling.Evil"}],
}  # fmt: skip
INNER = {
    "input_size": [
        [3, 16], [3, 16, 16, 16], ["3", "16", "16"], [3, 0, 0], [3, -1, -1], [1, 16, 16], [3, 10**6, 10**6], [3, 1e400, 16], [3, None, 16],
        [3, 32, 32], "abc", {},
    ],
    "mean": [[0, 0], ["a", "b", "c"], [None] * 3, [float("nan")] * 3, [1e400] * 3, "abc", [2**2000] * 3, [[0]] * 3],
    "std": [[0, 0, 0], ["a", "b", "c"], [float("inf")] * 3, "abc"],
    "num_classes": [3, -1, "x"],
    "file": ["/etc/passwd"],
    "url": ["https://localhost:1/x.pth"],
    "hf_hub_id": ["a/b"],
    "source": ["hf-hub", "timm", 3],
    "custom_load": [True, "hf", 3],
    "state_dict": [{"a": 1}],
    "classifier": ["../x", 3, None, "conv1"],
    "first_conv": ["x.y", 3, "fc"],
    "unknown": [1],
    "fixed_input_size": [True, "x"],
    "label_offset": [1],
}  # fmt: skip


@tries(80, 2000)
def test_fuzzed_configurations_of_models_end_in_a_sentence(tmp_path, count):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    ran, data = tmp_path / "ran", load_images("digits")
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    shutil.copy(folder / "modeling.py", folder / "__init__.py")
    ends = []

    def check(changes):
        content = json.loads(json.dumps(config))
        for inner, (name, value) in changes:
            if isinstance(content.get("pretrained_cfg"), dict) or not inner:
                (content["pretrained_cfg"] if inner else content)[name] = value
        (folder / "config.json").write_text(json.dumps(content))
        for use in (
            lambda: load_classifier(str(folder)),
            lambda: find(str(folder)),
            lambda: made_from(look_up(str(folder)), data),
            lambda: load_projector(str(folder), 64),
        ):
            try:
                with soon():
                    use()
                ends.append(True)
            except UserError as error:
                ends.append(False)
                named = str(error)
                assert str(folder) in named

    def change(table):
        return st.sampled_from(sorted(table)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(table[name])))

    one = st.one_of(st.tuples(st.just(False), change(SETTINGS)), st.tuples(st.just(True), change(INNER)))
    fuzz(count, check, st.lists(one, min_size=1, max_size=2))
    assert {True, False} == set(ends)
    assert not ran.exists()
