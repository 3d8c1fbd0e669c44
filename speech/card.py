"""The verdict card in HTML, and what the page says of a model in Markdown."""

from collections import Counter
from html import escape

from speech import words
from speech.cli import safe_name
from speech.report import CLASS_NAMES, format_scores
from speech.verdict import ERROR, NO_VERDICT, UNCERTAIN, Row, format_number

CLASSES = dict(zip((*CLASS_NAMES, "uncertain"), ("not", "yes", "unsure"), strict=True))  # CSS's
MOST_NAMED = 10  # of the files that could not be read; the others are folded
LABELS_GO = "<p>A file of labels goes under <b>I have labels</b>, below the box for files.</p>"
BRIEFLY = 3  # rows of the scores that are shown unfolded: accuracy, the majority's, balanced
USE = """Meant for research on voices, and for seeing what such models can and cannot do. Not for
decisions about anybody: not at work, in school, in insurance, in medicine. It hears 8 seconds at a
time, in the language, the recording quality and the kind of people it was trained on; elsewhere it
is worth less, or nothing. Whoever serves it to others must tell them what it is: guessing emotions
at work or in education is forbidden in the EU (AI Act, Art. 5), and elsewhere people must be told
(Art. 50)."""

MEANINGLESS = '<p class="warning">Means nothing for a real voice: trained on synthetic ones.</p>'

Card = tuple[str, str]  # its heading, and what follows
Facts = dict[
    str, dict
]  # the metadata of the weights that answer, by the names that the page offers


# --- states -------------------------------------------------------------------------------------


def heading(text: str, tone: str = "quiet", new: bool = True) -> str:
    """The card's heading, of HTML.

    Args:
        new: whether a phone scrolls to it.
    """
    return f'<h2 class="{tone}"{" data-show" if new else ""}>{text}</h2>'


EMPTY = (
    heading("Your result appears here", new=False),
    "<p>Try an example: one click. Or choose a file, or record yourself, then Classify.</p>",
)
READY = heading("Ready", new=False), "<p>Press Classify.</p>"
RECORDING = (
    heading("Recording", new=False),
    "<p>Speak for 8 seconds or more. Then press Stop, and Classify.</p>",
)
STALE = (
    heading("Classify again", new=False),
    "<p>What you chose has changed since the last result.</p>",
)
STOPPED = heading("Stopped"), "<p>The work has ended; nothing of it was kept.</p>"


def draw_failure(reason: str) -> Card:
    return heading("That did not work"), f"<p>{escape(reason)}</p>"


def draw_progress(share: float, text: str) -> Card:
    bar = '<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
    bar += f'aria-valuenow="{100 * share:.0f}" aria-label="Classifying">'
    return heading("Working"), f'<p>{text}</p>{bar}<div style="width:{share:.0%}"></div></div>'


# --- a result -----------------------------------------------------------------------------------


def draw_scale(row: Row) -> str:
    low, high = UNCERTAIN
    score = format_number(row.probability)
    place = min(max(row.probability, 0.03), 0.97)  # the marker stays on the track
    text = f"Score {score}, from 0 ({CLASS_NAMES[0]}) to 1 ({CLASS_NAMES[1]}); "
    text += f"{low} to {high} is uncertain"
    return (
        f'<div class="scale" role="img" aria-label="{text}"><div class="track">'
        f'<div class="band"></div><div class="marker {CLASSES[row.verdict]}" '
        f'style="left:{place:.1%}"></div></div><div class="ends"><span>0 '
        f"{words.mark(CLASS_NAMES[0])}</span>{words.mark('uncertain', 'uncertain')}"
        f"<span>{words.mark(CLASS_NAMES[1])} 1</span></div></div>"
    )


def describe_score(row: Row) -> str:
    score = format_number(row.probability)
    if row.verdict == "uncertain":
        return f"Score {score}: between the clips labelled {' and '.join(CLASS_NAMES)}."
    return f"Score {score}: more like the clips labelled {row.verdict}."


def describe_spread(row: Row) -> str:
    """How far the networks behind the score disagree."""
    if row.spread is None:
        return ""
    return f"<p>The networks behind it differ by {row.spread:.2f} (standard deviation).</p>"


def describe_worth(facts: Facts) -> str:
    """One sentence: how often the models were right about people they had not heard."""
    right = []
    for name, metadata in facts.items():
        accuracy = metadata["test"]["participants"].get("accuracy")  # None: converted weights
        n = metadata["data"]["participants"].get("test", 0)
        if accuracy and accuracy["value"] is not None:
            whose = "this model" if len(facts) == 1 else safe_name(name)
            share = f"about {accuracy['value'] * n:.0f} of {n} people"
            interval = f"[{accuracy['low']:.2f}, {accuracy['high']:.2f}]"
            right.append(f"{whose} was right {share} {interval}")
    if not right:
        return "Nobody has tested this model on people it had not heard."
    return f"In its test {'; '.join(right)}."


def describe_check(facts: Facts) -> str:
    """Which weights cannot tell whether a clip is like those that they were trained on."""
    old = [name for name, metadata in facts.items() if not metadata["familiarity"]]
    if len(old) == len(facts):
        return words.NOT_CHECKED
    able = " and ".join(name for name in facts if name not in old)
    return words.CHECKED_BY.format(able, " and ".join(old)) if old else ""


def is_synthetic(facts: Facts) -> bool:
    return any(metadata["data"]["synthetic"] for metadata in facts.values())


def describe_notice(facts: Facts) -> str:
    """What goes with every answer: that it is no diagnosis, and what else limits it."""
    parts = words.NOTICE, words.SYNTHETIC if is_synthetic(facts) else "", describe_check(facts)
    return " ".join(filter(None, parts))


