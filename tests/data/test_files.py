import pytest
import torch
from safetensors.torch import save_file

from rocl_transfer import UserError
from rocl_transfer.data import load_images, store_images


@pytest.fixture
def table(tmp_path, noise_image):
    (tmp_path / "pics").mkdir()
    lines = ["file,kind,note"]
    for i in range(24):
        noise_image(i).save(tmp_path / "pics" / f"{i}.png")
        lines.append(f"pics/{i}.png,{('blue', 'red')[i % 2]},x")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_of_paths_and_labels(table):
    with pytest.raises(UserError, match="labels are needed"):
        load_images(str(table))  # kind or note could be meant
    data = load_images(str(table), label_column="kind")
    assert data.class_names == ("blue", "red")
    pixels = store_images(data.train, 20, torch.device("cpu")).inputs.float().mean((2, 3))
    assert torch.equal(pixels[:, 0] > pixels[:, 2], data.train.labels.bool())


def test_a_csv_may_name_splits_and_numbers_sort_as_numbers(table):
    lines = table.read_text().splitlines()
    kept = ["file,label,split"] + [f"{line.split(',')[0]},{i % 12},{'test' if i < 12 else 'train'}" for i, line in enumerate(lines[1:])]
    table.write_text("\n".join(kept))
    data = load_images(str(table), validation_fraction=0)
    assert (len(data.train), len(data.test)) == (12, 12)
    assert data.class_names == tuple(str(i) for i in range(12))


@pytest.mark.parametrize(
    ("edit", "options", "sentence"),
    [
        (lambda text: text.replace("pics/3.png", ""), {"label_column": "kind"}, "line 5 of .* has no path"),
        (lambda text: text.replace("3.png,red", "3.png,"), {"label_column": "kind"}, "labels are needed"),
        (lambda text: text.replace(",x", "," + "x" * 300), {"label_column": "kind", "image_column": "note"}, "not a readable image"),
        (lambda text: text, {"label_column": "kin"}, "no column 'kin'; did you mean 'kind'"),
        (lambda text: text.replace("pics/", "nowhere/"), {}, "no column of files"),
        (lambda text: "file,kind\n", {}, "no rows"),
        (lambda text: text.replace("pics/3.png", "pics/99.png"), {"label_column": "kind"}, "99.png: there is no such file"),
    ],
)
def test_a_wrong_csv_is_one_sentence(table, edit, options, sentence):
    table.write_text(edit(table.read_text()))
    with pytest.raises(UserError, match=sentence):
        store_images(load_images(str(table), image_size=20, validation_fraction=0, **options).train, 20, torch.device("cpu"))


@pytest.mark.parametrize("channels", [1, 3])
def test_safetensors_of_images(tmp_path, channels):
    images = torch.randint(0, 256, (30, channels, 10, 10), dtype=torch.uint8)
    save_file({"images": images, "labels": torch.arange(30) % 3}, tmp_path / "data.safetensors")
    data = load_images(str(tmp_path / "data.safetensors"), validation_fraction=0)
    assert data.image_size == 10
    assert data.class_names == ("0", "1", "2")
    inputs = store_images(data.train, 10, torch.device("cpu")).inputs
    assert torch.equal(inputs, images[torch.from_numpy(data.train.indices)].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    "tensors",
    [{"x": torch.zeros(3)}, {"images": torch.zeros(3, 3, 4, 4)}, {"images": torch.zeros(3, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(2)}],
)
def test_other_safetensors_are_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "data.safetensors")
    with pytest.raises(UserError, match="must hold|must be"):
        load_images(str(tmp_path / "data.safetensors"))


def test_labels_of_thousands_of_digits_are_names(table):
    table.write_text(table.read_text().replace("blue", "1" * 5000))
    assert load_images(str(table), label_column="kind").class_names == ("1" * 5000, "red")
