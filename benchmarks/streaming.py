"""Data larger than memory: throughput a core, and whether memory stays flat over an epoch.

    python benchmarks/streaming.py --folder NEW_FOLDER [--images 50000] [--layout parquet|webdataset|folder] [--workers 2] [--size 224] [--stream]

Writes JPEGs of 500 x 375 px into the folder (256 different pictures in turn, a row each), prepares and reads them as a recipe does: once for the
check, once in the order of an epoch. --stream reads them as data that does not fit the disk, in the order of the shards. Memory is the processes'
share of what the kernel cannot take back (anonymous and shared memory, PSS); the pages of the memory-mapped files, which it can, are beside it.
Seconds of CPU are those of all processes, so other work on the machine does not count.
"""

import argparse
import io
import multiprocessing
import os
import resource
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

WIDTH, HEIGHT, PICTURES, ROWS, BATCH, POINTS = 500, 375, 256, 2500, 256, 10


def picture(seed: int) -> bytes:
    """A JPEG with a photograph's spectrum: amplitudes that fall with the frequency, colours that go together."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]) + 1 / WIDTH
    planes = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH))) / frequency, (HEIGHT, WIDTH)) for _ in range(3)]
    mixed = np.stack([planes[0] + 0.3 * planes[0].std() / plane.std() * plane for plane in planes], axis=2)
    pixels = 128 + mixed * (50 / mixed.std()) + rng.normal(0, 2, mixed.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer := io.BytesIO(), "JPEG", quality=80)
    return buffer.getvalue()


def write(folder: Path, images: int, layout: str) -> None:
    pictures = [picture(seed) for seed in range(PICTURES)]
    print(f"JPEGs of {np.mean([len(data) for data in pictures]) / 1e3:.0f} kB, from {min(map(len, pictures))} to {max(map(len, pictures))} bytes")
    for first in range(0, images, ROWS):
        numbers = range(first, min(first + ROWS, images))
        if layout == "parquet":
            import datasets

            features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
            rows = {"image": [{"bytes": pictures[n % PICTURES], "path": None} for n in numbers], "label": [n % 100 for n in numbers]}
            folder.mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"train-{first:07}.parquet", batch_size=100)
        elif layout == "webdataset":
            folder.mkdir(exist_ok=True)
            with tarfile.open(folder / f"train-{first:07}.tar", "w") as shard:
                for number in numbers:
                    for extension, data in (("jpg", pictures[number % PICTURES]), ("cls", str(number % 100).encode())):
                        entry = tarfile.TarInfo(f"{number:07}.{extension}")
                        entry.size = len(data)
                        shard.addfile(entry, io.BytesIO(data))
        else:
            for number in numbers:
                place = folder / f"class-{number % 100:02}"
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number:07}.jpg").write_bytes(pictures[number % PICTURES])


def memory() -> tuple[float, float, float, int]:
    """MB of the main process, of its workers together and of mapped files of all; open file descriptors of the main process."""
    children = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    held, mapped = [], 0
    for pid in (os.getpid(), *children):
        fields = {line.split()[0]: int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]}
        held.append(fields["Pss_Anon:"] + fields["Pss_Shmem:"])
        mapped += fields["Pss_File:"]
    return held[0] / 1e3, sum(held[1:]) / 1e3, mapped / 1e3, len(list(Path("/proc/self/fd").iterdir()))


def cpu() -> float:
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def measured(name: str, count: int, began: float, spent: float) -> None:
    seconds, core = time.perf_counter() - began, cpu() - spent
    print(f"{name}: {count:,} images in {seconds:.0f} s, {count / seconds:.0f} images/s; {count / core:.0f} images/s a core ({core:.0f} s of CPU)")


def decoding(images, size: int, count: int = 1000) -> None:
    """Where the time of one image goes, in this process, without workers."""
    from rocl_transfer.data.decode import decode, open_image, to_rgb

    torch.set_num_threads(1)
    spent = np.zeros(3)
    for position in torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count].tolist():
        marks = [time.process_time()]
        encoded = images.encoded(position)
        marks.append(time.process_time())
        to_rgb(open_image(encoded, ""))
        marks.append(time.process_time())
        decode(encoded, size, "")
        spent += np.diff([*marks, time.process_time()])
    fetch, jpeg, all_of_it = spent / min(count, len(images)) * 1e3
    print(f"an image: {fetch:.2f} ms to fetch, {all_of_it:.2f} ms to decode to {size} px, of which {jpeg:.2f} ms are the JPEG's")


def reduced(size: int) -> None:
    """What decoding at a reduced scale of the JPEG's own (Pillow's draft) would save and change; the package does not use it."""
    from rocl_transfer.data.decode import decode

    for name, times in (("500 x 375", 1), ("4000 x 3000", 8)):
        took, apart = np.zeros(2), []
        for seed in range(8):
            data = picture(seed)
            if times > 1:
                large = Image.open(io.BytesIO(data)).resize((WIDTH * times, HEIGHT * times), Image.Resampling.BICUBIC)
                large.save(buffer := io.BytesIO(), "JPEG", quality=88)
                data = buffer.getvalue()
            marks = [time.process_time()]
            whole = decode(data, size, "")
            marks.append(time.process_time())
            small = Image.open(io.BytesIO(data))
            small.draft("RGB", (-(-size * WIDTH // HEIGHT), size))
            less = decode(np.asarray(small), size, "")
            took += np.diff([*marks, time.process_time()])
            apart.append((whole.int() - less.int()).abs().float())
        off = torch.stack(apart)
        print(f"{name} px to {size} px: {took[0] / 8e-3:.1f} ms, at reduced scale {took[1] / 8e-3:.1f} ms;", end=" ")
        print(f"pixels differ by {off.mean():.2f} of 255 on average, by up to {off.max():.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--layout", choices=["parquet", "webdataset", "folder"], default="parquet")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--stream", action="store_true", help="do not prepare and check the data, but read its shards as they are")
    parser.add_argument("--reduced", action="store_true", help="only what Pillow's draft would save and change")
    options = parser.parse_args()
    if options.reduced:
        for size in (32, 96, options.size):
            reduced(size)
        return
    os.environ["HF_HOME"] = str(options.folder / "cache")  # before datasets is imported
    from rocl_transfer.data import Batches, Sampler, StreamedBatches, load_images, open_stream, store_splits

    data_folder = options.folder / f"{options.layout}-{options.images}"
    if not data_folder.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        writer = multiprocessing.Process(target=write, args=(data_folder, options.images, options.layout))  # whose memory is not in the figures
        writer.start()
        writer.join()
    if options.stream:
        _, stream = open_stream(str(data_folder), image_size=options.size, images=options.images)
        epoch(StreamedBatches(stream, Sampler(options.images, BATCH, 0), options.size, torch.device("cpu"), options.workers))
        return
    began, spent = time.perf_counter(), cpu()
    data = load_images(str(data_folder), image_size=options.size, validation_fraction=0)
    measured("prepared", len(data.train) + len(data.test), began, spent)
    began, spent = time.perf_counter(), cpu()
    data, stores = store_splits(data, ("train", "test"), torch.device("cpu"), in_memory=False, workers=options.workers)
    measured("checked", len(data.train) + len(data.test), began, spent)
    decoding(data.train, options.size)
    epoch(Batches(stores["train"], data.train.labels, Sampler(len(data.train), BATCH, 0)))


def epoch(batches) -> None:
    """Read one, with ten looks at the memory."""
    began, spent, points, seen = time.perf_counter(), cpu(), [], 0
    for step, batch in enumerate(batches.epoch(0), start=1):
        seen += len(batch.inputs)
        if step * POINTS // batches.sampler.steps_per_epoch > len(points):
            points.append((seen, *memory()))
            print("{:7,} images: main {:.0f} MB, workers {:.0f} MB, mapped files {:.0f} MB, {} file descriptors".format(*points[-1]))
    measured("an epoch", seen, began, spent)
    at, main, workers = np.array(points)[:, :3].T
    slopes = (np.polyfit(at, held, 1)[0] * 1e4 for held in (main, workers))
    print("growth in MB over 10,000 images: main {:+.2f}, workers {:+.2f}".format(*slopes))


if __name__ == "__main__":
    main()
