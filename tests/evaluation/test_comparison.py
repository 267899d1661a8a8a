"""Intervals and p-values against published examples, enumeration and simulation; comparisons against hand-made verdicts."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from rocl_transfer import PGD, UserError, evaluate
from rocl_transfer.evaluation.comparison.compare import compare
from rocl_transfer.evaluation.comparison.evaluated_run import read_run
from rocl_transfer.evaluation.comparison.paired import holm, mcnemar_p, tango_interval

Z90, Z95 = 1.644854, 1.959964


@pytest.mark.parametrize(
    ("second", "first", "n", "z", "published"),
    [
        (9, 3, 32, Z95, (-0.027, 0.390)),  # Tango 1998, as in the tests of R's ratesci
        (0, 1, 44, Z90, (-0.096, 0.037)),  # Tango 1998, as in the tests of R's ratesci
        (16, 8, 86, Z95, (-0.020, 0.207)),  # Agresti and Min 2005, as in the tests of R's ratesci
        (1, 7, 21, Z95, (-0.517, -0.026)),  # Fagerland, Lydersen and Laake 2014, as in the source of R's ratesci
    ],
)
def test_published_intervals(second, first, n, z, published):
    assert tango_interval(first, second, n, z) == pytest.approx(published, abs=5e-4)


def likeliest_score(second, first, n, delta):
    """Tango's statistic with the constrained likelihood maximised by trying."""
    shares = np.linspace(max(0, -delta), (1 - delta) / 2, 50_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = ((second, shares + delta), (first, shares), (n - first - second, 1 - delta - 2 * shares))
        likelihood = sum((count * np.log(share) for count, share in terms if count), np.zeros_like(shares))
    share = shares[np.argmax(likelihood)]
    return ((second - first) / n - delta) / math.sqrt((2 * share + delta - delta**2) / n)


@pytest.mark.parametrize("counts", [(9, 3, 32), (0, 7, 30), (1, 0, 10), (5, 5, 10), (300, 260, 2000), (20, 1, 25)])
def test_the_interval_is_what_a_score_test_does_not_reject(counts):
    second, first, n = counts
    low, high = tango_interval(first, second, n)
    for delta in np.linspace(-0.995, 0.995, 120):
        if min(abs(delta - low), abs(delta - high)) > 2e-3:
            assert (abs(likeliest_score(second, first, n, delta)) <= Z95) == (low < delta < high), delta
    assert likeliest_score(second, first, n, low) == pytest.approx(Z95, rel=2e-3)
    assert likeliest_score(second, first, n, high) == pytest.approx(-Z95, rel=2e-3)


def test_tango_intervals_at_the_edges():
    n = 100
    assert tango_interval(0, 0, n) == pytest.approx((-(Z95**2) / (n + Z95**2), Z95**2 / (n + Z95**2)), abs=1e-12)
    assert tango_interval(0, 12, 12)[1] == 1
    assert tango_interval(12, 0, 12)[0] == -1
    for first, second, count in ((0, 0, 1), (1, 0, 1), (0, 1, 2), (400_000, 401_000, 1_000_000)):
        low, high = tango_interval(first, second, count)
        assert -1 <= low <= (second - first) / count <= high <= 1
        assert low < high


@pytest.mark.parametrize(("first", "second", "n"), [(9, 3, 32), (0, 7, 30), (0, 0, 5), (5, 5, 10), (123, 456, 10_000)])
def test_swapping_the_runs_flips_the_signs(first, second, n):
    low, high = tango_interval(first, second, n)
    assert tango_interval(second, first, n) == (-high, -low)
    assert mcnemar_p(first, second) == mcnemar_p(second, first)


def test_the_interval_is_the_bootstraps_where_samples_are_many():
    rng = np.random.default_rng(0)
    n, shares = 4000, [0.07, 0.04, 0.89]
    draws = rng.multinomial(n, shares, 20_000)
    low, high = np.quantile((draws[:, 1] - draws[:, 0]) / n, [0.025, 0.975])
    assert tango_interval(280, 160, n) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(("first", "second"), [(0.05, 0.05), (0.02, 0.08), (0.005, 0.005), (0.3, 0.1)])
def test_tango_intervals_cover_95_percent_of_simulated_pairs(first, second):
    """Of 95 %, give or take four standard errors of the simulation and the method's own small error."""
    draws = np.random.default_rng(1).multinomial(360, [first, second, 1 - first - second], 4000)
    tables, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    covered = sum(count for (a, b), count in zip(tables.tolist(), times, strict=True) if within(second - first, tango_interval(a, b, 360)))
    assert 0.93 < covered / 4000 < 0.975


def within(value, interval):
    return interval[0] <= value <= interval[1]


def test_tango_intervals_cover_95_percent_of_every_table_of_30():
    """Every table of 30 samples: 95 % on average, and never far below."""
    n = 30
    tables = [(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)]
    intervals = [tango_interval(a, b, n) for a, b, _ in tables]
    ways = [math.factorial(n) // math.prod(map(math.factorial, table)) for table in tables]
    coverage = []
    for first, second in itertools.product([0.03, 0.1, 0.2, 0.35], repeat=2):
        chances = [way * first**a * second**b * (1 - first - second) ** c for way, (a, b, c) in zip(ways, tables, strict=True)]
        assert sum(chances) == pytest.approx(1)
        coverage.append(sum(chance for chance, ends in zip(chances, intervals, strict=True) if within(second - first, ends)))
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.93


def exact_p(first, second):
    n = first + second
    return min(Fraction(1), 2 * sum(Fraction(math.comb(n, k), 2**n) for k in range(min(first, second) + 1)))


def test_mcnemars_p_is_the_exact_binomial_sum():
    for first, second in itertools.product(range(31), repeat=2):
        assert mcnemar_p(first, second) == pytest.approx(float(exact_p(first, second)), rel=1e-11)
    assert mcnemar_p(1, 7) == pytest.approx(0.0703125)  # 18 / 256; Bentur's table in Fagerland, Lydersen and Laake 2013
    assert mcnemar_p(12, 2) == pytest.approx(0.0129, abs=5e-5)  # Armitage and Berry 1994, as in StatsDirect's help
    assert mcnemar_p(0, 0) == 1


def test_mcnemars_p_holds_for_a_million_samples():
    assert mcnemar_p(0, 1000) == pytest.approx(2.0**-999, rel=1e-9)
    assert mcnemar_p(400, 600) == pytest.approx(float(exact_p(400, 600)), rel=1e-9)
    assert mcnemar_p(0, 1_000_000) == 0
    assert mcnemar_p(100_000, 100_002) == pytest.approx(float(1 - Fraction(math.comb(200_002, 100_001), 2**200_002)), rel=1e-9)
    assert mcnemar_p(500_000, 500_001) == 1
    # At a million the normal distribution is near, with the correction for continuity.
    assert mcnemar_p(499_000, 501_000) == pytest.approx(math.erfc((1000 - 0.5) / 500 / math.sqrt(2)), rel=1e-5)


def test_mcnemars_p_equals_scipys():
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((3, 17), (480, 520), (49_700, 50_300), (499_000, 501_000), (495_000, 505_000), (100, 3000)):
        assert mcnemar_p(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-6)


def test_holm_is_the_closure_of_bonferroni():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4]) == [0.4]
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 6):
        p = (rng.random(n) ** 3).round(2).tolist()
        sets = [chosen for size in range(1, n + 1) for chosen in itertools.combinations(range(n), size)]
        closed = [max(min(1, len(chosen) * min(p[j] for j in chosen)) for chosen in sets if i in chosen) for i in range(n)]
        assert holm(p) == pytest.approx(closed)


