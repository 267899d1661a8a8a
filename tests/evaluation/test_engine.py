"""The engine: any number of classes, the same verdicts however they are computed, every success judged, nothing lost."""

import json
import math
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from rocl_transfer import UserError, evaluate, load_classifier
from rocl_transfer.attacks import APGD, FAB, PGD, Square, frozen
from rocl_transfer.bars import Bar
from rocl_transfer.data import load_images, store_images
from rocl_transfer.evaluation import Context, Ensemble, FlipOptions, SearchOptions, borderline, named_attacks, smallest_epsilon
from rocl_transfer.evaluation import engine as engine_module
from rocl_transfer.evaluation import search_network as network_module
from rocl_transfer.evaluation.journal import Cost, Journal
from rocl_transfer.evaluation.search_network import Rates, measure, search_network
from rocl_transfer.models import add_head, create_backbone

ROOT = Path(__file__).parents[2]


def small_net(classes, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, classes)).eval()


def sample(model, count=24, size=8, seed=0):
    images = torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return images, model(images).argmax(1)


def short(epsilon, classes, norm="linf"):
    targets = min(2, classes - 1)
    parts = (APGD(epsilon, norm, 12), APGD(epsilon, norm, 12, targets=targets), FAB(epsilon, norm, 10, targets), Square(epsilon, norm, 60))
    return Ensemble("autoattack", parts, "short")


def middling(model, images, labels, norm="linf"):
    """A radius that breaks about half of the samples, so that some stand to the last attack."""
    options = FlipOptions(norm=norm, steps=10, max_epsilon=1.0 if norm == "linf" else 4.0)
    return round(float(smallest_epsilon(model, images, labels, options, precision=0.1).median()), 5)


def booleans(results):
    return [{key: value for key, value in line.items() if key not in ("margin", "broken_by")} for line in results.verdicts]


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 9, 10, 100])
def test_any_number_of_classes_runs_to_the_end_with_survivors(classes):
    model = small_net(classes)
    images, labels = sample(model, 12)
    epsilon = middling(model, images, labels)
    standard = named_attacks("standard", epsilon, "linf", classes)[0]
    assert standard.version == ("standard" if classes >= 10 else f"adapted, K = {classes}")
    assert [a.name for a in standard.attacks] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [a.runs for a in standard.attacks] == [1, min(9, classes - 1), min(9, classes - 1), 1]
    if classes not in (3, 10):  # the whole length for two of them
        standard = short(epsilon, classes)
    results = evaluate(model, images, labels, attacks=[standard])
    assert 0 < results["square"].accuracy == results["autoattack"].accuracy < 1
    falling = [results[name].accuracy for name in ("clean", "apgd-ce", "apgd-t", "fab-t", "square")]
    assert falling == sorted(falling, reverse=True)


def test_the_reference_says_that_it_cannot_do_few_classes():
    model = small_net(4)
    images, labels = sample(model, 4)
    with pytest.raises(UserError, match="fails with fewer than 10 classes"):
        evaluate(model, images, labels, search=SearchOptions(engine="reference"))


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 1.0)])
def test_verdicts_do_not_depend_on_batches_order_or_processes(norm, epsilon):
    model = load_classifier(str(ROOT / "model_cards" / "resnet8_cifar.r_le_digits"))
    data = load_images("digits", image_size=16)
    images, labels = store_images(data.test, 16, torch.device("cpu")).inputs[::12], data.test.labels[::12]
    attacks = [short(epsilon, 10, norm), PGD(epsilon, steps=5, norm=norm, restarts=2)]
    whole = evaluate(model, images, labels, attacks=attacks, search=SearchOptions(batch_size=64))
    assert 0.2 < whole["autoattack"].accuracy < 0.9
    sure = [line["index"] for line in whole.verdicts if line["index"] not in borderline(whole)["indices"]]
    assert len(sure) > 25
    verdict = f"autoattack {norm} {epsilon:.6g}"

    def verdicts(results):
        return {line["index"]: line[verdict] for line in results.verdicts}

    wanted = verdicts(whole)
    for size in (1, 7):
        other = verdicts(evaluate(model, images, labels, attacks=attacks, search=SearchOptions(batch_size=size)))
        assert [other[index] for index in sure] == [wanted[index] for index in sure]
    share = verdicts(evaluate(model, images, labels, attacks=attacks, samples=torch.arange(1, len(images), 2)))  # of the second of two processes
    assert {index: share[index] for index in sure if index % 2} == {index: wanted[index] for index in sure if index % 2}


class Dies(nn.Module):
    """Dies after so many calls."""

    def __init__(self, model, calls):
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, images):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.model(images)


