"""Which image is of which split, by names of files and folders: none is trained on that is there to be tested on."""

import shutil

import pytest
import torch

from rocl_transfer import UserError
from rocl_transfer.data import load_images, store_splits
from rocl_transfer.data.local import group_by_split
from rocl_transfer.data.splits import splits_in
from tests.data.test_folders import write_parquet


def put(folder, noise_image, start, count):
    """As many images, red and blue in turn, in folders of their classes."""
    for seed in range(start, start + count):
        path = folder / "br"[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(seed).save(path)


def numbers(images):
    """The seeds of the images of a split."""
    return sorted(int(images.where(at).rsplit("/", 1)[1].removesuffix(".png")) for at in range(len(images)))


def sizes(data):
    return tuple(0 if split is None else len(split) for split in (data.train, data.validation, data.test))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train", {"train"}), ("my-train", {"train"}), ("Train_Data", {"train"}), ("photos_train_0", {"train"}), ("train2017", {"train"}),
        ("a.training.b", {"train"}), ("my train", {"train"}), ("data/train/x", {"train"}), ("trainImages", {"train"}), ("trainset", {"train"}),
        ("my-val", {"validation"}), ("valid_1", {"validation"}), ("devSet", {"validation"}), ("VALIDATION-3", {"validation"}),
        ("test_set", {"test"}), ("x-testing", {"test"}), ("eval (2)", {"test"}), ("evaluation-1", {"test"}), ("train_val", {"train", "validation"}),
        ("contest", set()), ("latest_photos", set()), ("trainers", set()), ("value", set()), ("device", set()), ("", set()), ("t\u00e9st", set()),
    ],
)  # fmt: skip
def test_words_of_a_name_mean_a_split(name, found):
    assert splits_in(name) == found


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["my-train.parquet", "my-test.parquet"], {"train": [0], "test": [1]}),
        (["train_data.parquet", "Test_Data.parquet", "train_data_2.parquet"], {"train": [0, 2], "test": [1]}),
        (["photos_train_0.tar", "photos_val_0.tar", "photos_test_0.tar"], {"train": [0], "validation": [1], "test": [2]}),
        (["imagenet-train-000000.tar", "imagenet-val-000000.tar"], {"train": [0], "validation": [1]}),
        (["imagenet-train-00000-of-00002.tar", "imagenet-val-00000-of-00001.tar"], {"train": [0], "validation": [1]}),
        (["train_images/a.tar", "test_images/a.tar"], {"train": [0], "test": [1]}),
        (["train/train-0.tar", "test/a.tar"], {"train": [0], "test": [1]}),
        (["train_full-00000-of-00001.parquet", "test-00000-of-00001.parquet"], {"train_full": [0], "test": [1]}),  # as datasets spells a split
        (["a.tar", "contest.tar"], {"train": [0, 1]}),
    ],
)
def test_files_are_of_the_split_that_a_word_of_their_names_means(tmp_path, names, splits):
    files = [tmp_path / "my-test-data" / name for name in names]  # the folder of all says nothing
    assert group_by_split(tmp_path / "my-test-data", files) == {split: [str(files[at]) for at in own] for split, own in splits.items()}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["my-train.tar", "more.tar"],
            r"more.tar of \S* is of no split, beside my-train.tar: name it as .* train-1.tar, move it away, or rename the other",
        ),
        (["train_val.tar", "test.tar"], r"train_val.tar of \S* is called as more than one split \(train and validation\): rename it"),
        (["train/my-test.tar"], r"train/my-test.tar of \S* is called as more than one split \(test and train\)"),
    ],
)
def test_files_that_could_be_of_more_than_one_split_are_refused(tmp_path, names, sentence):
    with pytest.raises(UserError, match=sentence):
        group_by_split(tmp_path, [tmp_path / name for name in names])


def test_parquet_files_of_other_splits_are_neither_trained_on_nor_streamed(tmp_path, monkeypatch):
    import datasets

    from rocl_transfer.data import open_stream

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_parquet(tmp_path / "p" / "my-train.parquet", 20)
    write_parquet(tmp_path / "p" / "my-test.parquet", 10, 20)
    data = load_images(str(tmp_path / "p"), validation_fraction=0)
    assert (sizes(data), data.test_split) == ((20, 0, 10), "test")
    streamed, stream = open_stream(str(tmp_path / "p"), image_size=8, images=20)
    assert sum(1 for _ in stream.rows) == 20
    assert "split 'test' is not used" in streamed.notes


@pytest.mark.parametrize(
    ("train", "held", "split"),
    [("training_set", "test_set", "test"), ("train_images", "val_images", "validation"), ("train2017", "val2017", "validation"),
     ("seg_train", "seg_test", "test"), ("train", "test_set", "test"), ("trainData", "evalData", "test")],
)  # fmt: skip
def test_folders_with_a_splits_word_in_their_names_are_splits(tmp_path, noise_image, train, held, split):
    put(tmp_path / "d" / train, noise_image, 0, 40)
    put(tmp_path / "d" / held, noise_image, 40, 20)
    noise_image(99).save(tmp_path / "d" / train / "cover.png")
    (tmp_path / "d" / "dev_kit").mkdir()  # no images: no split
    data = load_images(str(tmp_path / "d"), validation_fraction=0)
    assert data.class_names == ("b", "r")
    assert numbers(getattr(data, split)) == list(range(40, 60))
    first, second = sorted([(train, "train"), (held, split)])
    assert f"the folders {first[0]} and {second[0]} are taken for the splits {first[1]} and {second[1]}, by words of their names" in data.notes
    assert any("dev_kit" in note and "has no image and is left out" in note for note in data.notes)


