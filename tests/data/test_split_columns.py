"""Which image is of which split, by a column of a list or of metadata: both are read in one way, and no row is lost in silence."""

import json

import pytest

from rocl_transfer import UserError
from rocl_transfer.data import load_images
from tests.data.test_splits import numbers, put, sizes


@pytest.fixture
def listed(tmp_path, noise_image):
    """Open rows of (number, label, split) by a list that is given as data, or by metadata beside the images."""
    for seed in range(40):
        noise_image(seed).save(tmp_path / f"{seed}.png")

    def opened(kind, rows, **options):
        for old in tmp_path.glob("*.[cj]s*"):
            old.unlink()
        lines = [dict(zip(("file_name", "label", "split"), (f"{number}.png", label, split), strict=True)) for number, label, split in rows]
        if kind == "metadata.jsonl":
            (tmp_path / kind).write_text("\n".join(map(json.dumps, lines)))
        else:
            (tmp_path / kind).write_text("\n".join(["file_name,label,split", *(",".join(map(str, line.values())) for line in lines)]))
        return load_images(str(tmp_path / kind if kind == "list.csv" else tmp_path), validation_fraction=0, **options)

    return opened


tables = pytest.mark.parametrize("kind", ["list.csv", "metadata.csv", "metadata.jsonl"])


def rows(split):
    return [(seed, "br"[seed % 2], split(seed)) for seed in range(40)]


@tables
def test_capitals_do_not_make_another_split(listed, kind):
    data = listed(kind, rows(lambda seed: ("Train", "train", "TRAIN", "test", "Test")[seed // 2 % 5]))
    assert numbers(data.train) == [seed for seed in range(40) if seed // 2 % 5 < 3]
    assert numbers(data.test) == [seed for seed in range(40) if seed // 2 % 5 > 2]
    assert not any("not used" in note for note in data.notes)


@tables
def test_a_file_in_two_splits_belongs_to_each_and_is_said(listed, kind):
    data = listed(kind, [*rows(lambda seed: "train" if seed < 30 else "test"), (0, "b", "test"), (1, "r", "test"), (2, "b", "Train")])
    assert sizes(data) == (30, 0, 12)
    assert f"2 files are listed by {kind} in more than one split and belong to each, such as 0.png" in data.notes
    assert any(
        note.startswith(f"line {43 if kind == 'metadata.jsonl' else 44} of {kind} names a file that an earlier one names, and") for note in data.notes
    )
    with pytest.raises(UserError, match="contradict each other: .*0.png is labelled 'b' and 'r'"):
        listed(kind, [*rows(lambda seed: "train"), (0, "r", "test")])


@tables
def test_rows_of_no_split_count_as_train_and_are_said(listed, kind):
    data = listed(kind, rows(lambda seed: "" if seed < 5 else "train" if seed < 30 else "test"))
    assert sizes(data) == (30, 0, 10)
    assert f"5 rows of {kind} name no split and count as train" in data.notes
    assert (
        f"1 row of {kind} names no split and counts as train"
        in listed(kind, rows(lambda seed: "test" if seed else "")[:39], labels_needed=False).notes
    )


@tables
def test_numbers_are_splits_too(listed, kind):
    data = listed(kind, rows(lambda seed: seed // 2 % 3), train_split="1", test_split="0")
    assert numbers(data.test) == [seed for seed in range(40) if seed // 2 % 3 == 0]
    assert "split '2' (12 images) is not used" in data.notes


@tables
def test_other_words_for_a_split_are_understood(listed, kind):
    names = ("training", "Dev", "testing")
    data = listed(kind, rows(lambda seed: names[seed // 2 % 3]))
    assert [numbers(split) for split in (data.train, data.validation, data.test)] == [
        [seed for seed in range(40) if seed // 2 % 3 == at] for at in range(3)
    ]
    data = listed(kind, rows(lambda seed: ("train", "test", "eval")[seed // 2 % 3]))
    assert data.test_split == "test"
    assert "split 'eval' (12 images) is not used" in data.notes
    assert listed(kind, rows(lambda seed: ("train", "test", "eval")[seed // 2 % 3]), test_split="EVAL").test_split == "eval"


def test_all_images_of_a_list_are_each_measured_once(listed):
    data = listed("list.csv", [*rows(lambda seed: "train" if seed < 30 else "val"), (0, "b", "val")], train_needed=False).whole()
    assert numbers(data.test) == list(range(40))
    data = listed("list.csv", rows(lambda seed: "train" if seed < 30 else "other"), train_needed=False).whole()
    assert (numbers(data.test), data.test_split) == (list(range(30)), "all images but those of split 'other'")


def test_splits_of_metadata_without_labels_hold_for_the_folders(tmp_path, noise_image):
    put(tmp_path, noise_image, 0, 40)
    lines = [f"{'br'[seed % 2]}/{seed}.png,{'Train' if seed < 20 else 'test'}" for seed in range(38)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,split", *lines]))
    data = load_images(str(tmp_path), validation_fraction=0)
    assert (numbers(data.train), numbers(data.test)) == ([*range(20), 38, 39], list(range(20, 38)))
    assert data.class_names == ("b", "r")
    assert "2 images have no row in the metadata and are of train, such as b/38.png" in data.notes


def test_a_file_in_two_tables_is_of_the_split_of_the_one_that_says_it(listed, tmp_path):
    lines = [{"file_name": f"{seed}.png", "label": "br"[seed % 2]} for seed in range(40)]
    listed("list.csv", rows(lambda seed: "train" if seed < 20 else "test")[:30])
    (tmp_path / "list.csv").rename(tmp_path / "metadata.csv")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = load_images(str(tmp_path), validation_fraction=0)
    assert (numbers(data.train), numbers(data.test)) == ([*range(20), *range(30, 40)], list(range(20, 30)))
    assert "30 rows of metadata.jsonl name files that another table lists, and are left out, the first is line 1 of metadata.jsonl" in data.notes
    assert "10 rows of metadata.jsonl name no split and count as train" in data.notes


def test_a_column_of_splits_beside_split_folders_is_said(tmp_path, noise_image):
    for split, start in (("train", 0), ("test", 20)):
        put(tmp_path / split, noise_image, start, 20)
        names = [f"{'br'[seed % 2]}/{seed}.png" for seed in range(start, start + 20)]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,label,split", *(f"{name},{name[0]},train" for name in names)]))
    data = load_images(str(tmp_path), validation_fraction=0)
    assert (numbers(data.train), numbers(data.test)) == (list(range(20)), list(range(20, 40)))
    assert "the column split of test/metadata.csv is left out: the folders are the splits" in data.notes