def test_a_run_that_died_is_resumed_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "search_network", lambda model, *_: model)
    monkeypatch.setattr(engine_module, "measure", lambda network, images, size, *_: Rates(size, size, 1.0, 1.0))
    model = small_net(5)
    images, labels = sample(model, 20)
    attacks, search, context = [short(0.004, 5)], SearchOptions(batch_size=4), Context(journal=tmp_path / "j", identity={"model": "a"})
    wanted = evaluate(model, images, labels, attacks=attacks, search=search)
    calls, deaths = 120, 0
    while True:
        dying = Dies(model, calls)
        try:
            found = evaluate(dying, images, labels, attacks=attacks, search=search, context=context)
        except KeyboardInterrupt:
            deaths += 1
            assert deaths < 30
            continue
        break
    assert deaths > 2
    assert found.verdicts == wanted.verdicts
    assert [one.passes for one in found.evaluations] == [one.passes for one in wanted.evaluations]
    # Cut in the middle of a line, as by a kill while it was written: that line alone is done again.
    journal = tmp_path / "j" / "0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    assert evaluate(model, images, labels, attacks=attacks, search=search, context=context).verdicts == wanted.verdicts
    untouched = Dies(model, 25)  # the inspection and the clean answers
    assert evaluate(untouched, images, labels, attacks=attacks, search=search, context=context).verdicts == wanted.verdicts
    with pytest.raises(UserError, match=r"holds another evaluation \(model differ\)"):
        evaluate(model, images, labels, attacks=attacks, context=Context(journal=tmp_path / "j", identity={"model": "b"}))
    with pytest.raises(UserError, match="seed differ"):
        evaluate(model, images, labels, attacks=attacks, context=context, seed=1)
    # The same name and labels, but two of the images were changed since.
    images[:2] = images[:2].flip(3)
    with pytest.raises(UserError, match="belong to another network or other images: 2 of 20 clean images"):
        evaluate(model, images, labels, attacks=attacks, search=search, context=context)


