"""Which image files of a folder are used, and what is said of all others: files found = images used + images left out and named."""

import json
import os
import shutil

import pytest
from PIL import Image

from rocl_transfer import UserError
from rocl_transfer.data import load_images

SHADES = {"ants": (180, 60, 60), "bees": (60, 60, 180)}


def img(path, colour=(90, 120, 30), number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (40, 40), colour)
    image.putpixel((number % 40, number // 40), (1, 2, 3))
    image.save(path, "PNG" if path.suffix.lower() not in Image.registered_extensions() else None)


@pytest.fixture
def folder(tmp_path):
    """20 ants and 20 bees, 8 of the 40 called test_..."""
    for name, colour in SHADES.items():
        for i in range(20):
            img(tmp_path / "data" / name / f"{'test_' if i < 4 else 'photo_'}{i}.jpg", colour, i)
    return tmp_path / "data"


def count(data):
    return sum(len(split) for split in (data.train, data.validation, data.test) if split is not None)


def paths(data):
    return {split.where(i) for split in (data.train, data.validation, data.test) if split is not None for i in range(len(split))}


def said(data, *words):
    """The one note that has all of these words."""
    found = [note for note in data.notes if all(word in note for word in words)]
    assert len(found) == 1, data.notes
    return found[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [("metadata.txt", b"x"), ("metadata", b"x"), ("metadata.xml", b"<x/>"), ("metadata.yaml", b"a: 1"),
     ("notes.md", b"x"), ("train.csv", b"a,b\n1,2\n"),
     ("test.parquet", b"no parquet"), ("data.arrow", b""), ("dataset_info.json", b"{}"), ("state.json", b"{}"), ("test.tar", b""), ("test.zip", b""),
     ("ants/metadata.txt", b"x"), ("README.md", b"---\nconfigs:\n- config_name: x\n---\n")],
)  # fmt: skip
def test_no_file_beside_the_images_takes_any_away(folder, name, content):
    (folder / name).write_bytes(content)
    data = load_images(str(folder))
    assert count(data) == 40
    assert data.class_names == ("ants", "bees")
    assert said(data, "1 file is not an image").endswith(name)


def test_a_parquet_table_of_features_is_a_stray(folder):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"feature": list(range(1000))}).to_parquet(folder / "train.parquet")
    data = load_images(str(folder))
    assert count(data) == 40
    said(data, "1 file is not an image and is left out: train.parquet")


def write_rows(folder, kind, rows):
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        (folder / "metadata.csv").write_text("\n".join(lines))
    elif kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    else:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")


kinds = pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])


@kinds
def test_metadata_with_labels_of_half_the_images(folder, kind):
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    write_rows(folder, kind, [{"file_name": name, "label": name.split("/")[0]} for name in [*files[::2], "bees/gone.jpg"]])
    data = load_images(str(folder))
    assert count(data) == 20
    said(data, "20 images have no row in the metadata and are left out, such as ants/")
    said(data, "1 row of the metadata names a file that is not there: line")
    assert data.class_names == ("ants", "bees")


@kinds
def test_metadata_without_labels_leaves_them_to_the_folders(folder, kind):
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    write_rows(folder, kind, [{"file_name": name, "text": f"a picture {i}"} for i, name in enumerate(files[:30])])
    data = load_images(str(folder))
    assert count(data) == 40
    assert data.class_names == ("ants", "bees")
    said(data, "has no column label or labels (others: text")
    said(data, "10 images have no row in the metadata, such as bees/")


def test_metadata_in_split_folders_and_below(folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "splits" / split)
        rows = [{"file_name": f"{name}/{path.name}", "label": name.upper()} for name in SHADES for path in (folder / name).iterdir()]
        write_rows(tmp_path / "splits" / split, "csv", rows)
    data = load_images(str(tmp_path / "splits"), validation_fraction=0)
    assert (len(data.train), len(data.test), data.class_names) == (40, 40, ("ANTS", "BEES"))
    for split in ("train", "test"):
        (tmp_path / "splits" / split / "metadata.csv").unlink()
        for name in SHADES:
            write_rows(tmp_path / "splits" / split / name, "csv", [{"file_name": p.name, "label": 7 + len(name)} for p in (folder / name).iterdir()])
    with pytest.raises(UserError, match=r"only one class \(11\)"):
        load_images(str(tmp_path / "splits"))


