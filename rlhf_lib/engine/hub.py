"""Why the Hugging Face Hub did not give what was asked for, and what to do about it. Keys are never shown."""

from __future__ import annotations

from collections.abc import Iterator

from .files import brief

LOG_IN = "log in with `hf auth login` or put your key into HF_TOKEN"
MISSING = {"RepositoryNotFoundError", "DatasetNotFoundError"}
OUT_OF_REACH = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "TransportError", "Timeout"}


def why(error: BaseException, name: str, *, page: str = "https://huggingface.co/") -> tuple[str, str]:
    """What went wrong, and what to do, from an error of Transformers, of datasets or of the Hub's own client.

    name  of the model or data set, as it was asked for; one that is gated has its licence on the `page` of that name
    """
    chain = list(_causes(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    status = next(filter(None, map(_status, chain)), None)
    if "GatedRepoError" in kinds or status == 403 or (kinds & MISSING and "is a gated" in str(error)):
        return "it is gated", f"accept its licence at {page}{name.partition('@')[0]}, then {LOG_IN}"
    if "RevisionNotFoundError" in kinds:
        return "it has no such revision", f"see {page}{name.partition('@')[0]} for those it has"
    if kinds & MISSING or status in (401, 404):
        return "the Hub has no such name, or not for you", f"check the name; if it is a private one, {LOG_IN}"
    if kinds & OUT_OF_REACH and _is_offline():
        return "HF_HUB_OFFLINE is set, and it was not fetched before", "connect to the network and unset that"
    if kinds & OUT_OF_REACH:
        return "the Hub does not answer", "connect to the network"
    return brief(error), "connect to the network"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was made from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE
