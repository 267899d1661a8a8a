"""A page in the browser that shows a perturbation grow: one classifier or two, an image, sliders for epsilon and steps.

    python recipes/demo.py --model.name runs/ft --images path/to/images [--beside.name runs/twin]

For each model: the clean and the adversarial image, the perturbation enlarged, probabilities as epsilon grows, and the smallest epsilon that flips
the answer. Only this machine can reach it unless --host or --share say otherwise. --export_space FOLDER writes it as a Space for the Hub, which
recipes/publish.py --space FOLDER sends.
"""

import logging
from dataclasses import dataclass, field

import torch

import predict
from rocl_transfer.config import ClassifierConfig, command_line
from rocl_transfer.errors import path_of
from rocl_transfer.hub import load_classifier
from rocl_transfer.hub.demo import SHOWN, Settings, interface, serve, titles
from rocl_transfer.hub.space import export_space
from rocl_transfer.models import PixelModel
from rocl_transfer.options import Number, require, require_sha256, require_untouched, was_given

log = logging.getLogger("rocl_transfer")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class BesideOptions:
    """Another classifier, shown beside the first.

    Args:
        name: As --model.name; the network before and after robustify, say.
        sha256: SHA-256 that an exported model's weights file must have; any other file is refused.
    """

    name: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        require_sha256(self.sha256)
        require(self.name != "", "--beside.name is empty: give a run folder or hf-hub:USER/NAME, or leave it out")
        require(self.name is not None or self.sha256 is None, "--beside.sha256 has no effect without --beside.name: leave it out")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """A page that shows a perturbation grow, and what one classifier or two make of it.

    Args:
        model: Which classifier; its image size and normalisation come with it.
        beside: Another classifier, shown beside it.
        images: An image file, or a folder of images to choose from; others can be uploaded.
        norm: Norm of the ball: linf or l2.
        epsilon: Where the slider for epsilon begins, in [0, 1] pixel units, a number or a fraction.
        max_epsilon: Where that slider ends, and the largest radius tried in the search for the smallest one that flips the answer.
        steps: Where the slider for PGD's gradient steps begins, 1 to 100; each step is epsilon / 10.
        host: Address to listen on; 0.0.0.0 lets others in.
        port: Port to listen on (default: the first free one from 7860).
        share: Let others in through Gradio's public tunnel.
        export_space: Write the page as a Space to this folder, and start nothing.
    """

    model: ClassifierConfig
    beside: BesideOptions = field(default_factory=BesideOptions)
    images: str | None = None
    norm: str = "linf"
    epsilon: Number = Number(8 / 255)
    max_epsilon: Number = Number(64 / 255)
    steps: int = 20
    host: str = LOOPBACK
    port: int | None = None
    share: bool = False
    export_space: str | None = None

    def __post_init__(self) -> None:
        require(self.norm in ("linf", "l2"), f"--norm is {self.norm}: give linf or l2")
        given = self.norm != "l2" or was_given(self.max_epsilon, DemoConfig.max_epsilon)
        require(given, "the default --max_epsilon is meant for linf: give a radius with l2, such as 2 at 32 px")
        require(self.max_epsilon > 0, f"--max_epsilon is {self.max_epsilon}: give a radius above 0, such as 64/255")
        within = self.norm != "linf" or self.max_epsilon <= 1
        require(within, f"--max_epsilon is {self.max_epsilon}: pixels are in [0, 1], so write 64/255 rather than 64")
        require(0 <= self.epsilon <= self.max_epsilon, f"--epsilon is {self.epsilon}: give 0 or more, up to --max_epsilon {self.max_epsilon:.4g}")
        require(1 <= self.steps <= 100, f"--steps is {self.steps}: give 1 to 100")
        require(bool(self.host), "--host is empty: give an address, such as 0.0.0.0, or leave it out")
        require(self.port is None or 0 < self.port < 65536, f"--port is {self.port}: give 1 to 65535")
        require(self.images != "", "--images is empty: name an image file or a folder")
        require(self.export_space != "", "--export_space is empty: name a folder")
        if self.export_space is not None:
            require_untouched(self, ("host", "port", "share"), "with --export_space, which starts nothing")

    @property
    def settings(self) -> Settings:
        """What the sliders show."""
        return Settings(epsilon=self.epsilon, max_epsilon=self.max_epsilon, steps=self.steps, norm=self.norm)


def main(config: DemoConfig) -> None:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    images = [] if config.images is None else predict.find_images([config.images])
    if len(images) > SHOWN:
        log.info("the first %d of %d images are shown", SHOWN, len(images))
    images = images[:SHOWN]
    models = load(config)
    if config.export_space is not None:
        folder = export_space(path_of(config.export_space), [name for name, _ in models], images, config.settings)
        log.info("Space: %s; recipes/publish.py --space %s --repo_id USER/NAME sends it", folder, folder)
        return
    named = list(zip(titles([name for name, _ in models]), (model for _, model in models), strict=True))
    page = interface(named, images, config.settings)
    if config.share or config.host != LOOPBACK:
        log.info("others can reach this page and send it images")
    serve(page, host=config.host, port=config.port, share=config.share)


def load(config: DemoConfig) -> list[tuple[str, PixelModel]]:
    """The classifiers by name, on the device."""
    wanted = [(config.model.name, config.model.sha256)]
    if config.beside.name is not None:
        wanted.append((config.beside.name, config.beside.sha256))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    return [(name, load_classifier(name, sha256).to(device)) for name, sha256 in wanted]


if __name__ == "__main__":
    command_line(main, DemoConfig)
