"""Autoscalers: Kubernetes' HorizontalPodAutoscaler (autoscaling/v2), and KEDA, which adds zero replicas to it.

Sources: https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ (algorithm, behavior),
pkg/controller/podautoscaler of kubernetes/kubernetes (order of the steps, rounding), and
https://keda.sh/docs/latest/reference/scaledobject-spec/ (polling, cooldown, activation).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

SYNC_S = 15.0
"""`--horizontal-pod-autoscaler-sync-period`."""


@dataclass(frozen=True, slots=True)
class Policy:
    """At most `value` pods, or percent of them, may be added or removed within `period_s`."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Behavior:
    """How fast the number of replicas may change in one direction. With several policies, the fastest applies."""

    stabilization_s: float
    policies: Sequence[Policy]


DEFAULT_UP = Behavior(0, (Policy("Pods", 4, 15), Policy("Percent", 100, 15)))
DEFAULT_DOWN = Behavior(300, (Policy("Percent", 100, 15),))


@dataclass(frozen=True, slots=True)
class PerPod:
    """A `Pods` metric: the value of each ready pod that has one, and the number of pods without one."""

    values: Sequence[float]
    missing: int = 0

    def replicas(self, current: int, target: float, tolerance: float) -> int | None:
        """Return the number of replicas that this metric asks for; None if no pod has a value.

        When scaling down, a pod without a value counts as at the target; when scaling up, as 0.
        """
        if not self.values:
            return None
        ratio = sum(self.values) / len(self.values) / target
        if not self.missing:
            return current if abs(1 - ratio) <= tolerance else math.ceil(ratio * len(self.values))
        assumed = target if ratio < 1 else 0.0
        pods = len(self.values) + self.missing
        damped = (sum(self.values) + assumed * self.missing) / pods / target
        if abs(1 - damped) <= tolerance or (ratio < 1) != (damped < 1):
            return current
        return math.ceil(damped * pods)


@dataclass(frozen=True, slots=True)
class External:
    """An `External` metric with an `AverageValue` target, as KEDA makes them: one value for all pods together."""

    value: float | None

    def replicas(self, current: int, target: float, tolerance: float) -> int | None:
        """Return the number of replicas that this metric asks for; None without a value."""
        if self.value is None:
            return None
        if abs(1 - self.value / (target * current)) <= tolerance:
            return current
        return math.ceil(self.value / target)


@dataclass(eq=False, kw_only=True)
class Hpa:
    """One HorizontalPodAutoscaler. `targets` has a target for each metric, by its name."""

    targets: Mapping[str, float]
    min_replicas: int = 1
    max_replicas: int = 100
    up: Behavior = DEFAULT_UP
    down: Behavior = DEFAULT_DOWN
    tolerance: float = 0.1
    _wishes: list[tuple[float, int]] = field(default_factory=list, init=False)
    _changes: list[tuple[float, int]] = field(default_factory=list, init=False)

    def sync(self, now: float, current: int, metrics: Mapping[str, PerPod | External]) -> int:
        """Return the new number of replicas. `current` is at least 1: with 0, Kubernetes switches the HPA off."""
        asked = [metrics[name].replicas(current, target, self.tolerance) for name, target in self.targets.items()]
        known = [one for one in asked if one is not None]
        wish = max(known, default=current)
        if None in asked and wish < current:  # a metric is missing: do not scale down
            wish = current
        wish = self._limited(now, current, self._stabilized(now, current, wish))
        if wish != current:
            self._changes.append((now, wish - current))
        return wish

    def _stabilized(self, now: float, current: int, wish: int) -> int:
        """Return the least change that was wished for within the windows."""
        longest_s = max(self.up.stabilization_s, self.down.stabilization_s)
        self._wishes = [(at, one) for at, one in self._wishes if at > now - longest_s]
        lowest = min((one for at, one in self._wishes if at > now - self.up.stabilization_s), default=wish)
        highest = max((one for at, one in self._wishes if at > now - self.down.stabilization_s), default=wish)
        self._wishes.append((now, wish))
        return min(max(current, min(wish, lowest)), max(wish, highest))

    def _limited(self, now: float, current: int, wish: int) -> int:
        longest_s = max(policy.period_s for policy in (*self.up.policies, *self.down.policies))
        self._changes = [(at, change) for at, change in self._changes if at > now - longest_s]
        if wish > current:
            most = max(self._most(now, current, policy) for policy in self.up.policies)
            wish = min(wish, max(current, most))
        elif wish < current:
            least = min(self._least(now, current, policy) for policy in self.down.policies)
            wish = max(wish, min(current, least))
        return min(max(wish, self.min_replicas), self.max_replicas)

    def _most(self, now: float, current: int, policy: Policy) -> int:
        before = self._before(now, current, policy)
        return before + policy.value if policy.kind == "Pods" else math.ceil(before * (1 + policy.value / 100))

    def _least(self, now: float, current: int, policy: Policy) -> int:
        before = self._before(now, current, policy)
        return before - policy.value if policy.kind == "Pods" else int(before * (1 - policy.value / 100))

    def _before(self, now: float, current: int, policy: Policy) -> int:
        """Return the number of replicas at the start of the policy's period."""
        return current - sum(change for at, change in self._changes if at > now - policy.period_s)


@dataclass(eq=False, kw_only=True)
class Keda:
    """KEDA's own part for a ScaledObject with `minReplicaCount: 0`: between no replica and one."""

    activation: float = 0.0
    polling_s: float = 30.0
    cooldown_s: float = 300.0
    _active_at: float = field(default=0.0, init=False)

    def poll(self, now: float, current: int, value: float | None) -> int:
        """Return the new number of replicas. A trigger is active if its value is more than the activation threshold."""
        if value is not None and value > self.activation:
            self._active_at = now
            return max(1, current)
        return 0 if now - self._active_at >= self.cooldown_s else current