# Runs.


def make_run(folder, verdicts, *, labels=None, index=None, sha="a", evaluations=(), more=None, **dataset):
    """A run folder whose model answers as ``verdicts``, {evaluation: string of 0 and 1}, say."""
    folder.mkdir(parents=True)
    n = len(next(iter(verdicts.values())))
    labels, index = labels or [i % 3 for i in range(n)], index or range(n)
    lines = [
        {"index": i, "label": label, **{key: text[k] == "1" for key, text in verdicts.items()}, **(more or {})}
        for k, (i, label) in enumerate(zip(index, labels, strict=True))
    ]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {
        "model": {"name": f"net.{folder.name}", "sha256": sha * 64},
        "dataset": {"name": "digits", "revision": None, "split": "test", "n": n, **dataset},
        "evaluations": list(evaluations),
    }
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def test_a_comparison_of_ten_samples_equals_the_one_by_hand(tmp_path):
    one = make_run(tmp_path / "one", {"clean": "1111100000", "pgd-20 linf 0.1": "1000000000"}, more={"broken_by": "apgd-t", "margin": -0.1})
    two = make_run(tmp_path / "two", {"pgd-20 linf 0.1": "0111111111", "clean": "0111110000"}, sha="b", more={"sure": None})
    comparison = compare([read_run(one), read_run(two)])
    clean, pgd = comparison.differences
    assert (clean.evaluation, clean.first, clean.second, clean.n) == ("clean", "A", "B", 10)
    assert clean.accuracy == (0.5, 0.5)
    assert (clean.only_first, clean.only_second) == ((0,), (5,))
    assert (clean.difference, clean.p, clean.p_holm, clean.conclusion) == (0, 1, 1, "no difference shown")
    assert pgd.accuracy == pytest.approx((0.1, 0.9))
    assert (pgd.only_first, pgd.only_second) == ((0,), tuple(range(1, 10)))
    assert pgd.difference == pytest.approx(0.8)
    assert pgd.p == pytest.approx(22 / 1024)
    assert pgd.p_holm == pytest.approx(44 / 1024)
    assert pgd.interval == tango_interval(1, 9, 10)
    assert pgd.conclusion == "better"
    assert comparison.notes == ()

    back = compare([read_run(two), read_run(one)])
    assert [d.evaluation for d in back.differences] == ["pgd-20 linf 0.1", "clean"]
    worse = back.differences[0]
    assert worse.conclusion == "worse"
    assert worse.difference == -pgd.difference
    assert worse.interval == (-pgd.interval[1], -pgd.interval[0])
    assert (worse.p, worse.only_first, worse.only_second) == (pgd.p, pgd.only_second, pgd.only_first)


