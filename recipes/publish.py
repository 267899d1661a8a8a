"""Check a run and send it to the Hub as one commit: weights, configuration, card, results record and figures, nothing else.

    python recipes/publish.py --run runs/ft --repo_id USER/NAME [--dry_run] [--private] [--license apache-2.0] [--tag v1]

With --dry_run it says what would be sent and needs no network. The token comes from `hf auth login` or HF_TOKEN, never from the command line.
A broken upload is repeated by the same command.
"""

import logging

from rocl_transfer.config import PublishConfig, command_line
from rocl_transfer.hub.publish import Publication, Published, prepare, publish

log = logging.getLogger("rocl_transfer")


def main(config: PublishConfig) -> Published | None:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    publication = prepare(config.run, config.repo_id, config.license, config.revision)
    say(publication, config.repo_id)
    if config.dry_run:
        print(publication.card)
        log.info("nothing was sent (--dry_run)")
        return None
    published = publish(publication, config.repo_id, private=config.private, revision=config.revision, tag=config.tag)
    log.info("%s: %s", "published" if published.changed else "the Hub held all of it already", published.url)
    log.info("load it with hf-hub:%s@%s", config.repo_id, config.tag or published.commit)
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
