"""The Hugging Face Hub: weights named hf:USER/MODEL, and its errors in one line each."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speech.cli import InputError

PREFIX = "hf:"
REPOSITORY = r"\w[\w.-]*/\w[\w.-]*"
WEIGHTS = re.compile(rf"{PREFIX}({REPOSITORY})(?:@([\w./-]+))?")
STATUS = {  # of an answer -> what it means
    400: "the Hub refused a file",
    401: "the token is wrong or has expired: `hf auth login` stores another",
    402: "the Hub asks for a paid plan; a free account may have Spaces with --hardware zero",
    403: "no right to do that: the token must be one that may write there",
    404: "no such repository or revision, or it is private and there is no token for it",
    409: "the name is taken",
    413: "the Hub refused a file: too large",
    422: "the Hub refused a file",
    429: "the Hub has had too many requests; try again later",
}
AGAIN = "run again to go on"
NO_TOKEN = "no token: `hf auth login` stores one, or set HF_TOKEN"
NO_NETWORK = "the Hub cannot be reached"


def explain(error: Exception) -> str | None:
    """What an exception of huggingface_hub means; None of one that is not the Hub's."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    names = {kind.__name__ for kind in type(error).__mro__}
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, LocalTokenNotFoundError):
        return NO_TOKEN
    if isinstance(error, OfflineModeIsEnabled) or names & {"ConnectError", "ConnectTimeout"}:
        return NO_NETWORK
    if (response := getattr(error, "response", None)) is not None:
        status = response.status_code
        said = response.headers.get("x-error-message") or getattr(error, "server_message", None)
        said = f" ({' '.join(said.split())[:200]})" if said else ""
        return f"{STATUS.get(status, f'the Hub answered {status}: {AGAIN}')}{said}"
    if "TransportError" in names:  # httpx's, whichever version of it huggingface_hub stands on
        return f"broken off ({reason or type(error).__name__}): {AGAIN}"
    if isinstance(error, ValueError):  # a name or a front matter that the Hub does not allow
        return f"the Hub refuses it: {reason}"
    if error.__cause__:  # the uploader and the cache put their own errors around these
        return explain(error.__cause__)
    return f"no answer of a Hub ({reason})" if "FileMetadataError" in names else None


@contextmanager
def hub_errors(subject: str) -> Iterator[None]:
    """Turns the Hub's and the network's errors into one line about `subject`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of huggingface_hub, its HTTP library or its uploader
        if not (reason := explain(error)):
            raise
        raise InputError(f"{subject}: {reason}") from error


def quieten() -> None:
    """Leaves it to the one line to say what happens."""
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()


def parse(name: str) -> tuple[str, str | None]:
    """hf:USER/MODEL[@REVISION] -> (USER/MODEL, revision)."""
    if not (found := WEIGHTS.fullmatch(name)):
        raise InputError(f"{name}: expected hf:USER/MODEL or hf:USER/MODEL@REVISION")
    return found[1], found[2]


def fetch(name: str | Path) -> list[Path]:
    """The files that a --weights names: itself, or those of hf:USER/MODEL[@REVISION].

    What is in the cache is used without asking the Hub. Only safetensors are fetched, which hold
    numbers; a pickle would be a program.

    Raises:
        InputError: no such repository, nothing in it that can be used, or no network.
    """
    if not str(name).startswith(PREFIX):
        return [Path(name)]
    repository, revision = parse(str(name))
    from huggingface_hub import snapshot_download

    quieten()
    where = {"repo_id": repository, "revision": revision, "allow_patterns": "*.safetensors"}
    with suppress(Exception):  # not there, or a part of it only: whatever is said, it is fetched
        folder = snapshot_download(**where, local_files_only=True)
        if files := sorted(Path(folder).glob("*.safetensors")):
            return files
    with hub_errors(name):
        folder = snapshot_download(**where)
    if files := sorted(Path(folder).glob("*.safetensors")):
        return files
    raise InputError(f"{name}: holds no .safetensors; nothing else is read")
