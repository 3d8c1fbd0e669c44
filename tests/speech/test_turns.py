"""speech/turns.py: turns among jobs, callers who leave, and how much sound one may bring."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import demo
import predict
from speech import turns
from speech.cli import InputError

import numpy as np
import pytest
import soundfile
from phone_recordings import write_recording
from test_demo import write_sound_weights


def test_a_long_job_holds_up_a_short_one_by_one_turn():
    shared, done = turns.Turns(), []

    def work(name, steps):
        turn = shared.join()
        for _ in range(steps):
            with turn:
                time.sleep(0.02)
                done.append(name)

    with ThreadPoolExecutor(9) as pool:
        for number in range(8):
            pool.submit(work, f"long {number}", 25)
        while len(done) < 5 * 8:
            time.sleep(0.01)
        before = len(done)
        pool.submit(work, "short", 2).result()
        # First come, first served: 18. In steps, not seconds: they take long on a busy machine.
        assert len(done) - before <= 13
    assert len(done) == 8 * 25 + 2  # the long ones came to their end too


def test_a_job_that_rests_lets_another_on():
    shared, began = turns.Turns(), threading.Event()

    def work_long():
        with shared.join() as turn:
            for _ in range(100):
                began.set()
                time.sleep(0.02)
                turn.rest()

    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(work_long)
        began.wait()
        started = time.monotonic()
        with shared.join():
            assert time.monotonic() - started < 0.5
        assert not long.done()


def test_a_step_that_takes_long_is_not_waited_for_by_a_short_job(monkeypatch):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.2)
    shared, began, end = turns.Turns(), threading.Event(), threading.Event()

    def step_long():
        with shared.join():
            began.set()
            end.wait(10)

    waited = []

    def step_short(started, seconds):
        with shared.join():
            waited.append(time.monotonic() - started)
            time.sleep(seconds)

    with ThreadPoolExecutor(4) as pool:
        pool.submit(step_long)
        began.wait()
        started = time.monotonic()  # one clock, or the second to come seems to wait less
        pool.submit(step_short, started, 0.3)
        pool.submit(step_short, started, 0.3).result()
        assert 0.2 <= waited[0] < 0.4 and 0.5 <= waited[1] < 0.8  # one beside it, not all
        worked = shared.join()
        worked.used = 1.0  # a job that has had its share waits for the step's end
        entered = pool.submit(lambda: worked.__enter__())
        time.sleep(0.5)
        assert not entered.done()
        end.set()
        entered.result(5)
        worked.__exit__()
    assert shared.busy == 0 and not shared.waiting


def test_a_job_stops_when_whoever_asked_has_gone(monkeypatch):
    listeners = turns.Listeners()
    with listeners.listening("a"):
        has_gone = listeners.watch("a")
        assert not has_gone()
    assert has_gone()
    later = listeners.watch("a")  # the next job of the same visitor, who is about to listen
    assert not later()
    monkeypatch.setattr(turns, "UNHEARD_SECONDS", -1.0)
    assert later() and not listeners.watch(None)()
    monkeypatch.setattr(turns, "MAX_LEFT", 2)
    for session in "abcda":  # strangers can bring any number of sessions
        with listeners.listening(session):
            pass
    assert [*listeners.left] == ["d", "a"]


def test_the_sound_of_one_request_is_bounded_and_no_file_counts_twice(tmp_path, monkeypatch):
    for name, seconds in (("a", 60), ("b", 50)):
        soundfile.write(tmp_path / f"{name}.flac", np.zeros(seconds * 8000), 8000)
    a, b = tmp_path / "a.flac", tmp_path / "b.flac"
    (tmp_path / "c.wav").write_text("no sound")
    turns.check_sources([a, b, tmp_path / "c.wav", tmp_path / "d.npy"], 110)
    with pytest.raises(InputError, match="more than 100 s of sound"):
        turns.check_sources([a, b], 100)
    with pytest.raises(InputError, match="a.flac is listed 2 times"):
        turns.check_sources([a, b, tmp_path / "." / "a.flac"])
    monkeypatch.setattr(turns, "LOOK_SECONDS", -1.0)  # many files that stall their decoders
    with pytest.raises(InputError, match="to look at 2 files takes too long"):
        turns.check_sources([a, b])
    budget = turns.Budget(10)
    budget.spend(10)
    with pytest.raises(InputError):  # a header may lie: while decoding, again
        budget.spend(0.1)


def test_sound_of_many_samples_a_second_counts_for_more(tmp_path):
    """A FLAC of 1 MB unpacks to an hour of eight silent channels at 192 kHz: a minute of work."""
    wide, usual, foreign = (tmp_path / name for name in ("a.flac", "b.flac", "c.mka"))
    soundfile.write(wide, np.zeros((5 * 192_000, 8)), 192_000)
    soundfile.write(usual, np.zeros((5 * 48_000, 2)), 48_000)
    write_recording(foreign, "flac", rate=192_000, channels=2)
    turns.check_sources([usual], 5)
    turns.check_sources([wide], 80)
    with pytest.raises(InputError, match="more than 79 s .* has 1536000: save it as mono at 16 k"):
        turns.check_sources([wide], 79)
    with pytest.raises(InputError, match="more than 11 s .* has 384000"):
        turns.check_sources([foreign], 11)
    models = predict.load_models(write_sound_weights(tmp_path))
    work = demo.plan_work([foreign], models[0][1])
    work.budget = turns.Budget(11)
    with pytest.raises(InputError, match="more than 11 s"):
        demo.classify(models, [foreign], work)


def test_spectrograms_count_as_sound_by_their_header(tmp_path):
    header = {"descr": "|i1", "fortran_order": False, "shape": (128, 250_000)}  # 2.2 hours
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError, match="more than 2 hours of sound"):
        turns.check_sources([tmp_path / "a.npy"])
    (tmp_path / "b.npy").write_text("no array")
    (tmp_path / "c.raw").write_text("no header")
    turns.check_sources([tmp_path / "b.npy", tmp_path / "c.raw"])


def test_sound_is_counted_again_while_it_is_decoded(tmp_path):
    """Headers lie. It ends the whole request: no file after the other with an error of its own."""
    models = predict.load_models(write_sound_weights(tmp_path))
    paths = [tmp_path / f"{n}.m4a" for n in range(4)]
    for path in paths:
        write_recording(path, "aac", seconds=9)
    work = demo.plan_work(paths, models[0][1])
    work.budget = turns.Budget(20)
    with pytest.raises(InputError, match="more than 20 s of sound at once"):
        demo.classify(models, paths, work)
    assert work.read < 8  # of 2 clips each: the last file was not read