def test_models_that_count_the_same_classes_in_another_order_are_compared_by_name(tmp_path):
    labels, names = [0, 1, 2, 0, 1], ["cat", "dog", "eel"]
    numbers = {"same": names, "turned": names[::-1], "more": ["ant", *names, "fox"]}
    runs = {
        name: make_run(tmp_path / name, {"clean": "11100"}, labels=[order.index(names[label]) for label in labels], sha=name[0], class_names=order)
        for name, order in numbers.items()
    }
    for pair in itertools.permutations(runs, 2):
        assert compare([read_run(runs[name]) for name in pair]).differences[0].n == 5
    other = make_run(tmp_path / "other", {"clean": "11100"}, labels=labels, class_names=names[::-1])
    with pytest.raises(UserError, match=r"\(sample 0 has the labels 'cat' and 'eel'\): compare runs measured on the same images"):
        compare([read_run(runs["same"]), read_run(other)])
    # Without names, or with those of another language, numbers are all there is.
    for number, foreign in enumerate((None, ["Katze", "Hund", "Aal"], ["a", "a", "b"], ["a"], "cat", [1, 2, 3])):
        unnamed = read_run(make_run(tmp_path / f"unnamed {number}", {"clean": "11100"}, labels=labels, class_names=foreign))
        assert compare([read_run(runs["same"]), unnamed]).differences[0].n == 5
        with pytest.raises(UserError, match=r"\(sample 0 has the labels 0 and 2\)"):
            compare([unnamed, read_run(runs["turned"])])


def test_pairs_and_the_adjustment_for_them(tmp_path):
    runs = [read_run(make_run(tmp_path / text, {"clean": text}, sha=text[0])) for text in ("00000000", "11111111", "00001111", "11111110")]
    against_first = compare(runs).differences
    assert [(d.first, d.second) for d in against_first] == [("A", "B"), ("A", "C"), ("A", "D")]
    every = compare(runs, all_pairs=True).differences
    assert [(d.first, d.second) for d in every] == list(itertools.combinations("ABCD", 2))
    assert every[0].p == against_first[0].p == pytest.approx(2 / 256)
    assert (against_first[0].p_holm, every[0].p_holm) == (pytest.approx(6 / 256), pytest.approx(12 / 256))
    # D's p of 2 / 128 stands against three comparisons, and not against six.
    assert [against_first[2].conclusion, every[2].conclusion] == ["better", "no difference shown"]
    assert every[0].conclusion == "better"


def test_a_small_difference_that_is_shown(tmp_path):
    one, two = (read_run(make_run(tmp_path / str(right), {"clean": "1" * right + "0" * (500 - right)}, sha=str(right)[0])) for right in (400, 410))
    assert [compare(pair).differences[0].conclusion for pair in ((one, two), (two, one))] == ["better", "worse"]


