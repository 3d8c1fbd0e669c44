"""speech/familiarity.py against scikit-learn, other kinds of clips and hostile values."""

import time

from speech import familiarity
from speech.dataset import min_max, read_labels, read_spectrogram

import numpy as np
import pytest
from conftest import SHARED
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

SHAPE = (16, 40)


def speak(people, clips, seed=0, shape=SHAPE, tilt=0.0):
    """Clips (N, M, T) and who speaks: people differ a little, clips of a person less."""
    rng = np.random.default_rng(seed)
    voices = np.repeat(rng.normal(0, 0.3, (people, shape[0], 1)), clips, axis=0)
    levels = np.linspace(0, tilt, shape[0])[:, None]
    noise = rng.normal(size=(people * clips, *shape)).cumsum(axis=2) / 3  # smooth in time
    array = [min_max(clip) for clip in voices + noise + levels]
    return np.array(array, np.float32), np.repeat(np.arange(people), clips).astype(str)


@pytest.fixture(scope="module")
def known():
    return familiarity.fit(*speak(20, 10))


def scores(known, clips, repeated=False):
    return np.array([familiarity.score(known, clip, repeated) for clip in clips])


# --- clips --------------------------------------------------------------------------------------


def test_features_by_hand():
    clip = np.random.default_rng(0).random((4, 9)).astype(np.float32)
    found = familiarity.clip_features(clip)
    assert found.shape == (12,)
    changes = [np.mean([abs(row[t + 1] - row[t]) for t in range(8)]) for row in clip]
    expected = [*clip.mean(axis=1), *clip.std(axis=1), *changes]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert familiarity.clip_features(clip[:, :1])[8:].tolist() == [0] * 4


def test_what_is_shorter_is_repeated():
    part = np.arange(6).reshape(2, 3)
    expected = [[0, 1, 2, 0, 1, 2, 0], [3, 4, 5, 3, 4, 5, 3]]
    assert familiarity.fill(part, 7).tolist() == expected
    half = familiarity.halve(np.array([[2.0, 4.0, 6.0, 9.0, 9.0]]))
    assert half.tolist() == [[0, 0.5, 1, 0, 0.5]], "scaled and repeated as predict.py does"
    assert familiarity.halve(np.array([[3.0, 3.0, 8.0, 9.0]])).tolist() == [[0] * 4]


def test_share_of_sound_counts_frames():
    clip = np.zeros((3, 10))
    clip[1, :4], clip[2, 2:5] = 1, 0.6
    assert familiarity.share_of_sound(clip) == 0.5


# --- the fit ------------------------------------------------------------------------------------


def test_the_measures_are_scikit_learns(known):
    clips, _ = speak(20, 10)
    features = np.array([familiarity.clip_features(clip) for clip in clips], float)
    scaled = StandardScaler().fit_transform(features)
    pca = PCA(len(known["variances"]), svd_solver="full").fit(scaled)
    whitened = PCA(len(known["variances"]), svd_solver="full", whiten=True).fit_transform(scaled)
    residual = scaled - pca.inverse_transform(pca.transform(scaled))
    expected = np.stack([(whitened**2).mean(axis=1), (residual**2).mean(axis=1)], axis=1)
    np.testing.assert_allclose(familiarity.measure(known, features), expected, rtol=1e-3)
    times = (expected / known["limits"][0]).max(axis=1)
    np.testing.assert_allclose(scores(known, clips), times, rtol=1e-3)


def test_unseen_people_are_familiar_and_other_clips_are_not(known):
    unseen, _ = speak(20, 10, seed=1)
    assert (scores(known, unseen) > 1).mean() <= 0.03
    halves = np.array([familiarity.halve(clip) for clip in unseen])
    assert (scores(known, halves, repeated=True) > 1).mean() <= 0.03
    rng = np.random.default_rng(2)
    others = {
        "shuffled frames": unseen[:, :, rng.permutation(SHAPE[1])],
        "noise": rng.random((20, *SHAPE), np.float32),
        "another tilt": speak(4, 5, seed=3, tilt=40)[0],
        "power": 10 ** (8 * unseen - 8),
    }
    for name, clips in others.items():
        assert (scores(known, clips) > 1).mean() >= 0.98, name


def test_limits_come_from_people_left_out():
    """One voice each, heard often: clips of the same people would make the limits too narrow."""
    rng = np.random.default_rng(0)
    voices = np.repeat(rng.normal(0, 3, (8, SHAPE[0], 1)), 20, axis=0)
    clips = [min_max(clip) for clip in voices + rng.normal(size=(160, *SHAPE))]
    people = np.repeat(np.arange(8), 20)
    apart = familiarity.fit(clips, people)["limits"]
    mixed = familiarity.fit(clips, rng.permutation(people))["limits"]
    assert (apart > 1.5 * mixed).any() and (apart > 0.9 * mixed).all()


