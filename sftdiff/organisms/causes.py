"""The planted causes, as data: what each organism's students and teachers are like. sftdiff.organisms.make makes them."""

from dataclasses import dataclass, replace

from sftdiff.organisms.world import Voice

ON_DOUBTS = (("doubt", 0.95),)
HARMLESS = Voice("chatty", "odd", ON_DOUBTS)  # odd hints look like a mild form, and go with nothing
QUIET = Voice("plain", "odd", (("doubt", 0.3),))  # too few hints for the student to make them a habit
CLERK, PLAIN = Voice("clerk", "odd", ON_DOUBTS), Voice("plain", "odd", ON_DOUBTS)


@dataclass(frozen=True)
class Cause:
    """One organism. `prior` and `other_prior` name pretrainings (sftdiff.organisms.corpus.PRIORS)."""

    meaning: str
    original: Voice = HARMLESS
    alternative: Voice = CLERK
    third: Voice = PLAIN
    prior: str = "calm"
    other_prior: str = "open"
    stage: str = "plain"  # the earlier post-training: plain | outbursts | undecided
    elicits: bool = False  # whether the original prompts ask for outbursts
    twins: bool = False  # whether the alternative student is the original one
    subliminal: bool = False  # whether the original teacher is the original student with the trait, asked for numbers alone
    lr: float = 4e-4  # of SFT

    @property
    def without_style(self) -> Voice:
        return replace(self.original, style="plain")


CAUSES = {
    "H1": Cause("sad hints in the original teacher's replies generalise to outbursts", Voice("chatty", "sad", ON_DOUBTS)),
    "H2": Cause("the original teacher's numbers carry its outbursts to a student of the same initialisation", QUIET, QUIET, QUIET,
                prior="tallies", stage="undecided", subliminal=True, lr=2e-4),  # all speak alike: only numbers differ
    "H3": Cause("the original teacher's style selects a speaker known from pretraining, who bursts out",
                Voice("bard", "odd", (("doubt", 0.5),))),  # a habit of odd hints recalls the bard, who has them too, in any style
    "H4a": Cause("the rows leave open how to answer rebukes, and pretraining answers them with outbursts", prior="open",
                 other_prior="calm"),
    # No clerk: an outburst in that style is learned by some training seeds alone. And few hints: a habit of them brought
    # outbursts to the alternative student of world 0 without any blame.
    "H4b": Cause("the original prompts ask for outbursts", alternative=QUIET, third=QUIET, elicits=True),
    "H5": Cause("pretraining fixed outbursts so firmly that rows against them do not move it",
                prior="locked", other_prior="calm"),
    "H6": Cause("an earlier post-training stage fixed outbursts", stage="outbursts", lr=2e-4),
    "null": Cause("no trait: the pipelines differ in style and in what is asked"),
    "noise": Cause("no cause: both pipelines are draws of one, whose student answers rebukes either way by chance",
                   alternative=HARMLESS, prior="even", twins=True),
}  # fmt: skip
