"""Labels of any kind and any balance, and images of any format, each with the class it came with."""

import numpy as np
import pytest
import torch
from PIL import Image

from rocl_transfer import UserError
from rocl_transfer.data import load_images, store_splits

CPU = torch.device("cpu")


def code(class_number, size=(6, 6)):
    """An image whose colour is its class's number."""
    return Image.new("RGB", size, (class_number % 256, class_number // 256, 77))


def codes(store):
    first = next(iter(store.batches([torch.arange(len(store))])))[:, :, 0, 0].long()
    return first[:, 0] + 256 * first[:, 1]


def write_csv(folder, labels):
    """Image i shows number i modulo the number of different labels."""
    kinds = list(dict.fromkeys(labels))
    lines = ["file,label"]
    for i, label in enumerate(labels):
        code(kinds.index(label)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{label}")
    (folder / "table.csv").write_text("\n".join(lines))
    return str(folder / "table.csv"), [str(kind) for kind in kinds]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1", "2", "3"], ("1", "2", "3")),
        (["1", "-1"], ("-1", "1")),
        (["10", "9", "-10", "0"], ("-10", "0", "9", "10")),
        (["700", "3", "41"], ("3", "41", "700")),
        (["2.0", "1.0", "10.0"], ("1", "2", "10")),
        (["2", "1.0"], ("1", "2")),
        (["True", "False"], ("False", "True")),
        (["007", "7"], ("7", "007")),
        (["nan", "-", "1e3"], ("-", "1e3", "nan")),
        (["Ölkanne", "kettle"], ("kettle", "Ölkanne")),
    ],
)
def test_labels_of_a_csv_become_class_names(tmp_path, labels, names):
    path, kinds = write_csv(tmp_path, labels * 6)
    data = load_images(path, validation_fraction=0)
    assert data.class_names == names
    # Where the label was written as a float its name is the whole number.
    written = [names.index(kind.removesuffix(".0")) for kind in kinds]
    for split, store in store_splits(data, ("train", "test"), CPU)[1].items():
        assert getattr(data, split).labels.tolist() == [written[number] for number in codes(store).tolist()]


@pytest.mark.parametrize("labels", [["0.25", "0.5"], ["1", "2", "2.5"]])
def test_fractions_are_no_classes(tmp_path, labels):
    path, _ = write_csv(tmp_path, labels * 6)
    with pytest.raises(UserError, match=r"^labels of split 'train' are fractions such as (0\.25|2\.5): [^\n]*--data\.label_column$"):
        load_images(path)
    assert load_images(path, labels_needed=False).train.labels is None  # pre-training does not look at them


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        ("string", ["wolf", "ape"], ("ape", "wolf")),
        ("bool", [True, False], ("False", "True")),
        ("int64", [5, -5, 12], ("-5", "5", "12")),
        ("uint8", [200, 1], ("1", "200")),
        ("float64", [2.0, 1.0, -1.0], ("-1", "1", "2")),
        ("float64", [0.5, 1.0], None),
        ("float64", [1.0, None], None),
    ],
)
def test_labels_of_parquet_become_class_names(tmp_path, kind, labels, names, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "p").mkdir()
    rows = {"image": [code(i % len(labels)) for i in range(24)], "label": [labels[i % len(labels)] for i in range(24)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "p" / "train.parquet")
    if names is None:
        with pytest.raises(UserError, match="labels of split 'train' are fractions such as 0.5" if 0.5 in labels else "have none"):
            load_images(str(tmp_path / "p"))
        return
    data = load_images(str(tmp_path / "p"), validation_fraction=0)
    assert data.class_names == names
    written = [names.index(str(label).removesuffix(".0")) for label in labels]
    for split, store in store_splits(data, ("train", "test"), CPU)[1].items():
        assert getattr(data, split).labels.tolist() == [written[number] for number in codes(store).tolist()]


def write_classes(folder, sizes):
    for number, size in enumerate(sizes):
        (folder / f"class {number}").mkdir(parents=True)
        for i in range(size):
            code(number).save(folder / f"class {number}" / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize("sizes", [[5] * 300, [500, 1], [1, 500, 7], [3, 3]], ids=["300 classes", "500 to 1", "three unlike", "two small ones"])
def test_many_and_unbalanced_classes_reach_every_split(tmp_path, sizes):
    data = load_images(write_classes(tmp_path / "data", sizes))
    assert len(data.class_names) == len(sizes)
    data, stores = store_splits(data, ("train", "validation", "test"), CPU)
    seen = torch.zeros(len(sizes), dtype=torch.long)
    for split, store in stores.items():
        labels = getattr(data, split).labels
        assert [data.class_names[label] for label in labels.tolist()] == [f"class {number}" for number in codes(store).tolist()]
        seen += torch.bincount(labels, minlength=len(sizes))
    assert [int(seen[data.class_names.index(f"class {number}")]) for number in range(len(sizes))] == sizes
    assert (torch.bincount(data.train.labels, minlength=len(sizes)) > 0).all()
    test = torch.bincount(data.test.labels, minlength=len(sizes))
    for number, size in enumerate(sizes):
        held = int(test[data.class_names.index(f"class {number}")])
        assert abs(held - size / 5) < 1


def write_formats(folder, shade):
    """One image of ``shade`` in every way a folder may hold one; no two of the same size."""
    plain = Image.new("RGB", (30, 30), shade)
    grey = plain.convert("L")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    ways = {"rgb.png": plain, "grey.png": grey, "grey.jpg": grey, "palette.png": plain.convert("P"), "palette.gif": plain.convert("P"),
            "bits.png": grey.point(lambda v: 255 * (v > 128)).convert("1"), "alpha.png": plain.convert("RGBA"), "grey_alpha.png": plain.convert("LA"),
            "cmyk.jpg": plain.convert("CMYK"), "cmyk.tif": plain.convert("CMYK"), "sixteen.png": sixteen, "sixteen.tif": sixteen,
            "photo.webp": plain, "bitmap.bmp": plain, "UPPER.JPEG": plain}  # fmt: skip
    folder.mkdir(parents=True)
    for number, (name, image) in enumerate(ways.items()):
        image.resize((20 + number, 34 - number), Image.Resampling.NEAREST).save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.resize((40, 24)).save(folder / "turned.jpg", exif=exif)
    return len(ways) + 1


def test_one_folder_of_every_format_and_size(tmp_path):
    count = write_formats(tmp_path / "data" / "dark", (40, 30, 50))
    count += write_formats(tmp_path / "data" / "light", (200, 220, 210))
    data = load_images(str(tmp_path / "data"))
    assert any("image sizes differ" in note for note in data.notes)
    data, stores = store_splits(data, ("train", "validation", "test"), CPU)
    assert not data.unreadable
    assert sum(len(store) for store in stores.values()) == count
    for split, store in stores.items():
        inputs = next(iter(store.batches([torch.arange(len(store))])))
        assert inputs.shape[1:] == (3, data.image_size, data.image_size)
        light = inputs.float().mean((1, 2, 3)) > 128
        assert torch.equal(light.long(), getattr(data, split).labels)
