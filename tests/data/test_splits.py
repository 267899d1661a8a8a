"""Which image is of which split, by names of files and folders: none is trained on that is there to be tested on."""

import pytest

from rocl_transfer import UserError
from rocl_transfer.data import load_images
from rocl_transfer.data.local import group_by_split
from rocl_transfer.data.splits import splits_in
from tests.data.test_folders import write_parquet


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
    assert (len(data.train), len(data.test), data.test_split) == (20, 10, "test")
    streamed, stream = open_stream(str(tmp_path / "p"), image_size=8, images=20)
    assert sum(1 for _ in stream.rows) == 20
    assert "split 'test' is not used" in streamed.notes