def test_metadata_that_contradicts_itself_or_the_folders(folder):
    rows = [{"file_name": f"{name}/{path.name}", "label": name} for name in SHADES for path in sorted((folder / name).iterdir())]
    rows[3]["label"] = "bees"
    write_rows(folder, "csv", rows)
    data = load_images(str(folder))
    said(data, "1 image is labelled differently by the metadata and by its folder: ants/photo_")
    write_rows(folder, "csv", [*rows, {"file_name": "ants/test_1.jpg", "label": "wasps"}])
    with pytest.raises(UserError, match=r"lines \d+ and 42 of \S*metadata.csv contradict each other: ants/test_1.jpg is labelled 'ants' and 'wasps'"):
        load_images(str(folder))
    rows[5]["label"] = ""
    write_rows(folder, "csv", rows)
    with pytest.raises(UserError, match=r"1 of 40 images of split 'train' has none: \S*\.jpg: complete its row in the metadata"):
        load_images(str(folder))


def test_metadata_of_almost_nothing_is_the_reason(folder):
    (folder / "metadata.csv").write_text("")
    data = load_images(str(folder))
    assert count(data) == 40
    said(data, "metadata.csv is empty and is left out")
    (folder / "metadata.csv").write_text("file_name,label\nants/test_0.jpg,a\nbees/test_0.jpg,b\n")
    with pytest.raises(UserError, match="2 images to train on and 0 to test on: .*; 38 images have no row in the metadata and are left out, such as"):
        load_images(str(folder))


def test_metadata_that_lists_other_files_is_left_out(folder):
    (folder / "metadata.csv").write_text("camera,lens\nx,y\n")
    data = load_images(str(folder))
    assert count(data) == 40
    said(data, "metadata.csv is left out: it has no column file_name")


def test_images_are_known_by_content_as_well_as_by_extension(folder):
    for number, name in enumerate(["UPPER.JPG", "Mixed.JpEg", "none", "photo.jpg_1", "copy.png~", "odd.dat"]):
        img(folder / "ants" / name, number=100 + number)
    (folder / "ants" / "BMI.txt").write_text("BMI of the patients: 1 2 3 4 5 6 7 8 9 10")
    (folder / "ants" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "ants" / "phone").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "ants" / "camera.NEF").write_bytes(b"II*\0" + bytes(40))
    (folder / "ants" / "page.pdf").write_bytes(b"%PDF-1.7")
    data = load_images(str(folder))
    assert count(data) == 46
    said(data, "4 files are images by content, not by extension, and are used, such as ants/")
    said(data, "3 files are images of kinds that are not read (.heic, .nef) and are left out; convert them to PNG or JPEG, such as ants/camera.NEF")
    said(data, "2 files are not images and are left out, such as ants/BMI.txt")


def test_hidden_files_and_files_that_are_none_are_counted(folder, tmp_path):
    img(folder / "ants" / ".hidden.jpg")
    img(folder / ".ipynb_checkpoints" / "ants" / "a.jpg")
    (folder / "__MACOSX" / "ants").mkdir(parents=True)
    (folder / "__MACOSX" / "ants" / "._a.jpg").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "ants" / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(folder / "bees" / "pipe.jpg")
    data = load_images(str(folder))
    assert count(data) == 40
    said(data, "3 files are hidden and are left out, such as")
    said(data, "2 files are links to nowhere, pipes or devices, and are left out, such as ants/link.jpg")


def test_one_stray_image_beside_class_folders_is_left_out_and_named(folder):
    img(folder / "stray.jpg")
    a, b = load_images(str(folder)), load_images(str(folder), labels_needed=False)
    for data in (a, b):
        assert count(data) == 40
        said(data, "1 image lies in no class folder and is left out: stray.jpg")
    assert not paths(a) - paths(b)
    for number in range(6):
        img(folder / f"stray_{number}.jpg", number=number)
    with pytest.raises(
        UserError, match=r"labels are needed, and 7 of 47 images of split 'train' have none, the first is \S*/stray.jpg: .*no class folder"
    ):
        load_images(str(folder))
    data = load_images(str(folder), labels_needed=False)
    assert len(data.train) == 47
    said(data, "the labels are not used: 7 of 47 images")


@pytest.fixture
def splits(folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "splits" / split)
    return tmp_path / "splits"


