"""Images that cannot be read, and images that are in two splits."""

import json
import logging
import shutil

import pytest
import torch
from PIL import Image

from rocl_transfer import UserError
from rocl_transfer.data import ImageOptions, load_images, store_splits
from rocl_transfer.data import stores as stores_module

CPU = torch.device("cpu")
ALL = ("train", "validation", "test")
both = pytest.mark.parametrize("in_memory", [True, False], ids=["resident", "streamed"])
# What each of two processes does; every image that it reads is a line of a file.
SHARED = """
import json, multiprocessing, torch, torch.distributed as distributed
from rocl_transfer import UserError
from rocl_transfer.config.cli import leave
from rocl_transfer.data import audit, load_images, store_splits
multiprocessing.set_start_method("fork", force=True)  # a process that a fork server began would have its workers begun by one, without what follows
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
examine = audit._examine
def noting(decoded, position):
    with open(f"{folder}/read-{rank}", "a") as file:
        file.write(f"{decoded.images.where(position)}\\n")
    return examine(decoded, position)
audit._examine = noting
try:
    held = {"in_memory": in_memory, "workers": 1, "max_unreadable": 0.2}
    data, stores = store_splits(load_images(f"{folder}/data"), ("train", "validation", "test"), torch.device("cpu"), **held)
    found = {split: [getattr(data, split).indices.tolist(), getattr(data, split).labels.tolist(), len(store)] for split, store in stores.items()}
    answer = [data.notes, data.unreadable, found]
except UserError as error:
    answer = str(error)
with open(f"{folder}/answer-{rank}", "w") as file:
    json.dump(answer, file)
leave(0)
"""


@pytest.fixture
def folder(tmp_path, noise_image):
    """40 images to train on, 8 for validation, 8 for the test; blue ones in b, red ones in r; no two are the same."""
    seed = 0
    for split, count in (("train", 40), ("validation", 8), ("test", 8)):
        for _ in range(count):
            place = tmp_path / "data" / split / "br"[seed % 2]
            place.mkdir(parents=True, exist_ok=True)
            noise_image(seed, (24, 24)).save(place / f"{seed:02}.png")
            seed += 1
    return tmp_path / "data"


def truncate(path, noise_image):
    """A JPEG cut in half, under the name it had."""
    noise_image(1, (64, 64)).save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def damaged(folder, noise_image):
    truncate(folder / "train" / "b" / "00.png", noise_image)
    (folder / "train" / "r" / "07.png").write_bytes(b"")
    (folder / "train" / "b" / "20.png").write_text("this is no image")
    (folder / "validation" / "r" / "41.png").write_text("nor is this")
    return folder


def pixels(store):
    return torch.cat(list(store.batches([torch.arange(len(store))])))


def is_red(store):
    means = pixels(store).float().mean((2, 3))
    return (means[:, 0] > means[:, 2]).long()


@both
def test_unreadable_images_are_left_out_counted_and_listed(damaged, in_memory, caplog):
    with caplog.at_level(logging.INFO, "rocl_transfer"):
        data, stores = store_splits(load_images(str(damaged)), ALL, CPU, in_memory=in_memory, max_unreadable=0.2)
    assert {split: len(store) for split, store in stores.items()} == {"train": 37, "validation": 7, "test": 8}
    for split, store in stores.items():
        images = getattr(data, split)
        assert len(images) == len(images.labels) == len(store)
        assert torch.equal(is_red(store), images.labels)  # every label still belongs to its image
    assert len(data.unreadable) == 4
    for entry, start, end in zip(
        data.unreadable,
        ("train: ", "train: ", "train: ", "validation: "),
        ("b/00.png (image file is truncated", "b/20.png (of no format that Pillow reads)", "r/07.png (empty)", "r/41.png (of no format"),
        strict=True,
    ):
        assert entry.startswith(start)
        assert end in entry
    assert data.facts(data.train, "train")["unreadable"] == list(data.unreadable)
    assert data.facts(data.train, "train")["n"] == 37
    first = data.unreadable[0].removeprefix("train: ")
    for note in (f"3 of 40 images of train cannot be read and are left out, such as {first}", "1 of 8 images of validation cannot be read and is"):
        assert sum(line.startswith(f"data: {note}") for line in caplog.messages) == 1
        assert sum(line.startswith(note) for line in data.notes) == 1
    assert any("reading 56 images" in line for line in caplog.messages) != in_memory


def test_resident_and_streamed_find_the_same(damaged):
    shutil.copy(damaged / "train" / "b" / "02.png", damaged / "test" / "b" / "copy.png")
    (a, resident), (b, streamed) = (store_splits(load_images(str(damaged)), ALL, CPU, in_memory=flag, max_unreadable=0.2) for flag in (True, False))
    assert (a.notes, a.unreadable) == (b.notes, b.unreadable)
    for split in ALL:
        assert torch.equal(pixels(resident[split]), pixels(streamed[split]))
        assert torch.equal(getattr(a, split).labels, getattr(b, split).labels)
        assert [type(stores[split]).__name__ for stores in (resident, streamed)] == ["Resident", "LazyStore"]