def list_unread(clips: list[Row], files: int) -> str:
    bad = [row for row in clips if row.verdict == ERROR]
    if not bad:
        return ""
    named = [f"<li>{escape(row.clip)}: {escape(row.note)}</li>" for row in bad]
    shown, rest = "".join(named[:MOST_NAMED]), "".join(named[MOST_NAMED:])
    more = f"<details><summary>and {len(bad) - MOST_NAMED} more</summary><ul>{rest}</ul></details>"
    labels = any(row.note.endswith("(text)") for row in bad)
    return (
        f"<p><b>{len(bad)} of {files} files could not be read</b></p><ul>{shown}</ul>"
        f"{more if rest else ''}{LABELS_GO if labels else ''}"
    )


def list_people(people: list[Row], clips: list[Row]) -> str:
    counts = Counter(row.participant for row in clips if row.verdict != ERROR)
    rows = "".join(
        f'<tr><td>{escape(p.participant)}</td><td class="number">'
        f"{format_number(p.probability) if p.verdict in CLASSES else '–'}</td>"
        f'<td class="word {CLASSES.get(p.verdict, "none")}">{words.mark(p.verdict, p.verdict)}</td>'
        f'<td class="number">{counts[p.participant]}</td></tr>'
        for p in people
    )
    heads = '<th>Person</th><th class="number">Score</th><th>Verdict</th>'
    heads += '<th class="number">Clips</th>'
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="people" tabindex="0" role="region" aria-label="People">{table}</div>'


def explain_refusal(row: Row, clips: list[Row]) -> str:
    """Why one person has no verdict: their clips' most frequent reason."""
    notes = Counter(clip.note for clip in clips if clip.verdict == NO_VERDICT and clip.note)
    reason = notes.most_common(1)[0][0] if notes else row.note
    return f'<p class="plain">No verdict: {escape(reason)}.</p><p>{escape(row.note)}.</p>'


def describe_person(row: Row, clips: list[Row]) -> str:
    n = sum(clip.verdict != ERROR for clip in clips)
    mean, *left_out = row.note.split(", ")  # "mean of 3, 1 without a verdict left out"
    mean += " clip" if mean == "mean of 1" else " clips"
    whose = ", ".join([escape(row.participant), *([mean, *left_out] if n > 1 else ["one clip"])])
    sentence = f'{describe_score(row)} <span class="hint">({whose})</span>'
    return f'{draw_scale(row)}<p class="plain">{sentence}</p>{describe_spread(row)}'


def head_people(people: list[Row]) -> str:
    if len(people) == 1:
        return heading(words.mark(people[0].verdict), CLASSES.get(people[0].verdict, "none"))
    counts = Counter(person.verdict for person in people).most_common()
    counted = ", ".join(f"{n} {words.mark(word, word)}" for word, n in counts)
    return heading(f"{len(people)} people: {counted}")


def format_result(facts: Facts, rows: list[Row], files: int) -> Card:
    """The card of a result.

    Args:
        rows: of a file that could not be read, `clip` is its whole name.
    """
    people, clips = [row for row in rows if not row.clip], [row for row in rows if row.clip]
    unread = list_unread(clips, files)
    if not people:
        return heading(words.mark(NO_VERDICT), "none"), f"<p>Nothing could be read.</p>{unread}"
    synthetic = words.SYNTHETIC if is_synthetic(facts) else ""
    head = head_people(people) + (MEANINGLESS if synthetic else "")
    parts = describe_worth(facts), synthetic, escape(describe_check(facts))
    worth = f'<p class="worth">{" ".join(filter(None, parts))}</p>'
    if len(people) > 1:
        return head, unread + list_people(people, clips) + worth
    [row] = people
    if row.verdict == NO_VERDICT:
        return head, unread + explain_refusal(row, clips)
    return head, unread + describe_person(row, clips) + worth


def describe_notes(clips: list[Row]) -> str:
    """Notes that all clips share, said once."""
    notes = {row.note for row in clips}
    return f"All clips: {notes.pop()}." if len(notes) == 1 and clips[0].note else ""


# --- about the model ----------------------------------------------------------------------------


def describe_weights(name: str, metadata: dict) -> tuple[str, str]:
    """What a weights file says of itself, in Markdown: a sentence and three rows; all the rest."""
    data, test = metadata["data"], metadata["test"]

    def shown(value: object) -> str:  # a stranger's weights file may say anything
        return safe_name(str(value))

    people, versions = data["participants"], metadata["versions"].items()
    sides = [
        f"{shown(side)} {shown(n)} ({shown(people[side])})" for side, n in data["clips"].items()
    ]
    versions = shown(" ".join(f"{package} {version}" for package, version in versions))
    corpus = shown(data["corpus"] or "a corpus that is not named")
    heard = f"{shown(people['train'])} people of " if people.get("train") else ""
    text = f"### {shown(name)}\nIt learnt from {heard}{corpus}. "
    text += f"{describe_worth({name: metadata})}\n"
    heads = ["| Test score [95% interval] | clips | people |", "|---|---|---|"]
    rows = [
        f"| {title} | {' | '.join(row)} |"
        for title, row in format_scores(test["clips"], test["participants"])
    ]
    more = f"Split by {shown(data['split'])}; clips (people): {', '.join(sides)}. "
    more += f"Trained with {versions}."
    brief = "\n".join([text, *heads, *rows[:BRIEFLY]])
    return brief, "\n".join([*heads, *rows[BRIEFLY:], "", more])
