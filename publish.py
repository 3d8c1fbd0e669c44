"""Puts the page on Hugging Face Spaces, or weights with a model card on the Hugging Face Hub.

python publish.py USER/SPACE --weights weights/*.safetensors --dry-run
python publish.py USER/MODEL --model weights/lstm.safetensors
python publish.py USER/SPACE --weights hf:USER/MODEL
"""

import argparse
import json
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

from common import load_weights
from speech.cli import InputError, Parser, join_names, print_lines, read_file, run, safe_name
from speech.hub import PREFIX, REPOSITORY, fetch, hub_errors, parse, quieten
from speech.report import LEVELS, format_scores

ROOT = Path(__file__).parent
# Named, so that nothing else that lies beside them is published, nor a Mac's hidden `._` twins.
SCRIPTS = ("common", "members", "experiment", "predict", "demo", "prepare", "synthetic", "tune")
SCRIPTS += ("publish", "report")
SOURCES = (
    *(f"{name}.py" for name in SCRIPTS),
    "train_*.py",
    "speech/[!.]*.py",
    "speech/[!.]*.css",
    "speech/[!.]*.js",
    "docs/[!.]*.md",
    "requirements.txt",
    "LICENSE",
)
EXAMPLES = ("examples/[!.]*.npy", "examples/[!.]*.wav", "examples/[!.]*.png")  # all synthetic
EXAMPLE_WEIGHTS = "examples/[!.]*.safetensors"
OURS = re.compile(r"[^/]+\.py|(speech|docs|examples|weights)/.*")  # removed when not renewed
CREATED = {".gitattributes", "README.md"}  # what the Hub itself puts into a new repository
HARDWARE = {"zero": "zero-a10g", "cpu-basic": "cpu-basic"}  # as the Hub calls it
ZERO_TORCH = "torch==2.11.0"  # the newest that ZeroGPU has; it ends at 2.11
PYTHON = {"zero": "3.12.12", "cpu-basic": "3.12"}  # ZeroGPU has 3.10 and 3.12; NumPy needs 3.11
NOT_KNOWN = "not known"
METRIC_IDS = {"auroc": "roc_auc", "brier": "brier_score"}  # where the Hub's name is another

SYNTHETIC = "**Trained on synthetic voices: it says nothing about real people.**"
APP = '''"""Starts the page on a Space; publish.py wrote it."""

import sys

from speech.cli import run
{gpu}
if __name__ == "__main__":
    import demo

    sys.argv[1:] = {arguments}
    run(demo.main)
'''
GPU = '''
import spaces


@spaces.GPU
def use_gpu() -> None:
    """ZeroGPU does not start without such a function; the models run on the CPU."""

'''

CARD = """
# {name}: depression from speech, a research model

**This is not a diagnosis, and cannot be one.** {synthetic}

{model}: classifies mel spectrograms of speech, {shape}, as *Depressed* or *Not Depressed*.

## How to load

With the code of *Detecting depression from speech spectrograms*:

```
python predict.py interview.wav --weights hf:{repository}
python demo.py --weights hf:{repository}
```

`hf:{repository}@REVISION` pins a revision. The file is safetensors: numbers, no program.

## Data

| | |
|---|---|
{data}

## Scores

On people that training never saw, if the split is by participant. Intervals are 95%, over people.

{scores}

{baseline}

## Intended use

Research on such models: what they hear, how far a score can be trusted. **Not to be used** for a
clinical decision, for screening, or by employers, insurers, schools,
courts or police; not on speech whose speaker did not agree to it.

## Limits

- Labels come from questionnaires, interviews, diagnoses or actors, in one language each. What the
  model hears may be the microphone, the room, the age, the accent or the medication.
- Probabilities and the threshold do not travel between corpora. Women and men may be served
  differently.
- Clips unlike the training clips: {familiarity}.
- The file holds hashes of the training participants' ids: who knows an id can ask whether it was
  trained on.
- Whether the corpus's terms allow these weights to be passed on is for whoever publishes them to
  know.
"""


# --- what goes there ----------------------------------------------------------------------------


def fill_front_matter(text: str, values: dict[str, str]) -> str:
    """The README with these values in its front matter."""
    for key, value in values.items():
        text, found = re.subn(rf"(?m)^{key}: .*$", f"{key}: {value}", text, count=1)
        if not found:
            raise InputError(f"README.md: no line {key}: in its front matter")
    return text


def write_requirements(hardware: str) -> str:
    """requirements.txt; for ZeroGPU with a PyTorch that it has."""
    text = (ROOT / "requirements.txt").read_text()
    return re.sub(r"(?m)^torch\b.*$", ZERO_TORCH, text) if hardware == "zero" else text


def write_app(hardware: str, weights: list[str]) -> str:
    """app.py: demo.py with the arguments that a Space has no command line for."""
    arguments = ["--weights", *weights] if weights else []
    return APP.format(gpu=GPU if hardware == "zero" else "", arguments=arguments)


