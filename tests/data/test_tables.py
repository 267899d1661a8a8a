"""Tables as people write them: no row and no class is lost, and what is wrong is named with its line."""

import pytest
from PIL import Image

from rocl_transfer import UserError
from rocl_transfer.data import load_images
from rocl_transfer.data.tables import read_csv

COUNT = 24


@pytest.fixture
def folder(tmp_path):
    for i in range(COUNT):
        image = Image.new("RGB", (10, 10), (200, 0, 0) if i % 2 else (0, 0, 200))
        image.putpixel((i % 10, i // 10), (9, 9, 9))
        image.save(tmp_path / f"{i}.png")
    return tmp_path


def rows(pattern="{i}.png,c{k}"):
    return [pattern.format(i=i, k=i % 2) for i in range(COUNT)]


def opened(folder, lines, encoding="utf-8", newline="\n", name="table.csv", **options):
    (folder / name).write_bytes(newline.join(lines).encode(encoding))
    return load_images(str(folder / name), validation_fraction=0, **options)


def right(data):
    """Every image is there once with the class of its number."""
    found = {}
    for split in (data.train, data.test):
        for at in range(len(split)):
            found[int(split.where(at).rsplit("/", 1)[1].removesuffix(".png"))] = data.class_names[split.labels[at]]
    return found == {i: f"c{i % 2}" for i in range(COUNT)}


GOOD = {
    "plain": (["file,label", *rows()], {}),
    "no header": (rows(), {}),
    "no header, spaces": (rows("{i}.png, c{k}"), {}),
    "spaces after commas": (["file, label", *rows("{i}.png, c{k}")], {}),
    "spaces everywhere": (["  file , label ", *rows(" {i}.png  , c{k}\t")], {}),
    "no-break spaces": (["file,label", *rows("{i}.png,\xa0c{k}\u200b")], {}),
    "semicolons": (["file;label", *rows("{i}.png;c{k}")], {}),
    "semicolons and decimal commas": (["file;weight;label", *rows("{i}.png;0,5;c{k}")], {}),
    "tabs": (["file\tlabel", *rows("{i}.png\tc{k}")], {}),
    "bars": (["file|label", *rows("{i}.png|c{k}")], {}),
    "blanks, no header": (rows("{i}.png c{k}"), {}),
    "what Excel writes": (["sep=;", "file;label", *rows("{i}.png;c{k}")], {}),
    "quotes": (['"file","label"', *rows('"{i}.png","c{k}"')], {}),
    "quotes after spaces": (["file, label", *rows('{i}.png, "c{k}"')], {}),
    "captions with commas and lines": (["file,label,text", *rows('{i}.png,c{k},"one, two\nthree"')], {}),
    "empty lines": (["", "file,label", "", *rows(), "", ""], {}),
    "empty cells at the end": (["file,label", *rows("{i}.png,c{k},,")], {}),
    "an empty column at the end": (["file,label,", *rows("{i}.png,c{k},")], {}),
    "an index without a name": ([",file,label", *rows("{i},{i}.png,c{k}")], {}),
    "single quotes": (["file,label", *rows("'{i}.png','c{k}'")], {}),
    "apostrophes": (["file,label,text", *rows("{i}.png,c{k},'tis one's")], {}),
    "comments above": (["# made by hand", "# twice", "file,label", *rows()], {}),
    "the header again": (["file,label", *rows()[:10], "file,label", *rows()[10:]], {}),
    "capitals": (["FILE,Label", *rows()], {}),
    "dots and backslashes": (["file,label", *rows(".\\{i}.png,c{k}")], {}),
    "labels first": (["label,file", *rows("c{k},{i}.png")], {}),
    "a column named in other capitals": (["Path,Kind,More", *rows("{i}.png,c{k},x")], {"label_column": "kind"}),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_csv_of_any_dialect_and_encoding_is_read(folder, kind, newline, encoding):
    lines, options = GOOD[kind]
    data = opened(folder, lines, encoding, newline, **options)
    assert data.class_names == ("c0", "c1")
    assert right(data)


def test_what_was_taken_for_granted_is_said(folder):
    data = opened(folder, rows("{i}.png;c{k}"))
    assert any("separated by ';'" in note for note in data.notes)
    assert any("has no header: its first line is a row" in note for note in data.notes)
    assert not any("separated" in note or "header" in note for note in opened(folder, ["file,label", *rows()]).notes)
    assert right(opened(folder, rows("{i}.png,x,c{k}"), label_column="3"))
    assert right(opened(folder, rows("{i}.png\tc{k}"), name="table.TSV"))


def test_a_first_row_is_no_header_where_its_file_is_gone(folder):
    data = opened(folder, ["gone.png,c0", *rows()])
    assert len(data.train) + len(data.test) == COUNT + 1
    assert any("has no header" in note for note in data.notes)


def test_rows_are_counted_against_lines(folder):
    table = folder / "table.csv"
    table.write_text("\n".join(["file,label", "", *rows()]))
    read = read_csv(table)
    assert (len(read.rows), read.lines[0], read.lines[-1]) == (COUNT, 3, COUNT + 2)


def edited(line, number=5):
    lines = ["file,label", *rows()]
    lines[number - 1] = line
    return lines


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            edited("3.png,"),
            r"labels are needed, and 1 of 24 images of split 'train' has none: line 5 \(\S*/3.png\): complete its cell, or remove the line",
        ),
        (edited("3.png"), r"1 of 24 images of split 'train' has none: line 5 "),
        (edited(",c1"), "line 5 of .* has no path: complete or remove it"),
        (edited("3.png,c1,dog"), "line 5 of .* has 3 cells where the first line has 2"),
        (edited("my, cat.png,c1"), "line 5 of .* has 3 cells where the first line has 2: put a cell with a separator in it into quotes"),
        (edited('"3.png,c1'), "line 5 of .* cannot be read .*: close its quotes"),
        (edited("2.png,c1"), r"lines 4 and 5 of \S*table.csv contradict each other: 2.png is labelled 'c0' and 'c1'"),
        (edited("./2.png,c1"), "lines 4 and 5 of .* contradict each other"),
        (["file,label,label", *rows("{i}.png,c{k},x")], "two columns called 'label'"),
        (["file,kind,note", *rows("{i}.png,c{k},x")], r"more than one column that could be meant \(kind, note\): name one with --data.label_column"),
        (["file", *rows("{i}.png")], "no column beside the paths"),
        (["file,id", *rows("{i}.png,x{i}")], "each of 24 images has a label of its own .*: name the column of classes with --data.label_column"),
        (
            ["file,label", *rows("x/{i}.png,c{k}")],
            r"no column of files: 'file' names x/0.png in line 2, but there is no file \S*/x/0.png: correct the paths",
        ),
        (["a,b", *rows("{i},c{k}")], "no column of files: 'a' names 0, and there is 0.png: write extensions"),
        (["a,b", *rows("x{i},c{k}")], "no column of files that exist among a, b"),
        (["file,mask,label", *rows("{i}.png,{i}.png,c{k}")], r"more than one column of files \(file, mask\)"),
        (["file,label"], "has no rows below its header"),
        ([""], "has no rows below its header"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder, lines, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        opened(folder, lines)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_named_twice_is_used_once(folder):
    data = opened(folder, [*["file,label", *rows()], "2.png,c0", "./3.png,c1"])
    assert right(data)
    assert len(data.train) + len(data.test) == COUNT
    assert any("2 lines of table.csv name files that earlier ones name, and are left out, the first is line 26" in note for note in data.notes)


def test_files_without_a_row_are_said(folder):
    data = opened(folder, ["file,label", *rows()[:20]])
    assert len(data.train) + len(data.test) == 20
    assert any("4 image files beside those listed have no row in table.csv, such as 20.png" in note for note in data.notes)


def test_split_names_in_any_spelling_are_one_split(folder):
    names = ["train", "Train ", "TRAIN", "test", "Test", ""]
    data = opened(folder, ["file,label,split", *[f"{line},{names[i % 6]}" for i, line in enumerate(rows())]])
    assert (len(data.train), len(data.test)) == (16, 8)
    assert any("4 rows of table.csv name no split and count as train" in note for note in data.notes)
    data = opened(
        folder,
        ["file,label,split", *[f"{line},{'Fold ' + 'ABC'[i % 3]}" for i, line in enumerate(rows())]],
        train_split="fold a",
        test_split="Fold C",
    )
    assert (len(data.train), len(data.test)) == (8, 8)
    assert any("split 'Fold B' (8 images) is not used" in note for note in data.notes)


def test_every_line_of_a_long_table_is_looked_at(folder):
    lines = ["file,label", *rows() * 50]
    lines[700] = "0.png,elsewhere"
    with pytest.raises(UserError, match="lines 2 and 701 of .* contradict each other: 0.png is labelled 'c0' and 'elsewhere'"):
        opened(folder, lines)


def test_lines_that_are_no_rows_and_classes_that_are_none_are_said(folder):
    data = opened(folder, ["# by hand", "file,label", *rows()[:10], "file,label", *rows("{i}.png,NaN")[10:]])
    for note in ("line 1 of table.csv is a comment and is left out", "line 13 of table.csv is the header once more and is left out",
                 "'NaN' is taken for a class: empty its cells if it says that there is no label"):  # fmt: skip
        assert note in data.notes
    assert len(data.train) + len(data.test) == COUNT


def test_classes_that_differ_in_capitals_are_said(folder):
    data = opened(folder, ["file,label", *rows("{i}.png,c{k}")[:20], *rows("{i}.png,C{k}")[20:]])
    assert data.class_names == ("C0", "C1", "c0", "c1")
    assert sum("differ only in capitals" in note for note in data.notes) == 2
