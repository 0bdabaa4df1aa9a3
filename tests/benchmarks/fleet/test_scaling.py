"""The autoscalers of the simulation, held to the examples of Kubernetes' and KEDA's documents."""

import pytest

from benchmarks.fleet.scaling import Behavior, External, Hpa, Keda, PerPod, Policy

AT_ONCE = Behavior(0, (Policy("Percent", 1000, 15),))


def hpa(**options: object) -> Hpa:
    return Hpa(**{"targets": {"load": 100.0}, "up": AT_ONCE, "down": AT_ONCE, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "expected"), [(200, 8), (50, 2), (109, 4), (91, 4), (111, 5), (89, 4), (70, 3)])
@pytest.mark.parametrize("per_pod", [True, False])
def test_replicas_follow_the_ratio_to_the_target_outside_of_the_tolerance(
    value: float, expected: int, *, per_pod: bool
) -> None:
    metric = PerPod([value] * 4) if per_pod else External(4 * value)

    assert hpa().sync(0, 4, {"load": metric}) == expected


def test_of_several_metrics_the_largest_wish_counts() -> None:
    both = hpa(targets={"load": 100.0, "queue": 4.0})

    assert both.sync(0, 2, {"load": External(100), "queue": External(40)}) == 10


def test_a_missing_metric_prevents_scaling_down_but_not_up() -> None:
    both = hpa(targets={"load": 100.0, "queue": 4.0})

    assert both.sync(0, 4, {"load": External(100), "queue": External(None)}) == 4
    assert both.sync(15, 4, {"load": External(800), "queue": External(None)}) == 8


def test_pods_without_metrics_count_as_idle_when_scaling_up_and_as_at_the_target_when_scaling_down() -> None:
    # Up: 2 pods with 300, and 2 that count as 0, are 150 on average: 6 pods. Without them it would be 12.
    assert hpa().sync(0, 4, {"load": PerPod([300, 300], missing=2)}) == 6
    # Down: 2 pods with 40, and 2 that count as 100, are 70 on average: 3 pods. Without them it would be 2.
    assert hpa().sync(0, 4, {"load": PerPod([40, 40], missing=2)}) == 3
    # The direction would change: nothing happens.
    assert hpa().sync(0, 4, {"load": PerPod([150], missing=3)}) == 4


def test_the_documents_scale_down_from_80_removes_8_and_8_and_later_4_at_a_time() -> None:
    down = Behavior(0, (Policy("Pods", 4, 60), Policy("Percent", 10, 60)))
    scaler, sizes = hpa(down=down), [80]
    for minute in range(14):
        sizes.append(scaler.sync(60.5 * minute, sizes[-1], {"load": External(1000)}))

    assert sizes[:3] == [80, 72, 64]
    assert sizes[7:] == [36, 32, 28, 24, 20, 16, 12, 10]


def test_a_policy_limits_the_changes_of_its_whole_period() -> None:
    scaler, sizes = hpa(up=Behavior(0, (Policy("Pods", 2, 60),))), [1]
    for sync in range(9):
        sizes.append(scaler.sync(15 * sync, sizes[-1], {"load": External(1000)}))

    assert sizes == [1, 3, 3, 3, 3, 5, 5, 5, 5, 7]


def test_the_stabilization_window_waits_for_the_highest_wish_to_pass_before_scaling_down() -> None:
    scaler, size, sizes = hpa(down=Behavior(300, (Policy("Percent", 100, 15),))), 4, []
    for sync in range(24):
        size = scaler.sync(15 * sync, size, {"load": External(400 if sync == 0 else 100)})
        sizes.append(size)

    assert sizes == [4] * 20 + [1] * 4


def test_keda_adds_the_first_replica_above_the_threshold_and_removes_the_last_after_the_cooldown() -> None:
    keda = Keda(activation=5, cooldown_s=300)

    assert keda.poll(1000, 0, 5) == 0
    assert keda.poll(1030, 0, 6) == 1
    assert keda.poll(1300, 1, 0) == 1
    assert keda.poll(1330, 1, 0) == 0