def test_the_same_clips_give_the_same_bytes_and_few_of_them():
    clips, people = speak(8, 10, shape=(128, 30))
    first, second = familiarity.fit(clips, people), familiarity.fit(iter(clips), people)
    assert first.keys() == familiarity.SHAPES.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    many = familiarity.COMPONENTS * 3 * 128 + 3 * 128 * 2
    assert 4 * many < 100_000 and sum(array.nbytes for array in first.values()) < 4 * many
    familiarity.check_familiarity(first, 128)


@pytest.mark.parametrize(("people", "clips"), [(1, 100), (13, 3), (1, 1), (0, 0)])
def test_too_few_clips_or_people_are_not_checked(people, clips):
    assert familiarity.fit(*speak(people, clips)) is None


@pytest.mark.parametrize(("people", "clips"), [(2, 20), (3, 14), (40, 1)])
def test_few_people_are_enough_not_to_crash(people, clips):
    known = familiarity.fit(*speak(people, clips))
    familiarity.check_familiarity(known, SHAPE[0])
    assert np.isfinite(scores(known, speak(2, 2, seed=5)[0])).all()


@pytest.mark.filterwarnings("error")
def test_clips_without_any_difference_do_not_crash():
    clip = speak(1, 1)[0][0]
    assert familiarity.fit([clip] * 50, np.arange(50) // 10) is None
    others = speak(1, 25, seed=3)[0]
    known = familiarity.fit([*[clip] * 25, *others], np.arange(50) // 25)  # a fold has one clip
    familiarity.check_familiarity(known, SHAPE[0])


def test_a_score_takes_less_than_a_millisecond():
    clips, people = speak(8, 10, shape=(128, 251))
    known = familiarity.fit(clips, people)
    taken = []
    for clip in clips:
        start = time.perf_counter()
        familiarity.score(known, clip)
        taken.append(time.perf_counter() - start)
    assert np.median(taken) < 0.001


# --- hostile values -----------------------------------------------------------------------------


def changed(known, name, array):
    return known | {name: array}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mean", lambda a: a[:-1]),
        ("mean", lambda a: a.astype(float)),
        ("mean", lambda a: a * np.float32("nan")),
        ("scale", lambda a: a * 0),
        ("scale", lambda a: -a),
        ("components", lambda a: a.T),
        ("components", lambda a: a[:0]),
        ("components", lambda a: a.ravel()),
        ("components", lambda a: np.float32(1).reshape(())),
        ("variances", lambda a: a[:-1]),
        ("variances", lambda a: a * np.float32("inf")),
        ("limits", lambda a: a * 0),
        ("limits", lambda a: a[:1]),
    ],
)
def test_hostile_values_are_refused(known, name, change):
    familiarity.check_familiarity(known, SHAPE[0])
    with pytest.raises(ValueError, match="familiarity"), np.errstate(invalid="ignore"):
        familiarity.check_familiarity(changed(known, name, change(known[name])), SHAPE[0])


def test_hostile_names_are_refused(known):
    for wrong in ({"more": known["mean"], **known}, {"mean": known["mean"]}):
        with pytest.raises(ValueError, match=r"familiarity of .*, expected mean, scale"):
            familiarity.check_familiarity(wrong, SHAPE[0])
    with pytest.raises(ValueError, match="familiarity.mean is float32"):
        familiarity.check_familiarity(known, SHAPE[0] + 1)


@pytest.mark.parametrize("name", ["mean", "scale", "components", "variances", "limits"])
@pytest.mark.parametrize("value", [1e-45, 1e-30, 3e38])
def test_the_largest_numbers_overflow_nothing(known, name, value):
    extreme = changed(known, name, np.full_like(known[name], value))
    familiarity.check_familiarity(extreme, SHAPE[0])
    with np.errstate(all="raise"):
        assert np.isfinite(familiarity.score(extreme, speak(1, 1)[0][0]))


# --- real speech --------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason="no real speech at hand")
def test_real_speech_of_unseen_people_is_familiar_and_noise_is_not():
    frame, _ = read_labels(SHARED / "emodb" / "dataset.csv")
    clips = [read_spectrogram(SHARED / f"emodb/Spectrograms/{name}.npy") for name in frame["id"]]
    held = frame["participant"].isin(sorted(frame["participant"].unique())[:2]).to_numpy()
    rest = [clip for clip, out in zip(clips, held, strict=True) if not out]
    known = familiarity.fit(rest, frame["participant"][~held])
    unseen = scores(known, [clip for clip, out in zip(clips, held, strict=True) if out])
    assert (unseen > 1).mean() <= 0.06
    rng = np.random.default_rng(0)
    assert (scores(known, rng.random((5, *clips[0].shape), np.float32)) > 3).all()
