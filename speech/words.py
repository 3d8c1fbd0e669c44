"""The notices, and what visitors read in their own language: verdicts, the notice, where help is.

words.js picks the language by the visitor's browser; English where there is none of these. Gradio's
own translation has no Italian, and translates one word of a text.
"""

NOTICE = "This is not a diagnosis. It is a research model's guess from a few seconds of sound; "
NOTICE += "it can be wrong, and only a professional can assess depression."
HELP = "<a href='https://findahelpline.com' target='_blank'>findahelpline.com</a>"
SYNTHETIC = "Trained on synthetic voices: its verdicts mean nothing about real people."
NOT_CHECKED = "Not checked, as these weights cannot tell: whether clips are like those of training."
CHECKED_BY = "Whether clips are like the training clips is checked by {} alone: {} cannot tell."
KEEP_SECONDS = 30 * 60  # of uploads: time for another look at the results
SWEPT = f"deleted after {KEEP_SECONDS // 60} minutes: choose it again"
KEYS = ("Depressed", "Not Depressed", "uncertain", "no verdict", "notice", "help")

ENGLISH = (
    "Depressed",
    "Not Depressed",
    "Uncertain",
    "No verdict",
    NOTICE,
    "If you are not well, or worry about somebody, talk to a doctor or to a person you trust. "
    f"{HELP} lists free, confidential help in your country; in an emergency call your local "
    "number.",
)
GERMAN = (
    "Depressiv",
    "Nicht depressiv",
    "Unsicher",
    "Kein Ergebnis",
    "Das ist keine Diagnose. Ein Forschungsmodell hat aus wenigen Sekunden Ton geraten; es kann "
    "sich irren, und nur Fachleute können eine Depression feststellen.",
    "Wenn es Ihnen nicht gut geht oder Sie sich um jemanden sorgen: Sprechen Sie mit einer Ärztin, "
    f"einem Arzt oder jemandem, dem Sie vertrauen. {HELP} nennt kostenlose, vertrauliche Hilfe in "
    "Ihrem Land; im Notfall wählen Sie den Notruf.",
)
ITALIAN = (
    "Depresso",
    "Non depresso",
    "Incerto",
    "Nessun risultato",
    "Questa non è una diagnosi. È l'ipotesi di un modello di ricerca su pochi secondi di audio; "
    "può sbagliare, e solo un professionista può valutare una depressione.",
    "Se non stai bene, o sei in pensiero per qualcuno, parlane con un medico o con una persona di "
    f"fiducia. {HELP} elenca aiuti gratuiti e riservati nel tuo Paese; in un'emergenza chiama il "
    "numero locale.",
)
SPANISH = (
    "Deprimido",
    "No deprimido",
    "Incierto",
    "Sin resultado",
    "Esto no es un diagnóstico. Es la conjetura de un modelo de investigación a partir de unos "
    "segundos de sonido; puede equivocarse, y solo un profesional puede evaluar una depresión.",
    "Si no te encuentras bien, o te preocupa alguien, habla con un médico o con una persona de "
    f"confianza. {HELP} reúne ayuda gratuita y confidencial en tu país; en una emergencia llama "
    "al número local.",
)
FRENCH = (
    "Dépressif",
    "Non dépressif",
    "Incertain",
    "Pas de résultat",
    "Ceci n'est pas un diagnostic. C'est la supposition d'un modèle de recherche d'après quelques "
    "secondes de son ; il peut se tromper, et seul un professionnel peut évaluer une dépression.",
    "Si vous n'allez pas bien, ou si vous vous inquiétez pour quelqu'un, parlez-en à un médecin ou "
    f"à une personne de confiance. {HELP} recense des aides gratuites et confidentielles dans "
    "votre pays ; en cas d'urgence, appelez le numéro local.",
)
CHINESE = (
    "抑郁",
    "未抑郁",
    "不确定",
    "无结果",
    "这不是诊断。这是一个研究模型根据几秒钟的声音作出的猜测，可能出错；只有专业人士才能评估抑郁症。",
    f"如果您感觉不好，或为他人担心，请与医生或您信任的人谈谈。{HELP} "
    "列有您所在国家的免费、保密的帮助；紧急情况请拨打当地急救电话。",
)

LANGUAGES = {"en": ENGLISH, "de": GERMAN, "it": ITALIAN, "es": SPANISH, "fr": FRENCH}
LANGUAGES |= dict.fromkeys(("zh-CN", "zh-TW", "zh"), CHINESE)


def find_key(word: str) -> str:
    """What translations() call a word of KEYS."""
    return f"speech.{word.replace(' ', '_')}"


def translations() -> dict[str, dict[str, str]]:
    """{language: {key: text}}, as words.js takes them."""
    keys = [find_key(word) for word in KEYS]
    return {name: dict(zip(keys, texts, strict=True)) for name, texts in LANGUAGES.items()}


def mark(word: str, text: str = "") -> str:
    """A word of KEYS in HTML, for words.js to translate.

    Args:
        text: what stands there in English, if not the text of ENGLISH.
    """
    key = find_key(word)
    return f'<span data-word="{key}">{text or translations()["en"][key]}</span>'