def test_samples_that_only_some_runs_have(tmp_path):
    """Matched by index, whatever the order of the lines; what is left out is counted."""
    one = make_run(tmp_path / "one", {"clean": "110010"}, labels=[5, 4, 3, 2, 1, 0], index=[5, 4, 3, 2, 1, 0])
    two = make_run(tmp_path / "two", {"clean": "0101"}, labels=[2, 3, 4, 9], index=[2, 3, 4, 9], sha="b")
    comparison = compare([read_run(one), read_run(two)])
    assert comparison.left_out == {"A": 3, "B": 1}
    [clean] = comparison.differences
    assert (clean.n, clean.only_first, clean.only_second) == (3, (4,), (3,))
    assert comparison.notes[0] == "A: 3 of 6 samples are left out, for not every run has them"
    assert comparison.notes[1] == "B: 1 of 4 samples is left out, for not every run has them"


def test_a_comparison_notes_what_differs_between_the_runs(tmp_path):
    def entry(**changed):
        return {"name": "pgd-20", "norm": "linf", "epsilon": 8 / 255, "step_size": 0.003, "accuracy": 0.5, "n": 4, "seconds": 1, **changed}

    key = "pgd-20 linf 0.0313725"
    one = make_run(tmp_path / "one", {"clean": "1110", key: "1010"}, evaluations=[entry()])
    two = make_run(tmp_path / "two", {"clean": "1101", key: "1110"}, evaluations=[entry(step_size=0.01, accuracy=0.75, seconds=2)])
    three = make_run(tmp_path / "three", {"clean": "1100"}, sha="b", evaluations=[entry(name="clean", epsilon=None, n=400, accuracy=0.9)])
    first, second = compare([read_run(one), read_run(two)]).notes
    assert "A and B are the same model (sha256 aaaaaaaaaaaa)" in first
    assert second == f"'{key}' was not measured alike: step_size is 0.003 for A, 0.01 for B"
    notes = compare([read_run(one), read_run(three)]).notes
    assert notes == (f"'{key}' is left out: it was not measured for B", "B: results.json has n = 400 under 'clean', verdicts.jsonl has 4 samples")


class Line(nn.Module):
    def __init__(self, level):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, images):
        margin = images.mean((1, 2, 3)) - self.level
        return torch.stack([-margin, margin], 1)


def test_what_evaluate_writes_is_what_is_read(tmp_path):
    levels = torch.linspace(0.2, 0.8, 31)
    images, labels = levels.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), (levels > 0.51).long()
    for name, level in (("true", 0.51), ("off", 0.61)):
        results = evaluate(Line(level), images, labels, attacks=[PGD(0.03, steps=3), PGD(0.05, steps=3)])
        (tmp_path / name).mkdir()
        described = {"name": name, "sha256": name}
        results.write(tmp_path / name, model=described, dataset={"name": "d", "revision": None, "split": "s"}, training={}, config={})
    comparison = compare([read_run(tmp_path / "true"), read_run(tmp_path / "off")])
    assert [d.evaluation for d in comparison.differences] == ["clean", "pgd-3 linf 0.03", "pgd-3 linf 0.05"]
    assert comparison.differences[0].only_first == tuple(np.flatnonzero((levels > 0.51) & (levels < 0.61)).tolist())
    assert comparison.differences[0].only_second == ()
    assert comparison.notes == ()
    json.dumps(comparison.record())


