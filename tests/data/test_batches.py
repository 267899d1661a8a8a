import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rocl_transfer import UserError
from rocl_transfer.data import Batches, Resident, Sampler, generators, load_images, store_images


@settings(deadline=None, max_examples=80)
@given(st.integers(20, 300), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5), st.integers(0, 3))
def test_processes_share_what_one_would_do(num_images, group, groups_a_process, world, seed, epoch):
    group += 1
    size = group * groups_a_process
    if num_images < size * world:
        return
    one = Sampler(num_images, size * world, seed, group)
    ranks = [list(Sampler(num_images, size, seed, group, rank, world).epoch(epoch)) for rank in range(world)]
    whole = list(one.epoch(epoch))
    assert len(whole) == one.steps_per_epoch == len(ranks[0])
    for step, (positions, seeds) in enumerate(whole):
        assert torch.equal(positions, torch.cat([rank[step][0] for rank in ranks]))
        assert seeds == tuple(s for rank in ranks for s in rank[step][1])
        assert len(positions) % len(seeds) == 0
        assert len(positions) // len(seeds) >= 2
    seen = torch.cat([positions for positions, _ in whole])
    assert len(seen.unique()) == len(seen) >= num_images - 2 * groups_a_process * world


def test_an_epoch_of_the_paper_has_98_steps():
    for sampler in (Sampler(50_000, 512, 0, 256), Sampler(50_000, 256, 0, None, 1, 2)):
        batches = list(sampler.epoch(3))
        assert len(batches) == sampler.steps_per_epoch == 98
    positions, seeds = list(Sampler(50_000, 512, 0, 256).epoch(3))[-1]
    assert len(positions) == 336
    assert len(seeds) == 2  # 168 + 168
    assert len(list(Sampler(50_000, 256, 0, None, 1, 2).epoch(3))[-1][0]) == 168


def test_epochs_and_seeds_differ_and_repeat():
    draws = [next(iter(Sampler(100, 10, seed).epoch(epoch))) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(draws[0][0], draws[1][0])
    assert draws[0][1] == draws[1][1]
    assert not torch.equal(draws[0][0], draws[2][0])
    assert len({draw[1] for draw in draws}) == 3


def test_an_epoch_is_resumed_where_it_stopped():
    sampler = Sampler(100, 10, 0)
    whole, rest = list(sampler.epoch(2)), list(sampler.epoch(2, 6))
    assert [seeds for _, seeds in whole[6:]] == [seeds for _, seeds in rest]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[6:], rest, strict=True))


def test_purposes_draw_different_streams():
    a, b, c = (torch.rand(3, generator=generators((7,), purpose)[0]) for purpose in ("views", "attack", "views"))
    assert torch.equal(a, c)
    assert not torch.equal(a, b)


def test_too_few_images_and_groups_that_do_not_divide():
    with pytest.raises(UserError, match="too few"):
        Sampler(1, 10, 0)
    with pytest.raises(UserError, match="divide"):
        Sampler(100, 10, 0, 4)


def test_labels_travel_with_their_inputs():
    batches = Batches(Resident(torch.arange(50)[:, None]), torch.arange(50), Sampler(50, 8, 0))
    for batch in batches.epoch(0):
        assert torch.equal(batch.inputs[:, 0], batch.labels)


def test_streamed_batches_are_the_resident_ones(class_folder):
    data = load_images(str(class_folder))
    device, sampler = torch.device("cpu"), Sampler(len(data.train), 8, 0)
    stores = [store_images(data.train, 16, device, in_memory=flag, workers=2) for flag in (True, False)]
    assert [type(store).__name__ for store in stores] == ["Resident", "LazyStore"]
    for a, b in zip(*(Batches(store, data.train.labels, sampler).epoch(0) for store in stores), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels, b.labels)
        assert a.seeds == b.seeds
    assert type(store_images(data.train, 128, device)).__name__ == "LazyStore"  # above 96 px


HELD = """
import multiprocessing, os, sys, time, torch
from multiprocessing.process import BaseProcess
from rocl_transfer.data import load_images, store_images
signalled = sys.argv[1]
def sigterm(worker):
    os.system(f"kill -TERM {worker.pid}")  # by another process: they outlive it
def start(worker, start=BaseProcess.start):
    start(worker)
    sigterm(worker)
if signalled == "starting":
    os.register_at_fork(after_in_child=lambda: time.sleep(0.3))  # a worker that has done nothing yet
    BaseProcess.start = start
held = store_images(load_images("digits", image_size=8).train, 8, torch.device("cpu"), in_memory=False).batches(torch.arange(4).expand(99, 4))
next(held)
workers = multiprocessing.active_children()
if signalled == "running":
    [sigterm(worker) for worker in workers]
if signalled != "never":
    assert sum(len(batch) for batch in held) == 98 * 4
print(len(workers))
"""


@pytest.mark.parametrize("signalled", ["never", "starting", "running"])
def test_workers_outlive_a_signal_to_the_group_but_not_their_process(fork, tmp_path, signalled):
    (tmp_path / "held.py").write_text(HELD)
    done = fork(tmp_path, tmp_path / "held.py", signalled).communicate()
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
