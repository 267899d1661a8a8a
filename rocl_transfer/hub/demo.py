"""The demo's page: images, two sliders, and for each model what an adversary makes of the image. Gradio is imported only when the page is built."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rocl_transfer.data.decode import decode
from rocl_transfer.data.value_range import ValueRange
from rocl_transfer.errors import UserError, path_of
from rocl_transfer.evaluation.report import Closeup, close_up
from rocl_transfer.models import PixelModel
from rocl_transfer.options import spelled

SHOWN = 24  # images beside the page's upload
_SIDE = 224  # pixels of a picture on the page; smaller images are enlarged without smoothing
_UPLOAD = "20mb"
# Gradio lays a picture's label over the picture, makes thumbnails 100 px wide or more, and keeps a gallery as high as a screen.
_STYLE = """
.pictures label[data-testid="block-label"], .gallery label[data-testid="block-label"] {position: static; border: none; box-shadow: none}
.pictures .image-container {height: auto}
.gallery .grid-container {grid-template-columns: repeat(auto-fill, 84px); grid-auto-rows: 84px; grid-template-rows: none}
.gallery .grid-wrap {height: auto; min-height: 0}
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the page's sliders begin with.

    Args:
        epsilon: Radius.
        max_epsilon: The largest radius of the slider, and the largest that is tried for the smallest one that flips the answer.
        steps: Steps of PGD.
        norm: Norm of the ball: linf or l2.
    """

    epsilon: float = 8 / 255
    max_epsilon: float = 64 / 255
    steps: int = 20
    norm: str = "linf"


@dataclass(frozen=True)
class Shown:
    """What a column of the page shows of one image.

    Attributes:
        clean: (side, side, 3) uint8; so are the other pictures.
        perturbation: Enlarged to the full range.
        adversarial: As PGD left it.
        words: In Markdown: the answers, how far the perturbation is enlarged, and the smallest epsilon.
        curves: One row per point: epsilon as the slider has it, probability, class.
    """

    clean: np.ndarray
    perturbation: np.ndarray
    adversarial: np.ndarray
    words: str
    curves: tuple[tuple[float, float, str], ...]


def show(model: PixelModel, file: Path, settings: Settings) -> Shown:
    """What ``model`` makes of the image in ``file``, which is read by the decoder that training uses.

    Raises:
        UserError: It is no image that is read.
    """
    image = decode(file, model.input_size, "this file", ValueRange.given(model.value_range))
    seen = close_up(
        model, image, epsilon=settings.epsilon, steps=settings.steps, norm=settings.norm, upper=settings.max_epsilon
    )  # fmt: skip
    curves = tuple(
        (round(_unit(settings) * float(epsilon), 4), round(float(row[label]), 6), model.class_names[label])
        for label in seen.leading()
        for epsilon, row in zip(seen.epsilons, seen.probabilities, strict=True)
    )
    clean, perturbation, adversarial = (picture(part) for part in (seen.clean, seen.perturbation(), seen.adversarial))
    return Shown(clean, perturbation, adversarial, words(seen, settings), curves)


def picture(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] as (side, side, 3) uint8, at least 224 px wide; every pixel stays a square."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    times = max(1, math.ceil(_SIDE / pixels.shape[0]))
    return pixels.repeat(times, 0).repeat(times, 1)


def words(seen: Closeup, settings: Settings) -> str:
    """What is said under the pictures, in Markdown."""
    (before, sure), (after, still) = seen.before, seen.after
    flips = f"above {spelled(seen.searched)}, the largest tried" if math.isinf(seen.flips_at) else f"{_levels(seen.flips_at, settings)}"
    enlarged = f"enlarged {0.5 / seen.largest_change:.0f} times" if seen.largest_change else "nothing changes"
    answer = "stays" if before == after else "becomes"
    return "\n".join([
        f"**{_plain(before)}** ({100 * sure:.1f} %) {answer} **{_plain(after)}** ({100 * still:.1f} %)",
        "",
        f"Smallest epsilon that flips the answer: **{flips}** ({settings.norm}, PGD-{settings.steps}; a stronger attack may need less)",
        "",
        f"Perturbation: {enlarged}",
    ])  # fmt: skip


def _unit(settings: Settings) -> int:
    """What the page counts radii in: 255ths, as people do, or plain lengths."""
    return 255 if settings.norm == "linf" else 1


def _levels(radius: float, settings: Settings) -> str:
    return f"{255 * radius:.1f}/255" if settings.norm == "linf" else f"{radius:.3g}"


def _plain(name: str) -> str:
    """A class's name without Markdown's signs: names come with the weights."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!<>|~&" else letter for letter in name)


def titles(names: Sequence[str]) -> list[str]:
    """What the page calls the models ``names``: the last part, and a number before it where two have the same."""
    short = [name.removeprefix("hf-hub:") if name.startswith("hf-hub:") else path_of(name).resolve().name for name in names]
    return short if len(set(short)) == len(short) else [f"{number}: {title}" for number, title in enumerate(short, 1)]