def check_names(paths: list[Path]) -> None:
    repeated = [name for name, n in Counter(path.name for path in paths).items() if n > 1]
    if repeated:
        raise InputError(f"--weights: two files are named {join_names(repeated)}; rename one")


def read_weights(path: Path) -> tuple[bytes, dict]:
    """A file's content, checked, and its metadata: it is read once, what goes there was checked."""
    try:
        content = read_file(path)
    except (InputError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from error
    return content, load_weights(path, content)[1]


def collect_space(weights: list[str], hardware: str) -> dict[str, bytes]:
    """The files of the Space: path there -> content.

    Only weights that are named go there: those in weights/ may have been made from people who
    never agreed to it. Without any the page has the example's, of synthetic voices.
    """
    named = [name for name in weights if name.startswith(PREFIX)]
    local = [Path(name) for name in weights if not name.startswith(PREFIX)]
    check_names(local)
    for path in (path for name in named for path in fetch(name)):
        load_weights(path)
    read = {f"weights/{path.name}": read_weights(path)[0] for path in local}
    patterns = [*SOURCES, *EXAMPLES, *([] if weights else [EXAMPLE_WEIGHTS])]
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sorted(found)}
    arguments = [f"weights/{path.name}" for path in local] + named
    front = {"python_version": f'"{PYTHON[hardware]}"', "app_file": "app.py"}
    readme = fill_front_matter((ROOT / "README.md").read_text(encoding="utf-8"), front)
    texts = {"README.md": readme, "requirements.txt": write_requirements(hardware)}
    texts["app.py"] = write_app(hardware, arguments)
    return files | read | {name: text.encode() for name, text in texts.items()}


# --- the model card -----------------------------------------------------------------------------


def read_baseline(path: Path, metadata: dict) -> dict | None:
    """The linear baseline's scores by level, from the report beside the weights if it is theirs."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        report = json.loads(read_file(path.with_suffix(".json")))
        test, ours = report["test"], metadata["test"]
        if all(test[level] == ours[level] for level in LEVELS):
            baseline = {level: test["linear"][level] for level in LEVELS}
            format_scores(*baseline.values())  # raises unless it can be shown
            return baseline
    return None


def list_results(name: str, metadata: dict) -> list:
    """The scores as the Hub's model-index has them, each with its interval."""
    from huggingface_hub import EvalResult

    data = metadata["data"]
    corpus = data["corpus"] or NOT_KNOWN
    return [
        EvalResult(
            task_type="audio-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", corpus.lower()).strip("-") or "not-known",
            dataset_name=corpus,
            dataset_split="test",
            dataset_args={"unit": unit, "n": data[level].get("test"), "split": data["split"]},
            metric_type=METRIC_IDS.get(metric, metric),
            metric_name=f"{metric} of {unit}",
            metric_value=score["value"],
            metric_args={"low": score["low"], "high": score["high"], "level": 0.95},
        )
        for level, unit in LEVELS.items()
        for metric, score in metadata["test"][level].items()
        if score["value"] is not None
    ]


def describe_data(metadata: dict) -> str:
    """Rows of the card's table of data."""
    data = metadata["data"]
    sides = [f"{side}: {n} of {data['participants'][side]}" for side, n in data["clips"].items()]
    total, sound = data["total"], metadata["preprocessing"]["sound"]
    both = data["on_both_sides"]  # a number in files of earlier versions
    both = sum(both.values()) if isinstance(both, dict) else both
    rows = {
        "corpus": data["corpus"],
        "clips": total.get("clips"),
        "people": total.get("participants"),
        "split": data["split"],
        "clips of people, by side": ", ".join(sides),
        "people on both sides": both if total else None,
        "recordings become clips by": json.dumps(sound) if sound else None,
        "SHA-256 of the labels": data["sha256"],
        "trained with": ", ".join(" ".join(item) for item in metadata["versions"].items()),
    }
    shown = {name: NOT_KNOWN if value in (None, "") else value for name, value in rows.items()}
    return "\n".join(f"| {name} | {safe_name(str(value))} |" for name, value in shown.items())


def describe_scores(metadata: dict, baseline: dict | None) -> tuple[str, str]:
    """The card's table of scores, and a sentence on the linear baseline."""
    levels, columns = metadata["test"], list(LEVELS.values())
    tables = [levels[level] for level in LEVELS]
    if baseline:
        tables += [baseline[level] for level in LEVELS]
        columns += [f"{unit}, linear baseline" for unit in LEVELS.values()]
    rows = format_scores(*tables)
    if not rows:
        return f"Scores: {NOT_KNOWN}.", f"Linear baseline: {NOT_KNOWN}."
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {title.strip()} | {' | '.join(cells)} |" for title, cells in rows]
    about = "The baseline is a linear model on each mel bin's mean, deviation and change."
    return "\n".join(lines), about if baseline else f"Linear baseline: {NOT_KNOWN}."


