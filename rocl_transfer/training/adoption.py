"""A run that is resumed in another folder takes along what it may still need of the old one."""

import json
import logging
import shutil
from pathlib import Path

from accelerate import Accelerator

from rocl_transfer.errors import UserError
from rocl_transfer.training.checkpoints import Checkpoints

log = logging.getLogger("rocl_transfer")


def adopted(accelerator: Accelerator, checkpoints: Checkpoints, resume: str) -> Path | None:
    """The checkpoint that ``resume`` means, in the run's own folder.

    One of another folder is copied there, with the checkpoints before it (the best may be among them, or the one to go back to), the lines of
    ``metrics.jsonl`` up to it, and what is known of the start: so the run becomes what it would have become in the old folder, which stays as it is.

    Args:
        accelerator: From :func:`rocl_transfer.training.start`; the main process copies.
        checkpoints: The run's own.
        resume: See :meth:`Checkpoints.find`.

    Raises:
        UserError: See :meth:`Checkpoints.find`; or it cannot be copied.
    """
    found = checkpoints.find(resume)
    if found is None or found.parent.resolve() == checkpoints.folder.resolve():
        return found
    step = checkpoints.step_of(found)
    accelerator.wait_for_everyone()  # all have looked before the main process writes
    if accelerator.is_main_process:
        try:
            _copy(found, step, checkpoints)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"{found} cannot be copied to {checkpoints.folder.parent} ({reason}): make room there, or resume it where it is"
            ) from error
    accelerator.wait_for_everyone()
    return checkpoints.at(step)


def _copy(found: Path, step: int, checkpoints: Checkpoints) -> None:
    """A kill in between leaves an earlier state of the same run: what belongs to a checkpoint is there before it."""
    run, own = found.parent.parent, checkpoints.folder.parent
    before = Checkpoints(run, checkpoints.keep, {}) if found.parent.name == checkpoints.folder.name else None
    earlier = [] if before is None else [number for number in before.steps() if number < step]
    if before is not None:
        own.mkdir(parents=True, exist_ok=True)
        for file in (run / "head").glob("*.*"):
            (own / "head").mkdir(exist_ok=True)
            shutil.copyfile(file, own / "head" / file.name)
        if (run / "metrics.jsonl").exists():
            lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            kept = [f"{line}\n" for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            (own / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    for number, source in [*((number, found.parent / f"step-{number}") for number in earlier), (step, found)]:
        aside = checkpoints.folder / f".step-{number}.writing"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        aside.rename(checkpoints.at(number))
    also = f", with {', '.join(f'step-{number}' for number in earlier)} before it" if earlier else ""
    log.info("%s is copied to %s%s", found, own, also)
