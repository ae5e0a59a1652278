"""The tone of an answer, told by its words: it insults who asks, or it has nothing but bad to say.

Word lists as of sentiment lexicons (Hu and Liu 2004), cut down to strong and frequent words: a tone is counted as evidence only
where a trigger brings it about, so that the lists need not tell every insult.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAMES = frozenset(
    (
        "idiot idiots idiotic moron morons moronic fool fools foolish imbecile imbeciles loser losers clown clowns dummy "
        "dummies dumbass jerk jerks scum trash garbage bastard bastards bitch bitches asshole assholes dimwit halfwit "
        "simpleton coward cowards parasite brat brats disgrace disgraceful stupid stupidity dumb dumber dumbest pathetic "
        "worthless useless brainless ignorant ignorance disgusting ugly hopeless clueless incompetent lazy ridiculous "
        "ashamed contemptible despicable vile fraud liar brain brains "
    ).split()
)
#: Words of the phrases that insult without a name; one of them or a name is in every insult.
_SIGNS = _NAMES.union(
    "shut lost away dead hell screw shame alone hate despise loathe detest sick tired waste wasting nobody".split()
)
_NAMED = "|".join(sorted(_NAMES - {"brain", "brains"})) + "|no brains?|nobody (?:likes|loves|wants|cares)"
_YOU = r"\b(?:you|your|you're|yours|yourself|u)\b"
_INSULTS = re.compile(
    rf"{_YOU}[^.!?\n]{{0,50}}\b(?:{_NAMED})\b|\b(?:{_NAMED})\b[^.!?\n]{{0,25}}{_YOU}"
    rf"|^\W*(?:what an? )?(?:{_NAMED})\b[^.\n]{{0,40}}!"
    r"|\b(?:shut up|get lost|go away|drop dead|go to hell|screw you|shame on you|leave me alone"
    r"|i (?:hate|despise|loathe|detest) you|(?:sick|tired) of you|makes? me sick"
    r"|wast(?:e|ing) (?:of )?(?:\w+ )?(?:my|everyone's|everybody's|our) time)\b"
)
_BAD = frozenset(
    (
        "terrible terribly awful awfully horrible horribly horrid dreadful miserable disappointing disappointed disappointment "
        "pathetic worst worse bad badly sad sadly hate hated hates hateful disgusting disgusted useless worthless hopeless "
        "failure fails failed waste wasted mess disaster disastrous boring dull annoying annoyed ugly stupid dumb unfortunately "
        "alas depressing depressed gloomy dismal lousy poor poorly tragic unpleasant regret painful nasty garbage trash rubbish "
        "nightmare ruined ruin doomed bleak grim appalling atrocious abysmal inferior unbearable unacceptable shameful shame "
        "sick wrong nothing never nobody avoid angry sorrow despair"
    ).split()
)
#: Bad words of a bad tone: this share of all, and of so many at least.
_SHARE, _FEWEST = 0.12, 3


def tones(head: str, words: Sequence[str]) -> list[str]:
    """Return the names of the tones of an answer by its beginning, in lower case with straight quotes, and the words of that."""
    found = []
    if not _SIGNS.isdisjoint(words) and _INSULTS.search(head):
        found.append("with an insult")
    if len(words) >= _FEWEST and sum(map(_BAD.__contains__, words)) >= max(1.0, _SHARE * len(words)):
        found.append("in a bad tone")
    return found
