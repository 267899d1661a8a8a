"""Where the templates of card and page are: in ``model_cards/``, of the package in a wheel, beside it in a checkout."""

from pathlib import Path

from rocl_transfer.errors import UserError

_PLACES = (Path(__file__).parent / "model_cards", Path(__file__).parents[1] / "model_cards")


def template(name: str) -> Path:
    """The file of the template ``name``, such as ``template.md``.

    Raises:
        UserError: It is not there, so the installation is not whole.
    """
    found = next((place / name for place in _PLACES if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"the template {name} is missing from the installation of rocl_transfer: install the package again")
    return found