def test_an_odd_folder_beside_splits_is_named(splits):
    (splits / "annotations").mkdir()
    (splits / "annotations" / "1.xml").write_text("<x/>")
    img(splits / "preview.png")
    data = load_images(str(splits))
    said(data, "the folder annotations beside test, train has no image and is left out")
    said(data, "1 image lies beside test, train and is left out: preview.png")
    img(splits / "extra" / "a.png")
    with pytest.raises(UserError, match="neither splits .* nor classes: beside test, train lies extra, which holds 1 images: move or rename it"):
        load_images(str(splits))


def test_two_folders_for_one_split(splits):
    shutil.copytree(splits / "test", splits / "val")
    shutil.copytree(splits / "test", splits / "Validation")
    with pytest.raises(UserError, match="Validation and val of .* are both the validation split"):
        load_images(str(splits))


def test_a_split_folder_without_images_is_refused_by_name(splits):
    shutil.rmtree(splits / "test")
    (splits / "test").mkdir()
    with pytest.raises(UserError, match=r"/test has no image: put images into it, or remove the folder to do without a test split"):
        load_images(str(splits))


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_folder_with_one_split_alone_can_be_evaluated_on(splits, split):
    shutil.rmtree(splits / "train")
    (splits / "test").rename(splits / split)
    data = load_images(str(splits), train_needed=False)
    held = data.test if split == "test" else data.validation
    assert (len(held), len(data.train), data.class_names) == (40, 0, ("ants", "bees"))
    assert data.cut is None
    assert data.image_size == 40
    with pytest.raises(UserError, match=f"holds no train folder beside {'test' if split == 'test' else 'validation'}: add one to train on"):
        load_images(str(splits))


def test_a_test_folder_without_classes(splits):
    for number, path in enumerate(sorted((splits / "test").rglob("*.jpg"))):
        path.rename(splits / "test" / f"{number}.jpg")
    for name in SHADES:
        (splits / "test" / name).rmdir()
    with pytest.raises(UserError, match=r"labels are needed, and images of split 'test' have none \(none of 40 has\): put the images of each class"):
        load_images(str(splits))


def test_folders_below_class_folders_are_said(folder):
    (folder / "ants" / "red").mkdir()
    for path in sorted((folder / "ants").glob("photo*"))[:5]:
        path.rename(folder / "ants" / "red" / path.name)
    data = load_images(str(folder))
    assert count(data) == 40
    said(data, "5 images lie in folders below class folders and count as that class, such as ants/red/photo_")


def test_splits_below_classes_are_not_merged(folder):
    for name in SHADES:
        for number, path in enumerate(sorted((folder / name).glob("*.jpg"))):
            target = folder / name / ("Train" if number < 15 else "test") / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    with pytest.raises(UserError, match=r"the splits of \S*data lie below its classes, such as ants/Train: put them above, as Train/ants"):
        load_images(str(folder))


def test_one_folder_around_the_classes_is_a_hint(folder, tmp_path):
    shutil.move(folder, tmp_path / "outer" / "images")
    with pytest.raises(
        UserError, match=r"only one class \(images\): .*; if the folders in it are the classes .*\(ants, bees\), give --data.name \S*outer/images"
    ):
        load_images(str(tmp_path / "outer"))


@pytest.mark.parametrize("other", ["Ants", "ants ", "\uff21NTS"])
def test_names_that_are_nearly_equal_are_two_classes_and_said(folder, other):
    for number in range(10):
        img(folder / other / f"{number}.png", number=number)
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this disk does not tell capitals")
    data = load_images(str(folder))
    assert len(data.class_names) == 3
    said(data, f"{other!r}", "differ only in capitals, spaces or the code of a letter")


def test_numbered_classes_say_which_logit_is_which(tmp_path):
    for number in range(12):
        for i in range(4):
            img(tmp_path / "data" / str(number) / f"{i}.png", (20 * number, 0, 0), i)
    data = load_images(str(tmp_path / "data"))
    assert data.class_names == ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")  # as models of 0.1.0 count
    assert "(0, 1, 10, 11, 2, ...), not by number: logit 2 is class '10'" in said(data, "sorted as texts")
    for number in range(12):
        (tmp_path / "data" / str(number)).rename(tmp_path / "data" / f"{number:02}")
    assert not any("sorted as texts" in note for note in load_images(str(tmp_path / "data")).notes)


