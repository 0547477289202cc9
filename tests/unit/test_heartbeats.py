from dispatcher.telemetry.heartbeats import Heartbeats


class Watched:
    """Heartbeats on a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.beats = Heartbeats(lambda: self.now)


def test_a_loop_that_beats_in_time_is_well() -> None:
    watched = Watched()
    watched.beats.expect("intake", 10)
    for watched.now in (9.0, 18.0, 28.0):
        assert watched.beats.stuck() == []
        watched.beats.beat("intake")


def test_a_loop_that_stops_beating_is_named_and_comes_back_with_a_beat() -> None:
    watched = Watched()
    watched.beats.expect("intake", 10)
    watched.beats.expect("depths", 100)
    watched.now = 10.5
    stuck = watched.beats.stuck()
    assert len(stuck) == 1
    assert "intake" in stuck[0]
    watched.beats.beat("intake")
    assert watched.beats.stuck() == []


def test_a_loop_that_never_beat_at_all_is_stuck_too() -> None:
    watched = Watched()
    watched.beats.expect("intake", 10)
    watched.now = 11
    assert watched.beats.stuck()


def test_a_loop_that_ended_as_it_should_is_no_longer_expected() -> None:
    watched = Watched()
    watched.beats.expect("poller-1", 10)
    watched.beats.forget("poller-1")
    watched.beats.forget("never known")
    watched.now = 1e6
    assert watched.beats.stuck() == []
