"""As many polls as come back full."""

from dispatcher.policy.receives import PAUSE_S, Receives


def test_a_full_receive_opens_another_until_there_are_enough() -> None:
    receives = Receives(3)
    for wanted in (2, 3, 3):
        assert receives.came(10) == 0.0
        assert receives.wanted == wanted


def test_near_empty_ones_close_one_after_the_other_and_the_last_stays() -> None:
    receives = Receives(8, wanted=3)
    for wanted in (2, 1, 1):
        receives.came(0)
        assert receives.wanted == wanted


def test_half_full_ones_change_nothing() -> None:
    receives = Receives(8, wanted=3)
    assert receives.came(5) == 0.0
    assert receives.wanted == 3


def test_only_the_last_poller_pauses_and_only_after_a_short_receive() -> None:
    """After an empty one it has waited long enough, after a full one more waits."""
    assert Receives(8).came(3) == PAUSE_S
    assert Receives(8).came(0) == 0.0
    assert Receives(8, wanted=2).came(5) == 0.0