@pytest.mark.parametrize("flat", [True, False])
def test_a_table_of_labels_beside_a_folder_of_images_is_pointed_at(folder, tmp_path, flat):
    place = tmp_path / "kaggle" / ("" if flat else "images")
    place.mkdir(parents=True)
    lines = ["file,label"]
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        shutil.copy(path, place / f"{number}.jpg")
        lines.append(f"{'' if flat else 'images/'}{number}.jpg,{path.parent.name}")
    table = tmp_path / "kaggle" / "train.csv"
    table.write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"if {table} (has them|lists the labels), give it as --data.name"):
        load_images(str(tmp_path / "kaggle"))
    assert count(load_images(str(table))) == 40


def test_a_class_of_the_test_folder_in_other_capitals(splits):
    (splits / "test" / "ants").rename(splits / "test" / "ANTS")
    with pytest.raises(UserError, match="class 'ANTS' has no image to train on: classes 'ANTS' and 'ants' differ only in capitals"):
        load_images(str(splits))


def test_a_class_of_one_image_is_named(folder):
    img(folder / "wasps" / "a.jpg", (1, 2, 3))
    said(load_images(str(folder)), "1 class has one image: 'wasps'")
    for number in range(10):
        img(folder.parent / "lone" / "test" / f"kind {number}" / "a.jpg", (20 * number, 2, 3))
    data = load_images(str(folder.parent / "lone"), train_needed=False)  # an image a class is little, but may be measured on
    assert len(data.test) == 10
    said(data, "10 classes have one image each, such as 'kind 0'")


def test_a_row_without_a_label_in_parquet_is_named(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string"), "kind": datasets.Value("string")})
    rows = {"image": images, "label": ["a", "b", *[None] * 2, *"abcd" * 4], "kind": ["x", "y"] * 10}
    (tmp_path / "p").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "p" / "train.parquet")
    with pytest.raises(UserError, match=r"2 of 20 images .* have none, the first is row 2 of split .train.: complete column .label. or"):
        load_images(str(tmp_path / "p"))
    assert load_images(str(tmp_path / "p"), label_column="kind").class_names == ("x", "y")
    write_parquet(tmp_path / "q" / "train.parquet", 20, names=["3", "1"])
    said(load_images(str(tmp_path / "q")), "in the order that the data gives (3, 1), not by number: logit 0 is class '3'")


def write_parquet(path, count, start=0, names=("a", "b")):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    images = [Image.new("RGB", (8, 8), (start + i, 0, 0)) for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(count)]}, features=features).to_parquet(path)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["part_0.parquet", "contest_run.parquet", "latest.parquet"], {"train": 30}),
        (["train.parquet", "test.parquet"], {"train": 10, "test": 10}),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001-0123456789abcdef.parquet"],
         {"train": 20, "test": 10}),
        (["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"], {"train": 20, "test": 10}),
        (["train_1.parquet", "train_2.parquet", "val.parquet"], {"train": 20, "validation": 10}),
        (["fold1-00000-of-00001.parquet", "train-00000-of-00001.parquet"], {"train": 10, "fold1": 10}),
    ],
)  # fmt: skip
def test_every_parquet_file_is_used(tmp_path, monkeypatch, names, splits):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for number, name in enumerate(names):
        write_parquet(tmp_path / "p" / name, 10, 10 * number)
    datasets.Dataset.from_dict({"feature": [1, 2]}).to_parquet(tmp_path / "p" / "features.parquet")
    img(tmp_path / "p" / "preview.png")
    (tmp_path / "p" / "notes.csv").write_text("a,b\n")
    data = load_images(str(tmp_path / "p"), validation_fraction=0, test_split="fold1" if "fold1" in splits else None)
    assert data.class_names == ("a", "b")
    expected = {"train": splits["train"], "validation": splits.get("validation", 0), "test": splits.get("test", splits.get("fold1", 0))}
    if data.cut:
        expected["test"] = len(data.test)
        expected["train"] -= len(data.test)
    assert {name: len(getattr(data, name) or ()) for name in expected} == expected
    said(data, "1 image file beside the parquet files is left out: preview.png")
    said(data, "1 parquet file has no column of images and is left out: features.parquet")


def test_a_parquet_file_of_no_split_beside_some_is_named(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("train.parquet", "more.parquet"):
        write_parquet(tmp_path / "p" / name, 10)
    with pytest.raises(UserError, match=r"more.parquet of \S* is of no split, beside train.parquet: name it"):
        load_images(str(tmp_path / "p"))


def test_a_split_that_is_not_used_is_named(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("train", "test", "unsupervised"):
        write_parquet(tmp_path / "p" / f"{name}-00000-of-00001.parquet", 10)
    said(load_images(str(tmp_path / "p")), "split 'unsupervised' (10 images) is not used")