def test_sound_data_is_stored_as_it_is_and_nothing_random_is_drawn(folder):
    before = load_images(str(folder))
    for in_memory in (True, False):
        state = torch.get_rng_state()
        data, _ = store_splits(before, ALL, CPU, in_memory=in_memory)
        assert torch.equal(torch.get_rng_state(), state)
        assert data == before  # the same splits, the same notes
        assert "unreadable" not in data.facts(data.test, "test")


@both
def test_too_many_unreadable_images_are_one_sentence(damaged, in_memory):
    data = load_images(str(damaged))
    words = r"^3 of 40 images of train \(7\.5%\) cannot be read, such as \S*b/00\.png \(.*\): .* raise --data\.max_unreadable \(now 0\.05\)$"
    with pytest.raises(UserError, match=words):
        store_splits(data, ALL, CPU, in_memory=in_memory)
    assert len(store_splits(data, ["train"], CPU, in_memory=in_memory, max_unreadable=3 / 40)[1]["train"]) == 37  # up to the limit, and no further
    with pytest.raises(UserError, match="max_unreadable"):
        store_splits(data, ["train"], CPU, in_memory=in_memory, max_unreadable=2.9 / 40)


@both
def test_no_test_image_is_left_out(damaged, in_memory, noise_image):
    truncate(damaged / "test" / "r" / "53.png", noise_image)
    with pytest.raises(UserError, match=r"^\S*test/r/53\.png \(image file is truncated .*\) cannot be read, and no test image .* remove it$"):
        store_splits(load_images(str(damaged)), ALL, CPU, in_memory=in_memory, max_unreadable=0.9)