def interface(models: Sequence[tuple[str, PixelModel]], images: Sequence[Path], settings: Settings, title: str = "How robust is it?") -> Any:
    """The page, a ``gradio.Blocks``.

    Args:
        models: One or two classifiers, each with the name it is called by.
        images: To choose from, of which the first 24 are shown; others can be uploaded.
        settings: What the sliders begin with.
        title: The page's title.

    Raises:
        UserError: Gradio is missing, or an image cannot be read.
    """
    gr = _gradio()
    images = list(images)[:SHOWN]
    thumbnails = [(picture(decode(path, models[0][1].input_size, str(path)) / 255), path.name) for path in images]
    unit = _unit(settings)
    with gr.Blocks(title=title) as page:
        chosen = gr.State(images[0] if images else None)
        gr.Markdown(f"# {title}\nChoose an image or upload one, and let the perturbation grow. It is made by PGD against each model's own answer.")
        gallery = gr.Gallery(thumbnails, label="images", buttons=[], allow_preview=False, visible=bool(images), elem_classes="gallery")
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.File(label="or your own", height=150)
            with gr.Column(scale=1):
                name = "epsilon in 255ths" if unit == 255 else "epsilon"
                radius = gr.Slider(0, unit * settings.max_epsilon, unit * settings.epsilon, step=unit * settings.max_epsilon / 128, label=name)
                steps = gr.Slider(
                    1, 100, settings.steps, step=1, label="steps of PGD", info="of epsilon / 10 each: fewer than 20 cannot cross the ball"
                )
        with gr.Row():
            columns = [part for name, _ in models for part in _column(gr, name)]

        def update(file: Path | None, radius: float, steps: float) -> list[Any]:
            now = Settings(epsilon=radius / unit, max_epsilon=settings.max_epsilon, steps=int(steps), norm=settings.norm)
            return [part for _, model in models for part in _parts(gr, model, file, now)]

        def choose(event: gr.SelectData) -> Path:  # type: ignore[name-defined]
            return images[int(event.index)]

        gallery.select(choose, None, chosen)
        upload.upload(lambda file: Path(file), upload, chosen)
        # One attack at a time: it holds the network in eval mode, and the sums in float32, for the whole process.
        gr.on(
            [page.load, chosen.change, radius.change, steps.change], update, [chosen, radius, steps], columns,
            concurrency_limit=1, show_progress="minimal", trigger_mode="always_last",
        )  # fmt: skip
    return page


def _column(gr: Any, name: str) -> list[Any]:
    """The parts that show one model."""
    with gr.Column(min_width=400):
        gr.Markdown(f"### {_plain(name)}")
        with gr.Row(elem_classes="pictures"):
            pictures = [gr.Image(label=label, interactive=False, min_width=100, buttons=[]) for label in ("clean", "perturbation", "adversarial")]
        said = gr.Markdown()
        # A label of its own would push the legend out of sight.
        gr.Markdown("Probabilities as epsilon grows:")
        curves = gr.LinePlot(x="epsilon", y="probability", color="class", y_lim=[0, 1], height=320, show_label=False)
    return [*pictures, said, curves]


def _parts(gr: Any, model: PixelModel, file: Path | None, settings: Settings) -> list[Any]:
    """Their contents."""
    import pandas as pd  # gradio's own dependency

    if file is None:
        return [None, None, None, "Upload an image.", None]
    try:
        seen = show(model, file, settings)
    except UserError as error:
        raise gr.Error(str(error)) from error
    return [seen.clean, seen.perturbation, seen.adversarial, seen.words, pd.DataFrame(seen.curves, columns=["epsilon", "probability", "class"])]


def serve(page: Any, *, host: str | None = None, port: int | None = None, share: bool = False, block: bool = True) -> str:
    """Start the page, and give its address; where it blocks, only once it ends.

    Args:
        page: From :func:`interface`.
        host: Address to listen on (default: what ``GRADIO_SERVER_NAME`` says, as on a Space, else loopback).
        port: Default: the first free one from 7860.
        share: Through a public tunnel of Gradio's.
        block: Until it is interrupted.

    Raises:
        UserError: The port is taken, or the address is none of this machine.
    """
    try:
        page.queue(default_concurrency_limit=1)
        _, address, shared = page.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, max_file_size=_UPLOAD, quiet=True, footer_links=[], css=_STYLE
        )
    except OSError as error:
        place = f"{host or 'loopback'}:{port or '7860 to 7959'}"
        raise UserError(f"the demo cannot listen on {place} ({' '.join(str(error).split())[:120]}): give another --port or --host") from error
    if block:
        print(f"the demo is at {shared or address} until Ctrl-C", flush=True)
        page.block_thread()
    return str(shared or address)


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise UserError("the demo needs gradio: pip install 'rocl-transfer[demo]'") from error
    return gradio
