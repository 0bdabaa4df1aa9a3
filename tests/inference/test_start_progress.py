from app.inference.start_progress import StartProgress
from tests.support.clock import Clock


async def test_a_start_says_what_it_does_and_when_it_should_end(clock: Clock) -> None:
    progress = StartProgress()
    assert str(progress) == "checking the weights"
    read = [0]
    progress.begin_reading(lambda: (read[0], 6_000_000_000))
    assert str(progress) == "read 0.0 of 6.0 GB of weights"
    clock.sleep(2)
    read[0] = 1_500_000_000
    assert str(progress) == "read 1.5 of 6.0 GB of weights; the rest takes about 6 s"
    progress.begin_warm_up(3)
    assert str(progress) == "made 0 of 3 pictures to warm up"
    clock.sleep(5)
    progress.add_pictures(1)
    assert str(progress) == "made 1 of 3 pictures to warm up; ready in about 10 s"
