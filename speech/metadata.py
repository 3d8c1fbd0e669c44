"""What a weights file says about itself: made and checked in one place.

Shapes: M mel bins, T frames.
"""

import dataclasses
import hashlib
import json
import platform
from dataclasses import dataclass

from speech.cli import check_format
from speech.dataset import MAX_CLIP_BYTES
from speech.report import CLASS_NAMES

import numpy as np
import torch

WEIGHTS_FORMAT = 3  # of the metadata; 1 had no number, 2 knew no members
LARGEST_ARGUMENT, MOST_LAYERS = 2**24, 1000  # above, a model argument is taken for hostile
MOST_MEMBERS = 100  # likewise


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = {"torch": torch.__version__, "numpy": np.__version__}
    return {"python": platform.python_version(), **packages}


def hash_participant(participant: str) -> str:
    """Lets a reader ask whether training saw a participant, without the weights naming anybody."""
    return hashlib.sha256(participant.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DataSummary:
    """What a weights file and a report say of the clips behind them."""

    corpus: str | None
    synthetic: bool
    sha256: str  # of the labels file
    content: str  # hash of clips, labels and participants
    split: str  # participant, clip, official or given
    folds: int | None
    total: dict[str, int]  # clips, participants
    clips: dict[str, int]  # by side: train, val, test
    participants: dict[str, int]  # by side
    on_both_sides: dict[str, int]  # participants, by pair of sides
    seen: list[str]  # hashes of the participants trained on or validated with


def make_metadata(
    name: str,
    arguments: dict,
    temperature: float,
    sound: dict | None,
    data: dict,
    test: dict,
    members: int = 1,
) -> dict:
    """What a weights file says about itself.

    Args:
        name: the model's; a file never names code.
        arguments: of the model's constructor.
        temperature: the logits are divided by it.
        sound: how recordings become clips (speech.audio.SETTINGS); None is not known.
        data: a DataSummary as a dict.
        test: for clips and for participants, a table of scores.
        members: how many networks of these arguments the file holds.
    """
    return {
        "format": WEIGHTS_FORMAT,
        "model": name,
        "arguments": arguments,
        "members": members,
        "shape": [arguments["n_mels"], arguments["n_frames"]],
        "preprocessing": {"normalisation": "min-max per clip", "sound": sound},
        "class_names": list(CLASS_NAMES),
        "temperature": temperature,
        "data": data,
        "test": {level: test[level] for level in ("clips", "participants")},
        "versions": versions(),
    }


def unknown_metadata(name: str, arguments: dict) -> dict:
    """Metadata of weights that another program trained: nothing is known of data and scores."""
    data = DataSummary(
        corpus=None,
        synthetic=False,
        sha256="not known",
        content="not known",
        split="not known",
        folds=None,
        total={},
        clips={},
        participants={},
        on_both_sides={},
        seen=[],
    )
    scores = {"clips": {}, "participants": {}}
    return make_metadata(name, arguments, 1.0, None, dataclasses.asdict(data), scores)


def is_argument(name: str, value: object) -> bool:
    """Whether a model's constructor may be given it: small, and never code."""
    if type(value) in (bool, str):
        return len(str(value)) <= 100
    most = MOST_LAYERS if "layers" in name else LARGEST_ARGUMENT
    return type(value) in (int, float) and abs(value) <= most


def makes_shape(sound: dict | None, shape: list[int]) -> bool:
    """Whether these settings turn recordings into clips (M, T), within bounded memory."""
    if sound is None:  # not known
        return True
    names = ("sample_rate", "clip_seconds", "n_fft", "hop_length", "n_mels")
    rate, seconds, window, hop, bins = numbers = [sound[name] for name in names]
    return (
        all(type(n) is int and n > 0 for n in numbers)
        and 1_000 <= rate <= 1_000_000
        and [bins, rate * seconds // hop + 1] == list(shape)
        and max(rate * seconds, window * max(shape)) <= 2**28
    )


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53  # a float holds it exactly


def is_score(entry: dict) -> bool:
    """Whether it is {"value", "low", "high"}: three numbers, or None three times (undefined)."""
    values = [entry[name] for name in ("value", "low", "high")]
    return values == [None] * 3 or all(abs(value) < 1e9 for value in values)


def check_metadata(metadata: dict) -> dict:
    """`metadata` of any format as the newest; raises unless it holds what the scripts read."""
    check_format(metadata, WEIGHTS_FORMAT)
    metadata = {"members": 1} | metadata | {"format": WEIGHTS_FORMAT}
    shape, arguments, data = (metadata[name] for name in ("shape", "arguments", "data"))
    json.dumps(metadata, ensure_ascii=False).encode()  # lone surrogates cannot be printed
    _ = set(data["seen"])  # raises unless it is a list
    words, both = [data["corpus"] or "", data["split"], data["sha256"]], data["on_both_sides"]
    counts = [n for name in ("clips", "participants", "total") for n in data[name].values()]
    counts += both.values() if type(both) is dict else [both]  # a number in earlier versions
    usable = {
        "members": is_count(metadata["members"]) and 1 <= metadata["members"] <= MOST_MEMBERS,
        "arguments": all(is_argument(*item) for item in arguments.items()),
        "shape": shape == [arguments["n_mels"], arguments["n_frames"]]
        and all(type(n) is int and n > 0 for n in shape)
        and shape[0] * shape[1] <= MAX_CLIP_BYTES,
        "temperature": 1 <= metadata["temperature"] <= 100,  # training gives none below
        "preprocessing": makes_shape(metadata["preprocessing"]["sound"], shape),
        "data": type(data["synthetic"]) is bool
        and data["clips"].keys() == data["participants"].keys()
        and all(map(is_count, counts))
        and all(type(word) is str for word in words),
        "versions": all(type(word) is str for word in metadata["versions"].values()),
        "class_names": metadata["class_names"] == list(CLASS_NAMES),  # or a verdict is inverted
        "test": all(
            is_score(entry)
            for level in ("clips", "participants")
            for entry in metadata["test"][level].values()
        ),
    }
    if wrong := [f"{name} {metadata[name]}"[:80] for name, good in usable.items() if not good]:
        raise ValueError(f"unusable {', '.join(wrong)}")
    return metadata
