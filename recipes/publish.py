"""Check a run and send it to the Hub as one commit: weights, configuration, card, results record and figures, nothing else.

    python recipes/publish.py --run runs/ft --repo_id USER/NAME [--dry_run] [--private] [--license apache-2.0] [--tag v1]

With --dry_run it says what would be sent and needs no network. The token comes from `hf auth login` or HF_TOKEN, never from the command line.
A broken upload is repeated by the same command. --space FOLDER sends a demo that recipes/demo.py --export_space wrote, as a Space.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from rocl_transfer.config import command_line
from rocl_transfer.errors import path_of
from rocl_transfer.hub.publish import Publication, Published, PublishOptions, prepare, publish
from rocl_transfer.hub.space import files_of, publish_space
from rocl_transfer.options import require, require_untouched

log = logging.getLogger("rocl_transfer")


@dataclass(frozen=True, kw_only=True)
class PublishConfig(PublishOptions):
    """Send a run to the Hub as a model: its weights, and the record and the card that belong to them.

    Args:
        run: A run folder.
        space: Instead of a run, a folder that ``recipes/demo.py --export_space`` wrote; it is sent as a Space.
        dry_run: Say what would be sent, and send nothing.
    """

    run: str | None = None
    space: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        require((self.run is None) != (self.space is None), "give either --run, a run folder such as runs/ft, or --space, a folder with a demo")
        require(self.run != "", "--run is empty: name a run folder, such as runs/ft")
        require(self.space != "", "--space is empty: name a folder that recipes/demo.py --export_space wrote")
        super().__post_init__()
        if self.space is not None:
            require_untouched(self, ("revision", "tag", "license"), "with --space")
        if self.dry_run:
            require_untouched(self, ("private", "tag"), "with --dry_run, which sends nothing")


def main(config: PublishConfig) -> Published | None:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    if config.space is not None:
        return send_space(config, path_of(config.space))
    assert config.run is not None
    publication = prepare(config.run, config)
    say(publication, config.repo_id)
    if config.dry_run:
        print(publication.card)
        log.info("nothing was sent (--dry_run)")
        return None
    published = publish(publication, config)
    log.info("%s: %s", "published" if published.changed else "the Hub held all of it already", published.url)
    log.info("load it with hf-hub:%s@%s", config.repo_id, config.tag or published.commit)
    return published


def send_space(config: PublishConfig, folder: Path) -> Published | None:
    sizes = {name: path.stat().st_size for name, path in files_of(folder).items()}
    log.info("%12s  bytes in %d files for the Space %s", f"{sum(sizes.values()):,}", len(sizes), config.repo_id)
    if images := sum(name.startswith("images/") for name in sizes):
        log.info("note: it shows %d of your images", images)
    if config.dry_run:
        log.info("nothing was sent (--dry_run)")
        return None
    published = publish_space(folder, config)
    log.info("%s: %s", "published" if published.changed else "the Hub held all of it already", published.url)
    return published


def say(publication: Publication, repo_id: str) -> None:
    sizes = publication.sizes()
    for name, size in sizes.items():
        log.info("%12s  %s", f"{size:,}", name)
    log.info("%12s  bytes in %d files for %s", f"{sum(sizes.values()):,}", len(sizes), repo_id)
    for warning in publication.warnings:
        log.info("note: %s", warning)


if __name__ == "__main__":
    command_line(main, PublishConfig)