class Holds(nn.Module):
    """A model on a device whose memory holds so many images."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.seen = model, most, 0

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        self.seen = max(self.seen, len(images))
        return self.model(images)


def test_out_of_memory_is_answered_with_smaller_batches(monkeypatch, caplog):
    model = small_net(5)
    images, labels = sample(model, 20)
    wanted = evaluate(model, images, labels, attacks=[short(0.004, 5)])
    monkeypatch.setattr(engine_module, "search_network", lambda model, *_: Holds(model, 3))
    found = evaluate(model, images, labels, attacks=[short(0.004, 5)], search=SearchOptions(batch_size=14))
    assert booleans(found) == booleans(wanted)
    assert "out of memory: continuing with 7 images at once" in caplog.text
    # Measured with one that held more than what attacks need leaves room for.
    monkeypatch.setattr(engine_module, "measure", lambda network, images, size, *_: Rates(14, 14, 1.0, 1.0))
    caplog.clear()
    assert booleans(evaluate(model, images, labels, attacks=[short(0.004, 5)], search=SearchOptions(batch_size=14))) == booleans(wanted)
    assert [record.args for record in caplog.records] == [(7,), (3,)]
    monkeypatch.setattr(engine_module, "search_network", lambda model, *_: Holds(model, 0))
    with pytest.raises(UserError, match="do not fit in memory beside the network"):
        evaluate(model, images, labels, attacks=[short(0.004, 5)], search=SearchOptions(batch_size=14))


def test_a_run_is_resumed_with_another_number_of_processes(tmp_path):
    first, second = Journal(tmp_path, {"a": 1}, 0), Journal(tmp_path, {"a": 1}, 1)
    first.write("x", [0], [0], [0.5], Cost(1.0, 10))
    second.write("x", [3], [1], [float("inf")], Cost(2.0, 30))
    first.close()
    second.close()
    alone = Journal(tmp_path, {"a": 1}, 0)
    assert [alone.margin("x", 0, 0), alone.margin("x", 3, 1), alone.margin("x", 0, 1)] == [0.5, float("inf"), None]
    assert alone.costs["x"] == Cost(2.0, 40)  # they searched side by side
    assert Journal(tmp_path, {"a": 1}, 1).costs["x"] == Cost(2.0, 0)  # one counts the passes, as those of all are added up
    older = (tmp_path / "0.jsonl").read_text().replace(', "passes": 10', "")
    (tmp_path / "0.jsonl").write_text(older)
    assert math.isnan(Journal(tmp_path, {"a": 1}, 0).costs["x"].passes)


def test_passes_per_sample_are_those_that_were_made():
    model = small_net(4)
    images, labels = sample(model, 8)
    labels[0] = (labels[0] + 1) % 4  # wrong from the start: not attacked
    pgd, parts = PGD(1e-6, steps=5, restarts=2), (APGD(1e-6, steps=3), FAB(1e-6, steps=3, targets=3), Square(1e-6, queries=10))
    results = evaluate(model, images, labels, attacks=[pgd, Ensemble("autoattack", parts, "short")])
    assert results["autoattack"].accuracy == 7 / 8
    whole = [(forward + 2 * gradient) * attack.runs for attack in (pgd, *parts) for forward, gradient in [attack.passes]]
    assert [one.passes for one in results.evaluations] == [1, *(round(passes * 7 / 8, 1) for passes in (*whole, sum(whole[1:])))]


def test_the_model_judges_what_the_search_finds(monkeypatch):
    """A search network that is wrong about everything breaks nothing on its own."""
    model = small_net(4)
    images, labels = sample(model, 8)

    class Wrong(nn.Module):
        def forward(self, images):
            return -model(images)

    monkeypatch.setattr(engine_module, "search_network", lambda *_: Wrong())
    results = evaluate(model, images, labels, attacks=[APGD(1e-6, steps=3)])
    assert results["apgd-ce"].accuracy == 1
    assert results.refuted == 8


def test_the_search_network_is_the_model(caplog, monkeypatch):
    monkeypatch.setattr(network_module, "_seconds", lambda *_: [1.0, 1.0])
    torch.manual_seed(0)
    model = add_head(create_backbone("resnet8_cifar", 16), list("abc")).eval()
    for part in model.modules():  # statistics that are not those of a new layer
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    images = torch.rand(4, 3, 16, 16)
    with frozen(model), torch.no_grad():
        network = search_network(model, images)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
        assert torch.allclose(network(images), model(images), atol=1e-4)
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())

    class Refuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

        def forward(self, images):
            return images.mean((2, 3)) if images.sum() > -1 else images

    stubborn = Refuses().eval()
    caplog.set_level("INFO", "rocl_transfer")
    with torch.no_grad():
        assert search_network(stubborn, images) is stubborn
    assert "without a channels-last network (no copies)" in caplog.text
    assert "without a folded BatchNorm network" in caplog.text

    monkeypatch.setattr(network_module, "_seconds", lambda *_: [1.0, 1.5])
    with frozen(model), torch.no_grad():
        assert search_network(model, images) is model
    assert "without a folded BatchNorm network: a pass takes 1.5 times as long here" in caplog.text


class Doubtful(nn.Module):
    """Class 1 where the mean pixel is above a half; counts the images that it sees in float32."""

    def __init__(self):
        super().__init__()
        self.weight, self.exact = nn.Parameter(torch.ones(1, 1)), 0

    def forward(self, images):
        mean = images.mean((1, 2, 3)).unsqueeze(1) @ self.weight  # rounded under autocast
        self.exact += len(images) * (mean.dtype == torch.float32)
        return torch.cat([0.5 - mean, mean - 0.5, torch.full_like(mean, -1)], 1)


def test_a_search_in_bf16_asks_float32_where_it_doubts():
    model = Doubtful().eval()
    levels = torch.tensor([0.1, 0.4, 0.49, 0.4999, 0.5001, 0.51, 0.6, 0.9])
    images = levels.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    with frozen(model):
        network = search_network(model, images, precision="bf16")
        twin = network.network
        twin.exact = network.in_bf16.exact = 0
        leaf = images.clone().requires_grad_()
        logits = network(leaf)
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
    assert twin.exact == 2  # 0.4999 and 0.5001
    assert network.in_bf16.exact == 0
    assert torch.allclose(logits[3:5], model(images[3:5]), rtol=0, atol=1e-7)
    assert logits.argmax(1).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert gradient.flatten(1).sum(1).tolist() == pytest.approx([1.0] * 8, rel=1e-2)


def test_a_search_in_bf16_finds_the_same_and_says_so():
    model = load_classifier(str(ROOT / "model_cards" / "resnet8_cifar.r_le_digits"))
    data = load_images("digits", image_size=16)
    images, labels = store_images(data.test, 16, torch.device("cpu")).inputs[::12], data.test.labels[::12]
    options = (SearchOptions(search_precision=name) for name in ("fp32", "bf16"))
    fine, rough = (evaluate(model, images, labels, attacks=[short(0.1, 10)], search=search) for search in options)
    assert abs(rough["autoattack"].accuracy - fine["autoattack"].accuracy) <= 1 / len(images)
    assert 0.2 < rough["autoattack"].accuracy < 0.9
    assert rough["clean"].accuracy == fine["clean"].accuracy
    assert rough.refuted == 0
    assert (rough["autoattack"].version, rough["square"].search_precision) == ("short, searched in bf16", "bf16")
    assert (fine["autoattack"].version, fine["square"].search_precision) == ("short", None)


def test_a_network_that_bf16_makes_another_is_not_searched_on_so():
    class Fine(nn.Module):
        def forward(self, images):
            mean = images.mean((1, 2, 3))
            if torch.is_autocast_enabled("cpu"):
                mean = mean.bfloat16()
            return torch.stack([torch.sin(1e4 * mean), torch.cos(1e4 * mean)], 1)

    class Refuses(nn.Module):
        def forward(self, images):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("no bf16 here")
            return images.mean((2, 3))

    images, labels = sample(small_net(2), 6)
    for model, sentence in ((Fine(), "of their spread: search with --search_precision fp32"), (Refuses(), r"does not run in bf16 \(no bf16 here\)")):
        with pytest.raises(UserError, match=sentence):
            evaluate(model, images, labels * 0, search=SearchOptions(search_precision="bf16"))


def test_batch_size_is_measured():
    model = small_net(3)
    with torch.no_grad():
        rates = measure(model, torch.rand(5, 3, 8, 8))
        assert rates.size >= rates.enough >= 16
        assert 0 < rates.forward < rates.gradient * 2
        assert measure(model, torch.rand(5, 3, 8, 8), 3).size == 3
        assert measure(Holds(model, 5), torch.rand(5, 3, 8, 8)).size == 4
        assert measure(Holds(model, 40), torch.rand(5, 3, 8, 8)).size == 16  # 32 would go, but attacks hold more
        with pytest.raises(UserError, match="does not fit in memory"):
            measure(Holds(model, 0), torch.rand(5, 3, 8, 8))


def test_verdicts_say_what_broke_the_sample():
    model = small_net(5)
    images, labels = sample(model, 16)
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 5
    results = evaluate(model, images, labels, attacks=[short(0.004, 5)])
    for line in results.verdicts:
        by = line.get("broken_by")
        assert (by is None) == line["autoattack linf 0.004"] == (line["margin"] >= 0)
        if by not in (None, "clean"):
            assert line[by] is False
            assert line["clean"]
    assert results.verdicts[0]["broken_by"] == "clean"
    assert json.loads(json.dumps(results.verdicts)) == results.verdicts


@pytest.mark.parametrize("batch_size", [3, 64])
def test_the_bar_moves_by_images_and_keeps_its_total(monkeypatch, tmp_path, batch_size):
    seen = []

    class Watched(Bar):
        def to(self, done, **numbers):
            super().to(done, **numbers)
            seen.append((self.total, self.done))

    monkeypatch.setattr(engine_module, "Bar", Watched)
    monkeypatch.setattr(engine_module, "_HELD", 10)  # three chunks
    model = small_net(4)
    images, labels = sample(model, 24)
    labels[::5] = (labels[::5] + 1) % 4  # wrong from the start
    epsilon = middling(model, images, labels)
    attacks = [short(epsilon, 4), PGD(epsilon, steps=5, restarts=2)]
    context = Context(journal=tmp_path / "j", identity={"model": "a"})
    options = {"attacks": attacks, "search": SearchOptions(batch_size=batch_size), "context": context}
    results = evaluate(model, images, labels, **options)
    assert 0 < results["autoattack"].accuracy < results["clean"].accuracy < 1
    done = [images_done for _, images_done in seen]
    assert {total for total, _ in seen} == {24}
    assert done == sorted(done)
    assert done[-1] == pytest.approx(24)
    assert max(after - before for before, after in pairwise(done)) < 9  # less than a chunk at once: what an attack broke counts when it ends
    assert len(set(done)) > 60
    seen.clear()
    evaluate(model, images, labels, **options)  # resumed, when all is found
    assert seen[-1] == (24, pytest.approx(24))
    assert len(seen) < 30


class Leaves(nn.Module):
    """A model on a device whose memory is full from ``most`` images on; what it held then is still held where its traceback is."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.held = model, most, []

    def forward(self, images):
        if len(images) > self.most:
            activation = images.clone()
            self.held.append(weakref.ref(activation))
            raise torch.OutOfMemoryError
        return self.model(images)


def test_memory_goes_back_only_when_nothing_holds_it_any_more(monkeypatch):
    model = small_net(5)
    images, labels = sample(model, 20)
    full, emptied = Leaves(model, 3), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append([reference() for reference in full.held]))
    assert measure(full, images).size < 4
    measured = len(emptied)
    assert measured > 0
    monkeypatch.setattr(engine_module, "search_network", lambda model, *_: full)
    monkeypatch.setattr(engine_module, "measure", lambda network, images, size, *_: Rates(14, 14, 1.0, 1.0))
    evaluate(model, images, labels, attacks=[short(0.004, 5)], search=SearchOptions(batch_size=14))
    assert len(emptied) == measured + 2
    assert all(held is None for references in emptied for held in references)
