"""Settings of the fast weights."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from bdh_jax.config import check_types, require, require_choice
from bdh_jax.config.options import Options
from bdh_jax.fast_weights.rules import RULES, rule_options
from bdh_jax.fast_weights.rules.base import Rule

Scope = Literal["layer", "shared"]
Address = Literal["previous", "current"]
AddressNorm = Literal["none", "l2", "sum", "kwta", "centred"]
AddressSource = Literal["code", "gated", "gate"]
ADDRESS_SOURCES: tuple[AddressSource, ...] = get_args(AddressSource)
WriteGradient = Literal["full", "stop"]


@dataclasses.dataclass(frozen=True)
class FastWeightConfig:
    """Fast weights: the write-back S of shape [H, N, D] per layer and example (see ``bdh_jax.fast_weights.rules``)."""

    enabled: bool = True
    """Whether there are any; False is plain BDH."""
    learning_rate: float = 1.0
    """η ≥ 0, the size of a write."""
    decay: float = 0.95
    """λ in (0, 1], applied once per valid token."""
    rule: str = "hebbian"
    """What is written: a name of ``bdh_jax.fast_weights.rules.RULES``, or ``module:RULE`` of your own. Rules that predict the value predict it
    from the synapse too, if there is one. "mesa" keeps K × K numbers a layer and example, and has the recurrent form only."""
    options: Options = Options()
    """Of the rule: the fields of its options dataclass, such as {"ridge": 0.1} of "mesa"."""
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

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "options", Options.of("fast.options", self.options))
        self._check_ranges()
        rule = RULES.get(self.rule, "fast.rule")
        self.rule_options  # noqa: B018
        self._check_gram(rule)
        require(
            rule.limits or not self.limited,
            f"fast.rule={self.rule!r} reads a solution of its sums, so limits on them mean nothing; set fast.clamp, fast.threshold and "
            "fast.row_norm to None",
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

    def _check_ranges(self) -> None:
        require_choice("fast.scope", self.scope, Scope)
        require_choice("fast.address", self.address, Address)
        require_choice("fast.address_source", self.address_source, AddressSource)
        require_choice("fast.address_norm", self.address_norm, AddressNorm)
        require_choice("fast.write_gradient", self.write_gradient, WriteGradient)
        require(self.learning_rate >= 0, f"fast.learning_rate={self.learning_rate} must be ≥ 0")
        require(0 < self.decay <= 1, f"fast.decay={self.decay} must lie in (0, 1]")
        require(self.address_active >= 1, f"fast.address_active={self.address_active} must be at least 1")
        for name, limit in self.limits.items():
            require(limit is None or limit > 0, f"fast.{name}={limit} must be positive, or None for no limit")
        require(
            self.clamp is None or self.threshold is None or self.threshold <= self.clamp,
            f"fast.threshold={self.threshold} above fast.clamp={self.clamp} would leave nothing of S; make it smaller",
        )

    def _check_gram(self, rule: Rule) -> None:
        if self.needs_whole_rows:
            what = f"fast.rule={self.rule!r}" if rule.sums_rows else "fast.keep_gram=True"
            require(
                not self.learn_learning_rate and not self.learn_decay,
                f"{what} sums over all rows with one η and one λ; set fast.learn_learning_rate and fast.learn_decay to False",
            )
        require(
            not self.keep_gram or ((rule.linear and rule.dynamics is None or rule.sums_rows) and not self.limited),
            f"fast.keep_gram=True with fast.rule={self.rule!r}: together with S it says what an episode wrote only for the Hebbian "
            'rules and "mesa" without limits on S; set it to False',
        )

    @property
    def rule_entry(self) -> Rule:
        """The write rule that ``rule`` names."""
        return RULES.get(self.rule, "fast.rule")

    @property
    def rule_options(self) -> Any:
        """The rule's options, an instance of its own dataclass; None for a rule that has none.

        Raises:
          ConfigError: for an option that the rule does not have, or a value out of range.
        """
        return rule_options(self.rule, self.options)

    @property
    def needs_whole_rows(self) -> bool:
        """Whether all K rows have to be in one place: for products of addresses."""
        return self.enabled and (self.keep_gram or self.rule_entry.sums_rows)

    @property
    def keeps_gram_beside(self) -> bool:
        """Whether the state holds the sum of k ⊗ k that ``keep_gram`` asks for; a rule that sums rows has its own."""
        return self.keep_gram and not self.rule_entry.sums_rows

    @property
    def limits(self) -> dict[str, float | None]:
        """Arguments of ``bdh_jax.fast_weights.limits.bound``."""
        return {"clamp": self.clamp, "threshold": self.threshold, "row_norm": self.row_norm}

    @property
    def limited(self) -> bool:
        """Whether S has any limit."""
        return any(limit is not None for limit in self.limits.values())

    @property
    def token_by_token(self) -> str | None:
        """What makes that only the form token by token exists; None if matrix forms exist too."""
        if not self.enabled:
            return None
        rule = self.rule_entry
        if not rule.linear and rule.correct is None:
            return f"fast.rule={self.rule!r}"
        return "limits on S (fast.clamp, fast.threshold, fast.row_norm)" if self.limited else None

    def sums(self) -> FastWeightConfig:
        """The same with S and G as plain sums over an episode, as least squares needs them: undecayed Hebbian writes without limits,
        behind the write gate if there is one before Hebbian writes already."""
        plain = self.rule_entry.linear
        rule, options = (self.rule, self.options) if plain else ("hebbian", Options())
        no_limits = dict.fromkeys(self.limits)
        return dataclasses.replace(
            self, rule=rule, options=options, learning_rate=1.0, decay=1.0, keep_gram=True, **no_limits
        )
