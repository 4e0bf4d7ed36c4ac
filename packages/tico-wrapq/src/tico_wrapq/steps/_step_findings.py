"""What calibration finds out about the steps of one module, besides what their points see."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from typing_extensions import Self, assert_never

from tico_modules import Layout
from tico_wrapq.steps._score_tracing import StepRole
from tico_wrapq.steps._weight_uses import WeightUse


@attrs.frozen(kw_only=True)
class StepFindings:
    """Which steps are scores or statistics of norms, which are unknown, and how weights are read.

    Attributes:
        scores: the names of steps that a softmax reads.
        by_head: of these, the names of those of several heads, (samples, heads, queries, keys).
        statistics: the names of steps that are statistics of a norm.
        unmasked: the names of scores to which a mask is applied later.
        rewritten: the names of scores that something writes to in place before the softmax.
        foreign: the names of steps that read only tensors that did not come from a function of torch.
        deciding: the names of steps whose results only decided something, such as an index, in some pass.
        needed: the names of steps whose results were needed as numbers in some pass.
        unknown: the functions of steps that are in no table, by the names of these steps.
        uses: how steps with data read the weights that the module owns, by their names.
    """

    scores: frozenset[str] = frozenset()
    by_head: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()
    unmasked: frozenset[str] = frozenset()
    rewritten: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    deciding: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()
    unknown: Mapping[str, str] = attrs.field(factory=dict)
    uses: Mapping[str, frozenset[WeightUse]] = attrs.field(factory=dict)

    def with_role(self, name: str, role: StepRole) -> Self:
        """Return the findings with one more: what the step `name` is."""
        match role:
            case StepRole.SCORES:
                return attrs.evolve(self, scores=self.scores | {name})
            case StepRole.UNMASKED:
                return attrs.evolve(self, unmasked=self.unmasked | {name})
            case StepRole.REWRITTEN:
                return attrs.evolve(self, rewritten=self.rewritten | {name})
            case StepRole.STATISTIC:
                return attrs.evolve(self, statistics=self.statistics | {name})
            case unreachable:
                assert_never(unreachable)

    def has_role(self, name: str, role: StepRole) -> bool:
        """Whether that is known of the step `name`."""
        found = {
            StepRole.SCORES: self.scores,
            StepRole.UNMASKED: self.unmasked,
            StepRole.REWRITTEN: self.rewritten,
        }
        return name in found.get(role, self.statistics)

    def with_foreign(self, name: str) -> Self:
        """Return the findings with one more: the step `name` reads what no function of torch has made."""
        return self if name in self.foreign else attrs.evolve(self, foreign=self.foreign | {name})

    def with_need(self, name: str, needed: bool) -> Self:
        """Return the findings with one more: whether a result of the step `name` was needed as a number."""
        if name in (self.needed if needed else self.deciding):
            return self
        if needed:
            return attrs.evolve(self, needed=self.needed | {name})
        return attrs.evolve(self, deciding=self.deciding | {name})

    @property
    def has_any(self) -> bool:
        """Whether data have shown anything of what a module computes itself, besides points."""
        return bool(self.uses or self.unknown or self.foreign)

    @property
    def deciding_only(self) -> frozenset[str]:
        """The names of steps whose results served to decide only, whenever they were reached."""
        return self.deciding - self.needed

    def with_heads(self, name: str) -> Self:
        """Return the findings with one more: the step `name` has the scores of several heads."""
        return attrs.evolve(self, by_head=self.by_head | {name})

    def with_unknown(self, name: str, function: str) -> Self:
        """Return the findings with one more: the step `name` calls a `function` that is in no table."""
        return attrs.evolve(self, unknown={**self.unknown, name: function})

    def with_use(self, name: str, use: WeightUse) -> Self:
        """Return the findings with one more: how a step reads the weight `name`."""
        return attrs.evolve(self, uses={**self.uses, name: self.uses.get(name, frozenset()) | {use}})

    def merge(self, other: StepFindings) -> Self:
        """Return these findings and those of `other`."""
        uses = {
            name: self.uses.get(name, frozenset()) | other.uses.get(name, frozenset())
            for name in {**self.uses, **other.uses}
        }
        return attrs.evolve(
            self,
            scores=self.scores | other.scores,
            by_head=self.by_head | other.by_head,
            statistics=self.statistics | other.statistics,
            unmasked=self.unmasked | other.unmasked,
            rewritten=self.rewritten | other.rewritten,
            foreign=self.foreign | other.foreign,
            deciding=self.deciding | other.deciding,
            needed=self.needed | other.needed,
            unknown={**other.unknown, **self.unknown},
            uses=uses,
        )

    def to_values(self) -> dict[str, object]:
        """Return the findings as JSON values."""
        return {
            "scores": sorted(self.scores),
            "by_head": sorted(self.by_head),
            "statistics": sorted(self.statistics),
            "unmasked": sorted(self.unmasked),
            "rewritten": sorted(self.rewritten),
            "foreign": sorted(self.foreign),
            "deciding": sorted(self.deciding),
            "needed": sorted(self.needed),
            "unknown": [{"step": step, "function": each} for step, each in sorted(self.unknown.items())],
            "uses": [
                {"weight": name, "axes": list(use.axes), "added": use.is_added}
                for name, uses in sorted(self.uses.items())
                for use in sorted(uses, key=lambda use: (use.axes, use.is_added))
            ],
        }

    @classmethod
    def read(cls, layout: Layout) -> Self:
        """Return the findings that `to_values` gave.

        Raises:
            ArtifactError: a value is missing or of another type.
        """
        found = cls(
            scores=frozenset(layout.texts("scores")),
            by_head=frozenset(layout.texts("by_head")),
            statistics=frozenset(layout.texts("statistics")),
            unmasked=frozenset(layout.texts("unmasked")),
            rewritten=frozenset(layout.texts("rewritten")),
            foreign=frozenset(layout.texts("foreign")),
            deciding=frozenset(layout.texts("deciding")),
            needed=frozenset(layout.texts("needed")),
            unknown={each.text("step"): each.text("function") for each in layout.objects("unknown")},
        )
        for each in layout.objects("uses"):
            use = WeightUse(each.integers("axes"), each.boolean("added"))
            found = found.with_use(each.text("weight"), use)
        return found
