"""Is a clip like those that the weights were trained on? Fitted by training, used by predict.py.

A clip's features are compared with those of the training clips in two ways: how far it lies from
their centre within their main directions (Mahalanobis), and how much of it these directions do
not explain. Each is divided by its limit; the larger of the two is the clip's score, and over 1
the clip is unfamiliar.

Shapes: N clips, M mel bins, T frames, F = 3M features, K components.
"""

from collections.abc import Iterable

import numpy as np
from numpy import ndarray as Array

# One main direction for every 6 clips: with more, the fit says little of unseen people. Of 480
# synthetic clips 40 tell real speech apart by 1.5 times the limit, 20 did not.
CLIPS_PER_COMPONENT, COMPONENTS = 6, 40
FEWEST_CLIPS = 40  # below, the limits would be chance
FOLDS = 10  # of people, left out of the fit in turn, to see how far unseen ones lie
# The limit is this quantile of clips of people left out, and a margin for those unlike any of
# them. At .995 a single odd person among the training people could set it, and let others in.
QUANTILE, MARGIN = 0.99, 1.2
LEAST_SOUND = 1 / 3  # of a clip's frames; of 1,079 clips of four corpora the fewest have .35
LOUD = 0.5  # of a clip's range of 80 dB: such a frame is within 40 dB of the loudest
SHAPES = {  # of what fit returns
    "mean": "F",
    "scale": "F",
    "components": "KF",
    "variances": "K",
    "limits": "22",  # of whole clips and repeated ones; of the distance and of the residual
}

Familiarity = dict[str, Array]  # float32 arrays, by the names of SHAPES


# --- clips --------------------------------------------------------------------------------------


def fill(part: Array, length: int) -> Array:
    """Repeats (..., n) to (..., length)."""
    return part[..., np.arange(length) % part.shape[-1]]


def share_of_sound(clip: Array) -> float:
    """The share of the frames of a clip (M, T) in [0, 1] that are nearly as loud as the loudest."""
    return float((clip.max(axis=0) > LOUD).mean())


def clip_features(clip: Array) -> Array:
    """Each mel bin's mean, standard deviation and mean absolute change from frame to frame.

    Without the change a clip with its frames shuffled would be the same.

    Args:
        clip: (M, T) in [0, 1].

    Returns:
        (F,), float32.
    """
    changes = np.abs(np.diff(clip, axis=1, append=clip[:, -1:])).sum(axis=1)
    changes /= max(clip.shape[1] - 1, 1)
    return np.concatenate([clip.mean(axis=1), clip.std(axis=1), changes])


def halve(clip: Array) -> Array:
    """What predict.py would make of the first half of a clip (M, T) alone."""
    half = clip[:, : -(-clip.shape[1] // 2)]
    low, size = half.min(), np.ptp(half)
    return fill((half - low) / (size or 1), clip.shape[1])


# --- the fit ------------------------------------------------------------------------------------


def fit_components(features: Array) -> Familiarity:
    """Centre, scale and main directions of features (N, F), without the limits."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    count = min(max(len(features) // CLIPS_PER_COMPONENT, 1), COMPONENTS, features.shape[1])
    with np.errstate(invalid="ignore"):  # a fold's clips may all be the same
        pca = PCA(count, svd_solver="covariance_eigh").fit(scaler.transform(features))
    kept = pca.explained_variance_ > 1e-6  # what does not vary is left to the residual
    parts = (scaler.mean_, scaler.scale_, pca.components_[kept], pca.explained_variance_[kept])
    return dict(zip(SHAPES, (part.astype(np.float32) for part in parts), strict=False))


def measure(known: Familiarity, features: Array) -> Array:
    """Squared distance within the main directions and residual outside: (N, F) -> (N, 2)."""
    mean, scale, components, variances = (known[name].astype(float) for name in list(SHAPES)[:4])
    scaled = (features - mean) / scale
    places = scaled @ components.T
    distance = (places**2 / variances).sum(axis=1) / max(len(variances), 1)
    residual = ((scaled - places @ components) ** 2).mean(axis=1)
    return np.stack([distance, residual], axis=1)


def fit(clips: Iterable[Array], participants: Array) -> Familiarity | None:
    """What the training clips sound like; None of too few clips, or of one person.

    Repeated clips have limits of their own: of less sound, the features vary more.

    Args:
        clips: N arrays (M, T) in [0, 1]; none of them is kept.
        participants: (N,): limits come from clips whose people the fit has not seen.
    """
    from sklearn.model_selection import GroupKFold

    people = len(np.unique(participants))
    if people < 2 or len(participants) < FEWEST_CLIPS:
        return None
    pairs = [(clip_features(clip), clip_features(halve(clip))) for clip in clips]
    features = np.array(pairs, float).transpose(1, 0, 2)  # (2, N, F)
    whole, measured = features[0], np.empty((*features.shape[:2], 2))
    for rest, held in GroupKFold(min(FOLDS, people)).split(whole, groups=participants):
        known = fit_components(whole[rest])
        measured[:, held] = [measure(known, kind[held]) for kind in features]
    known = fit_components(whole)
    limits = MARGIN * np.quantile(measured, QUANTILE, axis=1)
    known["limits"] = limits.clip(1e-6).astype(np.float32)  # the clips may all be the same
    return known if len(known["variances"]) else None


# --- its use ------------------------------------------------------------------------------------


def score(known: Familiarity, clip: Array, repeated: bool = False) -> float:
    """How many times its limit a clip (M, T) is away from the training clips; over 1 unfamiliar."""
    measured = measure(known, clip_features(clip)[np.newaxis])[0]
    return float((measured / known["limits"][int(repeated)]).max())


def is_answerable(known: Familiarity, clip: Array) -> bool:
    """Whether a clip (M, T) of the training clips' length gets a verdict."""
    return share_of_sound(clip) >= LEAST_SOUND and score(known, clip) <= 1


def check_familiarity(known: Familiarity, n_mels: int) -> None:
    """Raises ValueError unless it is what fit returns for clips of so many mel bins."""
    if known.keys() != SHAPES.keys():
        raise ValueError(f"familiarity of {', '.join(known)}, expected {', '.join(SHAPES)}")
    sizes = {"F": 3 * n_mels, "K": known["variances"].size, "2": 2}
    for name, letters in SHAPES.items():
        array, shape = known[name], tuple(sizes[letter] for letter in letters)
        if array.dtype != np.float32 or array.shape != shape or not array.size:
            found = f"{array.dtype} {array.shape}, expected float32 {shape}"
            raise ValueError(f"familiarity.{name} is {found}")
        if not np.isfinite(array).all():
            raise ValueError(f"familiarity.{name} holds values that are not finite")
        if name in ("scale", "variances", "limits") and array.min() <= 0:
            raise ValueError(f"familiarity.{name} holds values <= 0")