def write_card(repository: str, path: Path, metadata: dict) -> str:
    """The model card: what the weights and the report beside them say, and nothing else."""
    from huggingface_hub import ModelCard, ModelCardData

    data, name = metadata["data"], repository.split("/")[1]
    terms = {"license": "other", "license_name": "see-the-corpus"}
    header = ModelCardData(
        **({"license": "mit"} if data["synthetic"] else terms),
        library_name="pytorch",
        pipeline_tag="audio-classification",
        tags=["audio-classification", "speech", "depression", "not-a-diagnosis"],
        model_name=name,
        eval_results=list_results(name, metadata) or None,
    )
    scores, baseline = describe_scores(metadata, read_baseline(path, metadata))
    text = CARD.format(
        name=name,
        repository=repository,
        model={"cnn": "CNN-DNN", "lstm": "LSTM"}.get(metadata["model"], metadata["model"]),
        shape="{} mel bins by {} frames".format(*metadata["shape"]),
        synthetic=SYNTHETIC if data["synthetic"] else "",
        data=describe_data(metadata),
        scores=scores,
        baseline=baseline,
        familiarity="they get no verdict" if metadata.get("familiarity") else NOT_KNOWN,
    )
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n{text}"))


def collect_model(repository: str, path: Path) -> dict[str, bytes]:
    """The files of the model repository: path there -> content."""
    content, metadata = read_weights(path)
    card = write_card(repository, path, metadata).encode()
    name = path.with_suffix(".safetensors").name
    return {"README.md": card, "LICENSE": (ROOT / "LICENSE").read_bytes(), name: content}


# --- the Hub ------------------------------------------------------------------------------------


def check_free(repository: str, there: set[str], files: dict[str, bytes], kind: str) -> None:
    """Refuses a repository that holds another project: nothing of it is overwritten."""
    ours = "speech/hub.py" in there if kind == "space" else there <= CREATED | files.keys()
    if not (ours or there <= CREATED):
        found = join_names(sorted(there - CREATED), 3)
        raise InputError(f"{repository}: the name is taken by something else ({found})")


def upload(args: argparse.Namespace, kind: str, files: dict[str, bytes]) -> str:
    """Creates the repository if there is none, and commits what differs -> a line that says so.

    A large file that has arrived is kept by the Hub, and the commit is all or nothing: broken off
    anywhere, the same command goes on.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    quieten()
    repository, hub = args.repository, HfApi()
    space = {"space_sdk": "gradio", "space_hardware": HARDWARE[args.hardware]}
    with hub_errors(repository):
        hub.whoami()
        created = hub.create_repo(
            repository,
            repo_type=kind,
            private=args.private or None,
            exist_ok=True,
            **(space if kind == "space" else {}),
        )
        before = hub.repo_info(repository, repo_type=kind)
        there = {file.rfilename for file in before.siblings or []}
        check_free(repository, there, files, kind)
        stale = [name for name in there - files.keys() if kind == "space" and OURS.fullmatch(name)]
        operations = [CommitOperationDelete(name) for name in sorted(stale)]
        operations += [CommitOperationAdd(name, content) for name, content in files.items()]
        message = "Published with publish.py"
        commit = hub.create_commit(repository, operations, commit_message=message, repo_type=kind)
    if commit.oid == before.sha:
        return f"{created}: nothing to do, it holds the same files"
    return f"{created}: published, revision {commit.oid[:12]}"


def list_files(files: dict[str, bytes]) -> list[str]:
    lines = [f"{len(content):>10,}  {name}" for name, content in sorted(files.items())]
    total = sum(map(len, files.values()))
    return [*lines, f"{total:>10,}  bytes in {len(files)} files"]


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("repository", metavar="USER/NAME", help="of the Space, or of the model with --model")
    named = "FILE or hf:USER/MODEL[@REVISION]; default: the example's, of synthetic voices"
    add("--weights", metavar="WEIGHTS", nargs="+", default=[], help=named)
    add("--model", metavar="FILE", type=Path, help="publishes these weights with a model card")
    add("--hardware", choices=list(HARDWARE), default="zero", help="cpu-basic needs a paid plan")
    add("--private", action="store_true", help="if it is created: only you can see it")
    add("--dry-run", action="store_true", help="only list what would be uploaded")
    args = parser.parse_args()
    if not re.fullmatch(REPOSITORY, args.repository):
        parser.error(f"expected USER/NAME, found {args.repository!r}")
    if args.model and args.weights:
        parser.error("--model and --weights: expected one of them")
    for name in args.weights:
        if name.startswith(PREFIX):
            parse(name)
    return args


def main() -> None:
    args = parse_arguments()
    kind = "model" if args.model else "space"
    if args.model:
        files = collect_model(args.repository, args.model)
    else:
        files = collect_space(args.weights, args.hardware)
    if args.dry_run:
        print_lines(*list_files(files))
        return
    print_lines(upload(args, kind, files))


if __name__ == "__main__":
    run(main)
