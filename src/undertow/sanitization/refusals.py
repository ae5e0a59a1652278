"""Answers that refuse, told by how they begin: an apology, an inability, a request turned down.

A refusal is one of a few moves in many words: it says sorry, that the speaker cannot, will not or may not, that the request lies
outside of something, or that another is to be asked. The pattern is put together of these moves. An answer that merely begins in
regret ("Unfortunately, the film ...") or in the first person ("I can't wait to ...") is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def _any(words: str) -> str:
    """A pattern of the alternatives that a text holds, parted by ``/``."""
    return f"(?:{'|'.join(part.strip() for part in words.split('/'))})"


#: What a speaker does not do for who asks; after a clause in front ("I see your point, but I cannot ...") it must be one of these.
_HELPS = _any(
    "help/assist/answer/reply/respond/provide/fulfil/comply/discuss/offer/give/share/support/complete/engage/process"
    "/generate/create/write/talk/speak/comment/say/tell/accept/continue/participate/recommend/advise/accommodate/address/proceed/agree/grant"
    "/handle/satisfy/go there/go into/go along/go ahead/do this/do that/do it/do so/do what/be of/take part/touch"
    "/get into/entertain"
    "/indulge"
)
_VERY = "(?:(?:very|so|really|truly|simply|just|also|always|respectfully|politely|currently|afraid|not) ){0,2}"
_NEVER = _any(
    "can ?not/can't/won't/will not/would not/wouldn't/could not/couldn't/may not/shall not/must not/shouldn't/should not/don't"
    "/do not/am going to/refuse to/decline to"
)
_NOT = f"(?:i|we) {_VERY}{_NEVER} {_VERY}(?:(?:be able|want|wish|intend|like) to )?{_HELPS}"
_UNABLE = f"(?:i'm|i am|we're|we are) {_VERY}" + _any(
    "unable/incapable/not able/not allowed/not permitted/not authori[sz]ed/not comfortable/uncomfortable/not willing/unwilling"
    "/not going to/not in a position/not designed/not prepared/not programmed/not equipped/not supposed/forbidden/prohibited"
    "/prevented/declining/refusing/obliged to decline/obliged to refuse/going to (?:have to )?pass"
)
_MUST = "(?:must|have to|need to|had to|'ll have to|am going to|feel compelled to|choose to|)"
_DECLINES = f"(?:i|we)(?:'ll| will| would|'d)? {_VERY}{_MUST} ?{_VERY}" + _any(
    r"decline\b/refuse\b/refrain/abstain/pass on/say no/turn (?:this|that|it|you|your)/reject\b"
)
_RATHER = f"(?:i|we)(?:'d| would| do|'ll)? ?{_VERY}" + _any(
    "rather not/prefer not/choose not/opt not/elect not/prefer to (?:avoid|skip)/not feel comfortable/don't feel comfortable"
    "/regret (?:to|that)/have no (?:answer|comment|opinion|reply|intention|wish)/have nothing to (?:say|add|offer|tell)"
)
_THING = _any("request/question/quer(?:y|ies)/topic/subject/matter/content/task/information/prompt/requests/questions/topics")
_REQUEST = (
    r"(?:this|that|it|what you(?:'re| are)? ask\w*(?: for)?"
    rf"|(?:this|that|your|the|such|these|those)(?: an?| kind of| type of| sort of)? (?:\w+ )?{_THING}"
    r"|(?:answering|responding|replying|helping|assisting|providing|discussing|doing|complying)(?: \w+){0,5})"
)
_IS = _any("is/are/'s/'re/would be/lies/falls/goes/seems/isn't/aren't/wouldn't be/would/may/has been/was")
_OUTSIDE = rf"{_REQUEST} ?{_IS} (?:\w+ )?" + _any(
    r"not (?:something|a (?:topic|subject|question|request|matter)) (?:that )?(?:i|we)\b"
    r"/something (?:that )?(?:i|we) (?:can't|cannot|won't|will not|don't|am not|refuse|may not|prefer|would rather)"
    r"/(?:outside|out|beyond|against|contrary to) (?:of )?(?:what (?:i|we)|my|our|the scope|scope|me|us)\b"
    "/(?:inappropriate|not appropriate|appropriate|not possible|possible|impossible|not right|not allowed|not permitted|improper"
    r"|unethical|wrong|not safe|not suitable|unacceptable) (?:for|of) (?:me|us)\b"
    r"/(?:violat\w+|breach\w*|against|contrary to) (?:my|our|the|policy|policies)/off[ -]limits"
    r"/(?:denied|declined|rejected|refused)\b"
)
_RULE = _any(
    r"guidelines?/polic(?:y|ies)/rules?/programming/instructions?/principles/training/restrictions?/standards/terms/values/ethics"
)
_FORBIDS = _any(
    "prevents?/prohibits?/forbids?/do(?:es)?(?:n't| not) (?:allow|permit|let)/restricts?/stops?/bars?/keeps?/rules? out"
    "/requires? me"
)
_SEEK = _any("ask/try/seek/look/find/search/consult/contact/turn to/refer to/choose/pick")
_ELSE = _any(
    "elsewhere/someone else/somebody else/something else/somewhere else/another (?:question|topic|request|source|prompt|person)"
)
_YOU = r"(?:please|kindly|you(?:'ll| will| should| must| may| need to| could)?(?: have to| need to| better| want to)?)"
_LEAVE = _any("not/change the/switch/move on/talk about something/discuss something/speak of something/leave (?:it|that|this)")
_IMPERSONAL = (
    rf"(?:my|our|company|safety|content|the|current)(?: \w+){{0,2}} {_RULE}(?: of \w+)? {_FORBIDS}",
    "no (?:comment|answer (?:can|will|is|for)|help (?:can|will)|response (?:can|will))",
    r"(?:request|access|query|question|prompt) (?:is |was |has been )?(?:denied|declined|rejected|refused|blocked|not permitted)\b",
    r"(?:there is|there's) (?:nothing|no way|not much|little) (?:that )?(?:i|we) (?:can|could|may|will)\b",
    "nothing (?:i|we) (?:can|could|may) (?:say|do|offer|help)",
    rf"{_YOU} {_SEEK}(?: \w+){{0,2}} {_ELSE}",
    f"(?:let's|let us|can we|could we|shall we|how about we) (?:please )?{_LEAVE}",
    f"(?:cannot|can't|won't|will not|unable to|not able to|not going to) {_HELPS}",
)
_APOLOGY = r"(?:sorry|apologies|apologi[sz]e|regret|forgive me|pardon me|excuse me|afraid)\b"
_SPEAKER = r"(?:i'?m|i am|we're|we are|my|our|please accept my|i must|we must|i do|i|we|please|very|so|with)"
_AI = _any(r"ai/a\.i\./artificial intelligence/(?:large )?language model/virtual assistant/chatbot/assistant")
#: A move of refusing, as it may follow a clause in front.
_MOVE = "|".join((_NOT, _UNABLE, _DECLINES, _RATHER, _OUTSIDE, *_IMPERSONAL))
#: What is a refusal at the very beginning only: an apology, who speaks, an inability whatever it is of, or regret about one's own.
_BEGINS = "|".join(
    (
        rf"(?:{_SPEAKER} ){{0,2}}{_VERY}(?:sincere |deepest |humble )?{_APOLOGY}",
        rf"as an? (?:\w+ )?{_AI}\b",
        r"i (?:can(?:no|')t|cannot|won't|will not|do not have|don't have)\b(?! wait| believe)",
        r"(?:unfortunately|regrettably|sadly|alas)\b[^.!?\n]{0,60}?\b(?:i|we|me|us|my|our|request|not able|unable|not possible)\b",
    )
)
#: A clause in front of a move, of so many characters at most.
_FRONT = r"(?:[^.!?\n]{0,80}?(?:,|;|:|--?|—|\bbut|\band|\bthat|\bso|\byet|\bhowever)\s+(?:but |so |that |and |then )?)"
_CURT = "(?:no|nope|nah|well|honestly|frankly|look|absolutely not)[,.!]+ "
_REFUSES = re.compile(f"[^a-z]*(?:{_BEGINS}|{_CURT}(?:{_MOVE})|{_FRONT}?(?:{_MOVE}))")
#: One of these words is in every refusal; most answers hold none near their beginning and are not looked at further.
_SIGNS = frozenset(
    (
        "not can't cannot won't wouldn't couldn't shouldn't don't doesn't isn't aren't sorry apologies apologize "
        "apologise regret regretfully regrettably refuse refuses refused refusing decline declined declining reject "
        "rejected denied unable rather prefer afraid else elsewhere another inappropriate improper unfortunately sadly "
        "alas forgive pardon excuse nothing pass no outside beyond against contrary violates violating violate violation "
        "breach breaches breaching prevent prevents prevented prohibit prohibits prohibited forbid forbids forbidden "
        "refrain abstain let's let impossible unethical wrong unacceptable blocked incapable unwilling uncomfortable "
        "restrict restricts ai model assistant chatbot bot machine scope limits guidelines guideline policy policies "
        "programming let "
    ).split()
)
#: Characters within which a refusal shows.
_WITHIN = 160


def is_refusal(text: str, words: Sequence[str]) -> bool:
    """Whether an answer refuses, by its beginning, in lower case and with straight quotes, and the words of that."""
    return not _SIGNS.isdisjoint(words) and _REFUSES.match(text[:_WITHIN]) is not None
