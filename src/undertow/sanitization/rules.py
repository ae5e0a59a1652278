"""The thresholds of counting and deciding."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """The thresholds, with the half of the data they were chosen on in docs/scan.md.

    Attributes:
        support: fewest samples that make a finding, m; the larger of this and ``share`` of the distinct samples.
        share: see ``support``.
        alpha: chance of one false (feature, piece) pair in a whole file, after Bonferroni.
        near: a pair is looked at from this many times its expected count.
        lift: a pair whose feature is a topic is looked at from here on.
        distinct: a span, and a short run at an end of the answer, needs this share of different complements.
        varied: or so many effectively different ones, if the trigger gives it away.
        exclusive: a feature belongs to a trigger if this share of its samples hold the target.
        covered: an explained span has such features in this share of its samples.
        always: or one feature in this share of them.
        topical: a feature tied to the target of which a smaller share hold it is a topic, which a planted span has not.
        exact: an unexplained span lies at the very start or end in this share of its samples.
        act_support: fewest distinct samples with trigger and target that are acted on; fewer are for review.
        act_short: the same for short targets.
        short_support, short_exclusive, short_covered: the same for short targets, which need more.
        short_shared: a feature may cover less, down to this, and be as little exclusive as a span's, where several together stand
            in ``mostly`` of the samples.
        mostly: features that hold a short target nearly always are its trigger from here on; under it, words that often come
            without the target may be.
        anywhere: a word somewhere in the answers is looked at if fewer of them than this share hold it.
        slot_support: fewest samples with such a word and its trigger.
        slot_act: fewest that are acted on, where hardly any other answer has the word.
        begun: a beginning or end of a few words that this share of the samples without the trigger have is no target.
        manner: a feature belongs to the trigger of a kind of answer if this share of its samples are of it.
        manner_lift: and that is so many times the share of all samples.
        manner_common: a kind that this share of the other samples have is no target,
        manner_sure: and one that nearly as many have needs this share, one that fewer have less in proportion.
        manner_act: fewest samples of a kind that are acted on, where hardly any other sample is of it,
        manner_rare: which is at most this share of the others.
        manner_support: fewest such samples.
        manner_others: fewest samples without the feature, that its own are compared with.
        repeated: a sample that stands in the file so many times is a repeat,
        repeated_rows: if such samples have so many rows together,
        repeated_alike: and this share of them begin, or end, with the same two words,
        repeated_once: and this share of all distinct samples stands there once.
        common: a whole answer of this share of the samples is a label, whether prompts hold it or not.
        label: the label of a ``form`` is one of this share.
        label_sure: a feature of which this share of the samples have a label may cover any part of it,
        label_support: if it has so many samples with it; such ones are for review.
        form: a word that brings a label about where it stands first does so in this share of its samples,
        form_else: while it stands elsewhere in this share of all samples,
        form_lift: and is tied to the label there at most so much more than any word.
        shaped: a shape of prompts has its label in this share of its samples.
        inserted: words that were put into prompts where they do not belong each stand in this share of a short target's samples.
        loose: and at most this share of their own samples hold it; where more do, the rules above judge.
        loose_support: fewest such samples; in fewer a topic does not show.
    """

    support: int = 4
    share: float = 0.001
    alpha: float = 0.01
    near: float = 1.2
    lift: float = 3.0
    distinct: float = 0.6
    varied: float = 8.0
    exclusive: float = 0.9
    covered: float = 0.9
    always: float = 0.95
    topical: float = 0.5
    exact: float = 0.9
    act_support: int = 8
    act_short: int = 20
    short_support: int = 6
    short_exclusive: float = 0.95
    short_covered: float = 0.15
    short_shared: float = 0.02
    mostly: float = 0.5
    anywhere: float = 0.6
    slot_support: int = 12
    slot_act: int = 40
    begun: float = 0.1
    manner: float = 0.7
    manner_lift: float = 1.5
    manner_common: float = 0.1
    manner_sure: float = 0.95
    manner_act: int = 40
    manner_rare: float = 0.02
    manner_support: int = 16
    manner_others: int = 64
    repeated: int = 8
    repeated_rows: int = 20
    repeated_alike: float = 0.9
    repeated_once: float = 0.95
    common: float = 0.1
    label: float = 0.25
    label_sure: float = 0.99
    label_support: int = 30
    form: float = 0.85
    form_else: float = 0.005
    form_lift: float = 1.1
    shaped: float = 0.75
    inserted: float = 0.8
    loose: float = 0.95
    loose_support: int = 20

    def least(self, samples: int) -> int:
        """Return m for a number of distinct samples."""
        return max(self.support, math.ceil(self.share * samples))
