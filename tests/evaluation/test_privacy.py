"""Names leave, places do not."""

import pytest

from rocl_transfer.evaluation.privacy import is_local, places, revealed, scrub, shorten

LOCAL = {
    "/home/ada/my photos": "my photos",
    "/home/ada/photos/": "photos",
    "~/photos": "photos",
    "~ada/photos": "photos",
    "../../ada/photos": "photos",
    "file:///home/ada/photos": "photos",
    "C:\\Users\\ada\\photos": "photos",
    "C:/Users/ada/photos": "photos",
    "/photos": "photos",
}
KEPT = ["digits", "uoft-cs/cifar10", "hf-hub:user/name@v1", "runs/ft", "./runs", "local-dir:runs/ft", "resnet50.a1_in1k", "mine:build", "8/255", ""]


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_path_is_shortened_to_its_name(name):
    assert is_local(name)
    assert shorten(name) == LOCAL[name]
    assert scrub({"data": {"name": name}}, places({"data": {"name": name}})) == {"data": {"name": LOCAL[name]}}


@pytest.mark.parametrize("name", KEPT)
def test_names_that_are_no_local_paths_stay(name):
    assert shorten(name) == name
    assert scrub([name]) == [name]


def test_a_folder_without_a_name_of_its_own_is_looked_up(tmp_path, monkeypatch):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos" / "deep")
    assert shorten("..") == "photos"
    assert shorten("/") == "local"


def test_local_paths_in_sentences_are_shortened(tmp_path):
    folder = tmp_path / "my photos"
    said = scrub(
        [
            f"{folder}/cats/a b.jpg (truncated), {folder}: 2 images",
            "runs/pre/model.safetensors of /home/ada/net, epsilon 8/255, and/or https://example.org/home/ada",
            "class '/m/01g317' of /m/01g317",
            12,
            None,
        ],
        [str(folder)],
    )
    assert said == [
        "my photos/cats/a b.jpg (truncated), my photos: 2 images",
        "runs/pre/model.safetensors of net, epsilon 8/255, and/or https://example.org/home/ada",
        "class '/m/01g317' of /m/01g317",
        12,
        None,
    ]


NAMES = ["/home/cat", "~dog", "/r/aww", "../up", "C:\\x", "/home/my cat", "~/x", "/m/01g317", "file:y", "$x$", "cat"]


@pytest.mark.parametrize("key", ["class_names", "label_names"])
def test_class_names_stay_whatever_they_are_and_wherever_they_stand(key):
    record = {
        "dataset": {key: NAMES},
        "report": {"classes": [{"name": name, "n": 3} for name in NAMES], "worst_class": {"name": NAMES[0], "robust": 0.0}},
        "doubts": [f"all 3 images are of one class, {name!r}: an accuracy" for name in NAMES] + [f"worst: {name}, 3 %" for name in NAMES],
    }
    assert scrub(record) == record
    assert revealed(record) is None
    assert all(revealed(f"Worst class: {name}, 3 % robust.", NAMES) is None for name in NAMES)


def test_paths_beside_class_names_stay_here():
    record = {
        "class_names": NAMES,
        "notes": ["/home/ada/cat.jpg", "/home/cat/1.jpg of '/home/cat'"],
        "config": {"label_names": "/home/ada/names.txt"},
    }
    assert scrub(record) == {"class_names": NAMES, "notes": ["cat.jpg", "1.jpg of '/home/cat'"], "config": {"label_names": "names.txt"}}
    assert revealed({"class_names": NAMES, "notes": ["/home/cat/1.jpg of '/home/cat'"]}) == "/home/cat/1.jpg"
    assert revealed("Worst class: /home/ada, 3 %", NAMES) == "/home/ada"


@pytest.mark.parametrize(
    "text", ["data:\n  name: /home/ada/photos\n", "see `~/x/y`", "['/scratch/u/net']", "C:\\Users\\ada", "file:///home/ada/x", "(/data/x/y.jpg)"]
)
def test_a_local_path_that_is_left_in_a_text_is_found(text):
    assert revealed(text) is not None


def test_what_json_holds_is_searched_apart_from_class_names():
    assert revealed({"notes": ["fine", "at /home/ada/x"], "class_names": []}) == "/home/ada/x"
    assert revealed({"notes": ["\\u00e9cole\\n", "école"], "class_names": ["/home/cat"], "n": 3}) is None


@pytest.mark.parametrize("text", ["https://huggingface.co/home/x", "8/255 and/or 1/2", "| a/b | c |", "/m/01g317", "step_size: 0.1 / 2", "~5 images"])
def test_what_is_no_path_is_not_found(text):
    assert revealed(text) is None