@pytest.mark.parametrize(("train", "held"), [("train", "test"), ("training_set", "test_set")])
def test_a_split_folder_within_one_of_its_name_is_the_split(tmp_path, noise_image, train, held):
    put(tmp_path / "d" / train / train, noise_image, 0, 40)
    put(tmp_path / "d" / held / held, noise_image, 40, 20)
    (tmp_path / "d" / train / ".DS_Store").touch()
    data = load_images(str(tmp_path / "d"), validation_fraction=0)
    assert (data.class_names, numbers(data.test)) == (("b", "r"), list(range(40, 60)))
    put(tmp_path / "d" / train / "other", noise_image, 60, 10)  # beside it: a class
    with pytest.raises(UserError, match="has no image to train on"):
        load_images(str(tmp_path / "d"))


def test_a_test_folder_without_classes_does_not_make_classes_of_splits(tmp_path, noise_image):
    put(tmp_path / "d" / "train_images", noise_image, 0, 40)
    (tmp_path / "d" / "test_images").mkdir()
    for seed in range(40, 50):
        noise_image(seed).save(tmp_path / "d" / "test_images" / f"{seed}.png")
    with pytest.raises(UserError, match=r"labels are needed, and images of split 'test' have none \(none of 10 has\)"):
        load_images(str(tmp_path / "d"))
    data = load_images(str(tmp_path / "d"), labels_needed=False, validation_fraction=0)
    assert numbers(data.train) == list(range(40))


@pytest.mark.parametrize("names", [("training_shoes", "sandals"), ("train_a", "train_b"), ("test_tubes", "dev_boards"), ("contest", "trainers")])
def test_classes_whose_names_have_a_splits_word_stay_classes(tmp_path, noise_image, names):
    for number, name in enumerate(names):
        put(tmp_path / "d" / name, noise_image, 20 * number, 20)
    data = load_images(str(tmp_path / "d"))
    assert data.class_names == tuple(sorted(names))
    assert not any("are taken for" in note for note in data.notes)


def test_folders_that_could_be_splits_or_classes_are_said(tmp_path, noise_image):
    for number, name in enumerate(("training_shoes", "test_tubes")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for seed in range(20 * number, 20 * number + 20):
            noise_image(seed).save(tmp_path / "d" / name / f"{seed}.png")
    data = load_images(str(tmp_path / "d"))
    assert data.class_names == ("test_tubes", "training_shoes")
    note = "test_tubes and training_shoes are taken for classes: if they are splits, put class folders into them, or call them train and test"
    assert note in data.notes


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("train_val_set", "test_set"), r"the folder train_val_set of \S* is called as more than one split \(train and validation\): rename it"),
        (("train_1", "train_2", "test_1"), r"train_1 and train_2 of \S* are both the train split: merge them or rename one"),
        (("train", "test", "extra"), "neither splits .* nor classes: beside test, train lies extra"),
    ],
)
def test_folders_that_could_be_of_more_than_one_split_are_refused(tmp_path, noise_image, names, sentence):
    for number, name in enumerate(names):
        put(tmp_path / "d" / name, noise_image, 20 * number, 20)
    with pytest.raises(UserError, match=sentence):
        load_images(str(tmp_path / "d"))


def test_split_folders_of_any_name_below_classes_are_not_merged(tmp_path, noise_image):
    for name in ("cats/train_set", "cats/test_set", "dogs/train_set"):
        put(tmp_path / "d" / name, noise_image, 0, 4)
    with pytest.raises(UserError, match=r"the splits of \S*d lie below its classes, such as cats/test_set: put them above, as test_set/cats"):
        load_images(str(tmp_path / "d"))


@pytest.mark.parametrize("fraction", [0, 0.1])
def test_all_images_are_those_of_every_split(tmp_path, noise_image, fraction):
    put(tmp_path / "d" / "train", noise_image, 0, 30)
    put(tmp_path / "d" / "val", noise_image, 30, 20)
    data = load_images(str(tmp_path / "d"), train_needed=False, validation_fraction=fraction).whole()
    assert numbers(data.test) == list(range(50))
    assert (data.test_split, data.cut) == ("all images", None)
    _, stores = store_splits(data, ("test",), torch.device("cpu"))
    pixels = next(iter(stores["test"].batches([torch.arange(50)]))).float().mean((2, 3))
    assert ((pixels[:, 0] > pixels[:, 2]) == data.test.labels.bool()).all()  # labels follow their images
    shutil.rmtree(tmp_path / "d" / "train")
    assert numbers(load_images(str(tmp_path / "d"), train_needed=False).whole().test) == list(range(30, 50))
    put(tmp_path / "d" / "test", noise_image, 60, 10)
    with pytest.raises(UserError, match=r"has a test split \(test\): --split all is for data without one"):
        load_images(str(tmp_path / "d"), train_needed=False).whole()