LINES = ['{"index": 0, "label": 1, "clean": true}', '{"index": 1, "label": 1, "clean": false}']
DAMAGES = {
    "no JSON": ([*LINES, '{"index": 2, "lab'], "line 3, is not a JSON object: evaluate the run again"),
    "an empty line": ([LINES[0], "", LINES[1]], "line 2, is not a JSON object"),
    "a list": (["[1, 2]"], "line 1, is not a JSON object"),
    "an index twice": ([*LINES, LINES[0]], "line 3, has the index 0 of line 1"),
    "no index": (['{"label": 1, "clean": true}'], "line 1, has no whole number as index"),
    "a label that is no number": ([LINES[0], '{"index": 1, "label": "b", "clean": true}'], "line 2, has no whole number as label"),
    "an index that is true": (['{"index": true, "label": 1, "clean": true}'], "line 1, has no whole number as index"),
    "a huge index": ([f'{{"index": {2**70}, "label": 1, "clean": true}}'], "line 1, has no whole number as index"),
    "a missing verdict": ([*LINES, '{"index": 2, "label": 1}'], "line 3, has no verdict, true or false, for 'clean'"),
    "a verdict that is null": ([*LINES, '{"index": 2, "label": 1, "clean": null}'], "line 3, has no verdict, true or false, for 'clean'"),
    "a verdict more": ([*LINES, '{"index": 2, "label": 1, "clean": true, "x": true}'], "line 3, has a verdict for 'x', which line 1 has not"),
    "no verdicts": (['{"index": 0, "label": 1, "margin": 0.5}'], "line 1, has no verdict, true or false:"),
    "nothing": ([], "is empty"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_verdicts_are_named_with_their_line(tmp_path, damage):
    lines, sentence = DAMAGES[damage]
    folder = make_run(tmp_path / "run", {"clean": "11"})
    (folder / "verdicts.jsonl").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(UserError) as refused:
        read_run(folder)
    assert str(folder / "verdicts.jsonl") in str(refused.value)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", '"x"', "{}", '{"model": {}, "dataset": {"name": "d"}, "evaluations": []}', '{"model": 1, "dataset": 2, "evaluations": 3}']
)
def test_a_record_that_cannot_be_read_is_refused(tmp_path, text):
    folder = make_run(tmp_path / "run", {"clean": "11"})
    (folder / "results.json").write_text(text)
    with pytest.raises(UserError, match="results.json cannot be read as the record of an evaluation"):
        read_run(folder)


def test_verdicts_that_are_no_text_are_refused(tmp_path):
    folder = make_run(tmp_path / "run", {"clean": "11"})
    (folder / "verdicts.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="line 1, is not a JSON object"):
        read_run(folder)


def test_a_record_and_verdicts_of_different_evaluations(tmp_path):
    folder = make_run(tmp_path / "run", {"clean": "1100"}, evaluations=[{"name": "clean", "accuracy": 0.75, "n": 4}])
    with pytest.raises(UserError, match=r"counts 3 samples right under 'clean' and verdicts.jsonl 2: they are of different evaluations"):
        read_run(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "cifar10"}, "measured on different data (the dataset's name: digits and cifar10)"),
        ({"revision": "abc"}, "(the dataset's revision: None and abc)"),
        ({"split": "validation"}, "(the dataset's split: test and validation)"),
        ({"cut": "f0"}, "(the dataset's cut: e1 and f0)"),
        ({"labels": [0, 1, 2, 1]}, "(sample 3 has the labels 0 and 1)"),
        ({"index": [4, 5, 6, 7]}, "have no sample in common"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, changes, sentence):
    one = make_run(tmp_path / "one", {"clean": "1100"}, cut="e1")
    two = make_run(tmp_path / "two", {"clean": "1100"}, **{"cut": "e1", **changes})
    with pytest.raises(UserError) as refused:
        compare([read_run(one), read_run(two)])
    assert sentence in str(refused.value)


def test_runs_without_a_common_evaluation(tmp_path):
    one, two = (read_run(make_run(tmp_path / key, {key: "1100"})) for key in ("clean", "blurred"))
    with pytest.raises(UserError, match=r"share no evaluation \(.*: clean; .*: blurred\): evaluate them under the same attacks"):
        compare([one, two])


def test_a_record_from_before_doubts_is_doubted_by_its_verdicts(tmp_path):
    one = make_run(tmp_path / "one", {"clean": "1000" * 10})
    two = make_run(tmp_path / "two", {"clean": "1110" * 10}, sha="b")
    (note,) = compare([read_run(one), read_run(two)]).notes
    assert note.startswith("A is doubtful: clean accuracy is not above guessing: 25.00 %, interval 14.2-40.2 % of 40 images, guessing 33.33 %, 0 for")


def test_what_is_no_difference_between_datasets(tmp_path):
    """A slash at the end of a path, and a record made before cuts were recorded."""
    one = make_run(tmp_path / "one", {"clean": "1100"}, name="data/x/", cut="e1")
    two = make_run(tmp_path / "two", {"clean": "1100"}, name="data/x", sha="b")
    assert compare([read_run(one), read_run(two)]).notes == ()
