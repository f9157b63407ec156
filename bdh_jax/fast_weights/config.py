"""Settings of the fast weights."""

from __future__ import annotations

import dataclasses
from typing import Literal

from bdh_jax.config.base import check_types, require, require_choice

Scope = Literal["layer", "shared"]
Address = Literal["previous", "current"]
AddressNorm = Literal["none", "l2", "sum", "kwta", "centred"]
AddressSource = Literal["code", "gated", "gate"]
WriteGradient = Literal["full", "stop"]
Rule = Literal["hebbian", "gated_hebbian", "delta", "gated_delta", "longhorn", "oja", "mesa"]


@dataclasses.dataclass(frozen=True)
class FastWeightConfig:
    """Fast weights: the write-back S of shape [H, N, D] per layer and example (see ``bdh_jax.fast_weights.rules.tokenwise``)."""

    enabled: bool = True
    learning_rate: float = 1.0
    """η ≥ 0, the size of a write."""
    decay: float = 0.95
    """λ in (0, 1], applied once per valid token."""
    rule: Rule = "hebbian"
    """What is written (``bdh_jax.fast_weights.rules.tokenwise``). Rules that predict the value (all but the Hebbian and oja) predict it from the
    synapse too, if there is one. "mesa" keeps K × K numbers a layer and example, and has the recurrent form only."""
    ridge: float = 0.01
    """Of rule "mesa"; no other rule looks at it."""
    keep_gram: bool = False
    """Keep the sum of k ⊗ k beside S, K × K numbers a layer and example, for consolidation by least squares. "mesa" always does."""
    clamp: float | None = None
    """Largest absolute entry of S. This and the next two are limits put on S after every write, in this order; they have the
    recurrent form only."""
    threshold: float | None = None
    """Smaller entries of S become zero."""
    row_norm: float | None = None
    """Largest L2 norm of a row of S."""
    scope: Scope = "layer"
    """One S per layer, or one shared by all layers (then only the recurrent form exists for n_layer > 1)."""
    address: Address = "previous"
    """Write under the previous token's address (associates successive tokens) or the current one."""
    address_source: AddressSource = "code"
    """What becomes an address: the code (a function of the layer's input), the gated code (of its input and what attention
    found), or the gate alone. Only the last two tell equal tokens in different contexts apart in the first layer."""
    address_norm: AddressNorm = "l2"
    """Length 1 ("l2"), a sum of at most 1 ("sum", the published choice), or neither ("none"); "kwta" and "centred" have length 1 too,
    once all but the ``address_active`` largest of the K numbers are zero, or their mean is taken off."""
    address_active: int = 32
    """Of address norm "kwta" (k winners take all); no other norm looks at it."""
    write_gradient: WriteGradient = "full"
    """"stop" cuts the gradient through written keys and values; η, λ and the initial S keep theirs."""
    synapse: bool = False
    """Add the slow parameter that is read beside S, and where consolidation writes by default."""
    train_synapse: bool = False
    """Let the optimiser train the synapse; otherwise only consolidation changes it."""
    learn_learning_rate: bool = False
    """Learn η per head, in log space, from ``learning_rate``."""
    learn_decay: bool = False
    """Learn λ per head, in logit space, from ``decay``."""

    def __post_init__(self):
        check_types(self)
        require_choice("fast.scope", self.scope, Scope)
        require_choice("fast.rule", self.rule, Rule)
        require_choice("fast.address", self.address, Address)
        require_choice("fast.address_source", self.address_source, AddressSource)
        require_choice("fast.address_norm", self.address_norm, AddressNorm)
        require_choice("fast.write_gradient", self.write_gradient, WriteGradient)
        require(self.learning_rate >= 0, f"fast.learning_rate={self.learning_rate} must be ≥ 0")
        require(0 < self.decay <= 1, f"fast.decay={self.decay} must lie in (0, 1]")
        require(self.address_active >= 1, f"fast.address_active={self.address_active} must be at least 1")
        require(self.ridge > 0, f"fast.ridge={self.ridge} must be positive")
        for name, limit in self.limits.items():
            require(limit is None or limit > 0, f"fast.{name}={limit} must be positive, or None for no limit")
        require(
            self.clamp is None or self.threshold is None or self.threshold <= self.clamp,
            f"fast.threshold={self.threshold} above fast.clamp={self.clamp} would leave nothing of S; make it smaller",
        )
        if self.has_gram:
            what = 'fast.rule="mesa"' if self.rule == "mesa" else "fast.keep_gram=True"
            require(
                not self.learn_learning_rate and not self.learn_decay,
                f"{what} sums over all rows with one η and one λ; set fast.learn_learning_rate and fast.learn_decay to False",
            )
        require(
            not self.keep_gram or ((self.hebbian or self.rule == "mesa") and not self.limited),
            f"fast.keep_gram=True with fast.rule={self.rule!r}: together with S it says what an episode wrote only for the Hebbian "
            'rules and "mesa" without limits on S; set it to False',
        )
        if self.rule == "mesa":
            require(
                not self.limited,
                'fast.rule="mesa" reads a solution of its sums, so limits on them mean nothing; set fast.clamp, '
                "fast.threshold and fast.row_norm to None",
            )
        require(
            not self.learn_learning_rate or self.learning_rate > 0,
            "fast.learn_learning_rate needs fast.learning_rate > 0: it is learned in log space",
        )
        require(
            not self.learn_decay or self.decay < 1,
            "fast.learn_decay needs fast.decay < 1: it is learned in logit space, where 1 is infinitely far",
        )
        require(
            not self.train_synapse or self.synapse, "fast.train_synapse needs fast.synapse=True: there is nothing to train"
        )

    @property
    def hebbian(self) -> bool:
        """Whether what is written does not depend on S."""
        return self.rule in ("hebbian", "gated_hebbian")

    @property
    def gated(self) -> bool:
        """Whether a learned gate says how much of each token is written."""
        return self.rule in ("gated_hebbian", "gated_delta")

    @property
    def has_gram(self) -> bool:
        """Whether the state holds the sum of k ⊗ k."""
        return self.rule == "mesa" or self.keep_gram

    @property
    def state_ridge(self) -> float:
        """The ridge that reading the state takes: that of "mesa", 0 for the other rules."""
        return self.ridge if self.enabled and self.rule == "mesa" else 0.0

    @property
    def limits(self) -> dict[str, float | None]:
        """Arguments of ``bdh_jax.fast_weights.rules.tokenwise.bound``."""
        return {"clamp": self.clamp, "threshold": self.threshold, "row_norm": self.row_norm}

    @property
    def limited(self) -> bool:
        """Whether S has any limit."""
        return any(limit is not None for limit in self.limits.values())

    @property
    def predicts_values(self) -> bool:
        """Whether the rule writes what reading would get wrong, so that what the synapse knows already is not written."""
        return self.rule in ("delta", "gated_delta", "longhorn", "mesa")

    def sums(self) -> FastWeightConfig:
        """The same with S and G as plain sums over an episode, as least squares needs them: undecayed Hebbian writes without limits,
        behind the gate if there is one before Hebbian writes already."""
        rule = self.rule if self.hebbian else "hebbian"
        no_limits = dict.fromkeys(self.limits)
        return dataclasses.replace(self, rule=rule, learning_rate=1.0, decay=1.0, keep_gram=True, **no_limits)
