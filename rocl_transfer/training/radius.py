"""Whether a run's own measurements show that it was trained against too small or too large a radius, said in a sentence."""

from rocl_transfer.training.chance import could_have_learned, wilson_interval

CHANGED = 0.02  # of what is right without an attack: one that changes no more teaches next to nothing
PROVEN = 0.05  # and that it changes more than this must be excluded


def poor_radius(radius: str, clean: float, robust: float, chance: float, n: float, what: str, changed: float | None = None) -> str | None:
    """A sentence where the attack that was trained against changes next to nothing, or nothing was learnt against it; None else.

    A verdict needs to be proven with 95 % confidence: that the attack changes nothing takes 73 images or more.

    Args:
        radius: The option with its value, such as ``--attack.epsilon 8/255``.
        clean: Share that is right without an attack, at the end of the training.
        robust: Share that is right under it.
        chance: What guessing gives.
        n: How many were looked at.
        what: They, in the sentence's words: answers, say.
        changed: Share of what is right without an attack that it changes, measured before the training, which is to leave it little to change
            (default: at the end).
    """
    when = " at the end" if changed is None else " before the training"
    if changed is None:
        changed = max(0.0, 1 - robust / clean) if clean else 1.0
    if wilson_interval(clean * n, n)[0] > chance and changed <= CHANGED and wilson_interval(changed * clean * n, clean * n)[1] < PROVEN:
        return (
            f"{radius} may be too small: the attack changes {100 * changed:.1f} % of {what}{when}, so training against it brings little: "
            "raise it if you expect larger perturbations"
        )
    if not could_have_learned(robust, n, round(1 / chance)):
        return (
            f"{radius} may be too large: under attack {100 * robust:.1f} % of {what} stay right at the end, guessing gives {100 * chance:.1f} %: "
            "lower it, or train longer (--epochs)"
        )
    return None