def two_processes(context, folder, in_memory):
    """What both answer, and what each has read."""
    kinds = ("answer-0", "answer-1", "read-0", "read-1")
    for name in (*kinds, "meeting"):
        (folder / name).unlink(missing_ok=True)
    started = [context.Process(target=exec, args=(SHARED, {"folder": str(folder), "rank": rank, "in_memory": in_memory})) for rank in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    first, second, *read = ((folder / name).read_text() for name in kinds)
    return json.loads(first), json.loads(second), [text.splitlines() for text in read]


@both
def test_processes_share_the_reading_and_know_the_same(damaged, tmp_path, in_memory, forks):
    shutil.copy(damaged / "train" / "b" / "02.png", damaged / "test" / "r" / "copy.png")  # read by different processes
    data, stores = store_splits(load_images(str(damaged)), ALL, CPU, in_memory=in_memory, max_unreadable=0.2)
    found = {split: [getattr(data, split).indices.tolist(), getattr(data, split).labels.tolist(), len(store)] for split, store in stores.items()}
    assert len(data.unreadable) == 4
    assert any("is also an image of train" in note for note in data.notes)
    first, second, read = two_processes(forks, tmp_path, in_memory)
    assert first == second == [list(data.notes), list(data.unreadable), found]
    everything = sorted(str(path) for path in damaged.rglob("*.png"))
    if in_memory:
        assert sorted(read[0]) == sorted(read[1]) == everything
    else:
        assert sorted(read[0] + read[1]) == everything
        assert abs(len(read[0]) - len(read[1])) <= len(ALL)


def test_what_ends_the_run_ends_every_process(folder, tmp_path, forks, noise_image):
    truncate(folder / "test" / "r" / "53.png", noise_image)  # of the second process's share
    first, second, _ = two_processes(forks, tmp_path, False)
    assert first == second
    assert "53.png (image file is truncated" in first
    assert first.endswith("repair or remove it")


def test_a_class_that_loses_its_last_training_image(folder):
    for path in (folder / "train" / "r").iterdir():
        path.write_text("no image")
    data = load_images(str(folder))
    with pytest.raises(UserError, match="no training image of class 'r' can be read"):
        store_splits(data, ALL, CPU, max_unreadable=0.9)
    assert len(store_splits(data, ["train"], CPU, max_unreadable=0.9, labels_needed=False)[1]["train"]) == 20


@both
def test_held_out_images_that_are_in_train_are_counted(folder, in_memory):
    copied = Image.open(folder / "train" / "r" / "03.png")
    copied.save(folder / "test" / "r" / "another_name.bmp")
    shutil.copy(folder / "train" / "b" / "02.png", folder / "test" / "r" / "52.png")  # a copy is one under any label
    shutil.copy(folder / "train" / "b" / "02.png", folder / "validation" / "b" / "x.png")
    copied.putpixel((0, 0), (1, 2, 3))  # one pixel apart: another image
    copied.save(folder / "test" / "r" / "near.png")
    data, _ = store_splits(load_images(str(folder)), ALL, CPU, in_memory=in_memory)
    in_test, in_validation = (next(note for note in data.notes if f"images of {split}" in note) for split in ("test", "validation"))
    assert in_test == (
        f"2 of 11 images of test (18.2%) are also images of train, the same at 24 px pixel for pixel, such as "
        f"{folder}/test/r/52.png and {folder}/train/b/02.png"
    )
    assert in_validation.startswith("1 of 9 images of validation (11.1%) is also an image of train")
    under_another = f"1 of them has another label there, such as {folder}/test/r/52.png (r) and {folder}/train/b/02.png (b)"
    assert [note for note in data.notes if "another label" in note] == [under_another]
    # What is the same depends on the size they are used at.
    data, _ = store_splits(load_images(str(folder), image_size=1), ALL, CPU, in_memory=in_memory)
    assert any("images of test" in note and "at 1 px" in note for note in data.notes)


def test_no_digit_is_in_two_splits():
    before = load_images("digits")
    data, _ = store_splits(before, ALL, CPU)
    assert data.notes == before.notes


def test_without_the_check_nothing_is_read_before_its_turn(damaged):
    data = load_images(str(damaged))
    with pytest.raises(UserError, match=r"--data\.check false has no effect on images held in memory"):
        store_splits(data, ALL, CPU, check=False)
    unread, stores = store_splits(data, ALL, CPU, in_memory=False, check=False)
    assert len(stores["train"]) == len(unread.train) == 40
    assert any("were not read before training" in note for note in unread.notes)
    with pytest.raises(UserError, match=r"^\S*/b/00\.png is not a readable image [^\n]*$"):
        pixels(stores["train"])


def test_what_fits_is_decided_over_all_splits(folder, monkeypatch):
    data = load_images(str(folder))
    for limit, name in ((56, "Resident"), (55, "LazyStore")):
        monkeypatch.setattr(stores_module, "RESIDENT_BYTES", limit * 3 * 24 * 24)
        assert {type(store).__name__ for store in store_splits(data, ALL, CPU)[1].values()} == {name}


def test_the_size_is_found_among_the_readable(damaged):
    assert load_images(str(damaged)).image_size == 24
    for path in (damaged / "train").rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(UserError, match=r"none of 40 training images tried can be read, such as \S*00\.png \(of no format"):
        load_images(str(damaged))


def test_a_split_that_is_not_there_is_passed_over(folder):
    shutil.rmtree(folder / "validation")
    data, stores = store_splits(load_images(str(folder), validation_fraction=0), ALL, CPU)
    assert data.validation is None
    assert set(stores) == {"train", "test"}


@both
def test_parquet_rows_without_an_image(tmp_path, noise_image, in_memory, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import io

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells = []
    for i in range(40):
        noise_image(i).save(buffer := io.BytesIO(), "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    cells[4], cells[9], cells[11] = None, {"bytes": b"", "path": None}, {"bytes": cells[11]["bytes"][:300], "path": None}
    for split, rows in (("train", slice(0, 30)), ("test", slice(30, 40))):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "r"])})
        dataset = datasets.Dataset.from_dict({"image": cells[rows], "label": [i % 2 for i in range(40)][rows]}, features=features)
        (tmp_path / "p").mkdir(exist_ok=True)
        dataset.to_parquet(tmp_path / "p" / f"{split}.parquet")
    data, stores = store_splits(load_images(str(tmp_path / "p"), validation_fraction=0), ALL, CPU, in_memory=in_memory, max_unreadable=0.1)
    assert data.unreadable[:2] == ("train: row 4 of split 'train' (there is no image in it)", "train: row 9 of split 'train' (empty)")
    assert data.unreadable[2].startswith("train: row 11 of split 'train' (")
    assert torch.equal(is_red(stores["train"]), data.train.labels)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_unreadable": 1}, "--data.max_unreadable is 1: give a share"),
        ({"max_unreadable": float("nan")}, "--data.max_unreadable is nan: give a share"),
        ({"check": False, "in_memory": True}, "--data.check has no effect with --data.in_memory true"),
        ({"check": False, "max_unreadable": 0.1}, "--data.max_unreadable has no effect with --data.check false"),
        ({"name": "digits", "max_unreadable": 0.1}, "--data.max_unreadable has no effect with the bundled digits"),
    ],
)
def test_options_that_are_wrong_or_do_nothing_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ImageOptions(**{"name": "x", **options})


def test_options_say_which_images_and_how_they_are_held(folder):
    options = ImageOptions(name=str(folder), workers=1, in_memory=False)
    data, stores = store_splits(load_images(options), ALL, CPU, options)
    assert len(stores["train"]) == len(data.train) == 40
    assert type(stores["train"]).__name__ == "LazyStore"
    _, stores = store_splits(load_images(options, validation_fraction=0), ALL, CPU, options, in_memory=True)  # what differs wins
    assert type(stores["train"]).__name__ == "Resident"
