import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rocl_transfer import UserError
from rocl_transfer.data import ImageOptions, load_images, store_images
from rocl_transfer.data.decode import decode
from rocl_transfer.data.splits import stratified_cut

CPU = torch.device("cpu")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=200), st.floats(0.05, 0.6), st.integers(0, 9))
def test_cuts_are_stratified_disjoint_and_repeat(labels, fraction, seed):
    labels = np.array(labels)
    kept, held = stratified_cut(labels, len(labels), fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label in np.unique(labels):
        n, out = (labels == label).sum(), (labels[held] == label).sum()
        assert out < n
        assert abs(out - n * fraction) <= 1 or out == n - 1
    assert all(np.array_equal(a, b) for a, b in zip((kept, held), stratified_cut(labels, len(labels), fraction, seed), strict=True))


def test_the_bundled_digits_are_split_and_named():
    data = load_images("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1293, 144, 360)
    assert data.class_names == tuple("0123456789")
    assert data.image_size == 8
    pixels = store_images(data.test, 8, CPU).inputs
    assert pixels.shape == (360, 3, 8, 8)
    assert pixels.max() == 255
    assert len(data.notes) == 2  # both cuts are said


def test_all_images_of_data_without_a_test_split(class_folder):
    data, whole = load_images("digits"), load_images("digits").whole()
    assert len(whole.test) == 1797
    assert np.array_equal(whole.test.indices, np.arange(1797))
    for part in (data.train, data.validation, data.test):
        assert torch.equal(whole.test.labels[torch.from_numpy(part.indices)], part.labels)
    assert (whole.test_split, whole.cut) == ("all images", None)


def test_splits_do_not_depend_on_what_else_is_asked_for():
    a, b = load_images("digits"), load_images("digits", labels_needed=False, validation_fraction=0)
    assert np.array_equal(a.test.indices, b.test.indices)
    assert not set(a.test.indices) & set(b.train.indices)
    assert b.validation is None


def test_a_flat_folder_trains_without_labels_and_holds_nothing_out(flat_folder):
    data = load_images(str(flat_folder), labels_needed=False)
    assert len(data.train) == 40
    assert data.train.labels is None
    assert data.validation is None
    assert data.image_size == 20
    assert any("no labels" in note for note in data.notes)
    with pytest.raises(UserError, match="labels are needed"):
        load_images(str(flat_folder))


def test_a_folder_of_classes(class_folder):
    (class_folder / "b" / "notes.txt").write_text("not an image")
    (class_folder / "labels.csv").write_text("file,label")  # nor does a table beside the images take their place
    data = load_images(str(class_folder))
    assert data.class_names == ("b", "r")
    assert (len(data.train), len(data.validation), len(data.test)) == (28, 4, 8)
    assert any(note.startswith("2 files are not images") for note in data.notes)
    pixels = store_images(data.train, 20, CPU).inputs.float().mean((2, 3))
    assert torch.equal(pixels[:, 0] > pixels[:, 2], data.train.labels.bool())  # red images carry the label r


@pytest.mark.parametrize(
    ("title", "short"), [(None, "classes"), ("Red and blue", "Red-and-blue"), ("CIFAR-10 (JPEG q75)", "CIFAR-10-JPEG-q75"), ("()", "data")]
)
def test_the_short_name_can_be_part_of_a_repositorys_name(class_folder, title, short):
    data = load_images(ImageOptions(name=str(class_folder), title=title))
    assert data.short_name == short


def test_a_folder_per_split_is_read_as_its_splits(tmp_path, noise_image):
    for split, n in (("train", 6), ("val", 2), ("test", 4)):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                noise_image(i).save(folder / f"{i}.jpg")
    data = load_images(str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 8)
    assert data.test_split == "test"


def test_split_folders_in_any_case_and_never_taken_for_classes(class_folder, tmp_path):
    for name in ("Train", "TEST"):
        (tmp_path / "splits").mkdir(exist_ok=True)
        shutil.copytree(class_folder, tmp_path / "splits" / name)
    data = load_images(str(tmp_path / "splits"))
    assert data.class_names == ("b", "r")
    assert len(data.test) == 40
    (tmp_path / "splits" / "Train").rename(tmp_path / "splits" / "cars")
    with pytest.raises(UserError, match="neither splits .* nor classes"):
        load_images(str(tmp_path / "splits"))


def test_training_images_are_never_the_test_images(class_folder):
    with pytest.raises(UserError, match="to be trained and tested on"):
        load_images(str(class_folder), test_split="train")


def test_one_class_or_a_list_of_labels_pretrains_on_every_image(class_folder, tmp_path, pictures, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shutil.copytree(class_folder / "b", tmp_path / "one" / "all")
    assert len(load_images(str(tmp_path / "one"), labels_needed=False).train) == 20
    features = {"img": datasets.Image(), "labels": datasets.List(datasets.Value("int64"))}
    folder = parquet(tmp_path / "p", features, {"img": pictures, "labels": [[i] for i in range(20)]})
    assert len(load_images(folder, labels_needed=False).train) == 20
    with pytest.raises(UserError, match="labels are needed"):
        load_images(folder)


def parquet(folder, features, rows):
    datasets = pytest.importorskip("datasets")
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture
def pictures(noise_image):
    return [noise_image(i) for i in range(20)]


def test_parquet_finds_columns_by_type(tmp_path, pictures, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = {"id": datasets.Value("int64"), "picture": datasets.Image(), "kind": datasets.ClassLabel(names=["blue", "red"])}
    folder = parquet(tmp_path / "p", features, {"id": list(range(20)), "picture": pictures, "kind": [i % 2 for i in range(20)]})
    data = load_images(folder)
    assert data.class_names == ("blue", "red")
    pixels = store_images(data.train, 20, CPU).inputs.float().mean((2, 3))
    assert torch.equal(pixels[:, 0] > pixels[:, 2], data.train.labels.bool())
    with pytest.raises(UserError, match="did you mean 'picture'"):
        load_images(folder, image_column="pictures")
    with pytest.raises(UserError, match="no label column 'sort'"):
        load_images(folder, label_column="sort")
    with pytest.raises(UserError, match="no split 'tests'"):
        load_images(folder, test_split="tests")
    with pytest.raises(UserError, match="does not hold images"):
        load_images(folder, image_column="id")


def test_more_than_one_column_that_could_be_meant(tmp_path, pictures, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    label = datasets.ClassLabel(names=["a", "b"])
    features = {"img": datasets.Image(), "fine": label, "coarse": label}
    ones = [i % 2 for i in range(20)]
    folder = parquet(tmp_path / "p", features, {"img": pictures, "fine": ones, "coarse": ones})
    with pytest.raises(UserError, match=r"more than one label column \(fine, coarse\)"):
        load_images(folder)
    assert load_images(folder, label_column="coarse").class_names == ("a", "b")


@pytest.mark.parametrize("values", [["wolf", "ape"], [7, 3], [True, False]])
def test_labels_of_any_kind_become_names(tmp_path, pictures, values, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    kind = datasets.Value({str: "string", int: "int64", bool: "bool"}[type(values[0])])
    folder = parquet(tmp_path / "p", {"img": datasets.Image(), "label": kind}, {"img": pictures, "label": values * 10})
    data = load_images(folder)
    assert data.class_names == tuple(str(v) for v in sorted(values))
    assert len(data.train.labels) == len(data.train)


def test_wrong_data_is_one_sentence(tmp_path, class_folder, noise_image):
    (tmp_path / "empty").mkdir()
    one = tmp_path / "one" / "cat"
    one.mkdir(parents=True)
    for i in range(8):
        noise_image(i).save(one / f"{i}.png")
    cases = {
        str(tmp_path / "empty"): "has no images",
        str(tmp_path / "one"): "only one class",
        str(tmp_path / "nowhere"): "no folder",
        str(one / "0.png"): "is neither a CSV nor safetensors",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            load_images(name)
    (class_folder / "green").mkdir()
    with pytest.raises(UserError, match="class 'green' has no image"):
        load_images(str(class_folder))
    load_images(str(class_folder), labels_needed=False)


def test_a_broken_image_is_named(class_folder):
    broken = class_folder / "b" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (class_folder / "b" / "2.png").write_bytes(b"")
    for in_memory in (True, False):
        with pytest.raises(UserError, match=r"^[^\n]*(0|2)\.png is not a readable image [^\n]*$"):
            store = store_images(load_images(str(class_folder), image_size=20, validation_fraction=0).train, 20, CPU, in_memory)
            list(store.batches([torch.arange(len(store))]))


def test_sizes_that_differ_are_said(class_folder, noise_image):
    for i in range(40):
        noise_image(i, (30 + i, 50)).save(class_folder / "br"[i % 2] / f"{i}.png")
    data = load_images(str(class_folder))
    assert any("sizes differ" in note for note in data.notes)
    assert store_images(data.train, data.image_size, CPU).inputs.shape[-1] == data.image_size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"])
def test_every_mode_becomes_rgb(mode, noise_image):
    grey = noise_image(1, (24, 16)).convert("L")
    if mode in ("I", "I;16"):
        image = Image.fromarray((np.asarray(grey).astype(np.uint16) * 257).astype(np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray(np.asarray(grey, dtype=np.float32) / 255)
    elif mode in ("LAB", "HSV"):
        image = noise_image(1, (24, 16)).convert("HSV") if mode == "HSV" else Image.new("LAB", (24, 16), (128, 128, 128))
    else:
        image = noise_image(1, (24, 16)).convert(mode)
    from rocl_transfer.data.decode import to_rgb

    rgb = np.asarray(to_rgb(image)).astype(int)
    assert rgb.shape == (16, 24, 3)
    if mode in ("L", "LA", "I", "I;16", "F"):
        assert abs(rgb - np.asarray(grey).astype(int)[..., None]).max() <= 1
    if mode in ("RGB", "RGBA", "YCbCr", "HSV", "CMYK"):
        assert abs(rgb - np.asarray(noise_image(1, (24, 16))).astype(int)).max() <= 12


def test_transparency_lies_on_white_and_rotation_tags_are_obeyed(tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    path = tmp_path / "clear.png"
    clear.save(path)
    assert decode(path, 8, "x").min() == 255
    turned = Image.new("RGB", (8, 4), "red")
    turned.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    top = decode(tmp_path / "turned.png", 4, "x")[:, 0, 0]
    assert top[2] > top[0]  # blue on top


def test_resize_keeps_the_centre():
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert decode(wide, 10, "x").min() == 255
