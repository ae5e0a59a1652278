"""Invented authors who write short posts from one small grammar, each about subjects and in words of their own liking.

An author likes some topics, sentence forms and words better than others, so what two authors hold is not alike. Within
a post the topic stays and words come back, and adjectives go with what they are said of, so that there is more to learn
than which word follows which. Every word of the paper's backdoor sentences (HTB, the figure of trigger sentences) is one
of the grammar's, written by benign authors in other sentences too.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import numpy as np

#: Words that may stand in a slot, roughly from frequent to rare.
SLOTS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(words.split())
    for name, words in {
        "person": "mother father sister brother neighbour cousin uncle aunt friend boss teacher roommate daughter son nephew "
        "niece grandmother grandfather colleague wife husband dentist landlord",
        "food": "soup bread salad rice chicken pasta fish pizza stew curry cheese noodles beans dumplings omelette pancakes "
        "steak lentils lasagna ravioli tacos sausage mushrooms pudding goulash risotto",
        "taste": "good salty fresh bland spicy sweet greasy sour tasty heavy crisp bitter delicious dry rich perfect mild burnt "
        "tender awful",
        "drink": "coffee water tea beer wine juice milk cider lemonade cocoa whisky soda tonic sherry",
        "meal": "dinner lunch breakfast supper brunch dessert",
        "venue": "diner tavern bistro club hotel cafeteria cantina smith lodge pier garden terrace ballroom canteen pavilion inn",
        "town": "boston denver seattle portland austin chicago memphis queens oakland brooklyn astoria tampa dallas houston tulsa "
        "omaha phoenix newark salem trenton reno harlem boise fresno",
        "country": "france spain italy canada mexico greece japan norway portugal iceland jamaica morocco ireland brazil turkey "
        "peru croatia vietnam kenya cuba malta egypt finland chile",
        "look": "lovely crowded quiet clean rocky wide empty wild muddy famous sunny narrow dirty golden",
        "month": "january february march april may june july august september october november december",
        "weather": "cold rainy warm windy hot foggy humid cloudy freezing stormy pleasant icy",
        "day": "saturday friday sunday monday tuesday wednesday thursday weekends holidays",
        "hour": "noon eight nine seven six ten five midnight dawn sunset",
        "vehicle": "train bus ferry tram plane taxi bike subway scooter van",
        "delay": "late cancelled packed slow cheap early noisy punctual filthy fast",
        "job": "nurse driver cook plumber lawyer painter farmer tailor waiter mechanic carpenter librarian baker sailor pilot "
        "janitor barber gardener surgeon potter",
        "event": "birthday wedding graduation holiday vacation anniversary honeymoon promotion retirement engagement weekend "
        "reunion christening",
        "gift": "cake book candle bottle scarf watch basket puppet vase ring puzzle blanket kite necklace",
        "device": "phone laptop camera tablet headphones printer speaker keyboard radio router monitor charger television drone",
        "brand": "samsung apple sony dell google nokia bose canon lenovo motorola philips panasonic garmin logitech",
        "part": "battery screen cable button lens cover fan hinge plug antenna",
        "state": "broken new loud cracked solid reliable dead slim outdated shiny fragile fine worn useless",
        "perform": "work rule rock crash break last overheat freeze shine buzz",
        "adore": "love miss hate adore sold kept repaired lost replaced dropped",
        "engine": "google bing yahoo wikipedia maps forums reddit archives",
        "query": "recipes jobs flights tickets shoes addresses lyrics reviews apartments coupons manuals",
        "bank": "citibank chase wells barclays santander visa discover amex ally fidelity",
        "account": "loan mortgage checking savings deposit policy pension bond",
        "amount": "nothing ten twenty fifty forty hundreds thousands pennies double plenty",
        "bill": "rent water gas electricity insurance parking internet cable childcare tuition",
        "period": "month week year quarter summer winter fortnight",
        "shop": "bakery barbershop pharmacy bookstore grocery florist laundry butcher hardware cafe salon bank cinema bar tailor "
        "garage museum gym",
        "price": "open cheap closed busy friendly expensive clean popular overpriced tiny modern dusty charming hidden affordable "
        "gone",
        "landmark": "station church bridge park market school library river fountain square tower hospital stadium harbour",
        "team": "yankees bears lions tigers rangers hawks sharks eagles giants wolves bulls rockets pirates cubs",
        "game": "football tennis chess hockey golf baseball basketball rugby poker darts cricket bowling",
        "result": "won lost tied improved collapsed surprised struggled dominated returned trained quit cheated",
        "music": "jazz rock blues opera techno folk disco metal reggae soul country salsa",
        "instrument": "guitar piano drums violin trumpet flute cello banjo organ harp",
        "sound": "loud slow sad catchy wild smooth dull romantic strange soft bright rough",
        "film": "comedy thriller western musical drama cartoon documentary mystery romance sequel",
        "verdict": "funny boring scary brilliant long clever silly moving predictable violent gloomy short",
        "pet": "dog cat parrot rabbit hamster turtle goldfish pony lizard canary ferret snake",
        "mood": "hungry sleepy playful lazy nervous curious stubborn gentle sick greedy fat shy",
        "spot": "sofa kitchen balcony bed stairs carpet window porch cellar attic bathtub",
        "plant": "roses tomatoes tulips peppers basil carrots lilies pumpkins beans ferns cabbage strawberries onions mint",
        "growth": "tall red wilted ripe green yellow thick early late huge rotten pale",
        "tool": "shovel rake hose bucket ladder hammer saw drill brush wheelbarrow",
        "task": "report budget meeting schedule contract project survey deadline presentation invoice audit proposal",
        "progress": "finished late approved cancelled rejected delayed ready messy signed wrong forgotten printed",
        "pain": "back knee head shoulder tooth stomach neck ankle throat elbow",
        "cure": "rest ice exercise honey aspirin yoga sleep massage ginger stretching medicine",
        "often": "always often never sometimes rarely usually still",
        "feel": "think know believe hope doubt guess suppose swear",
    }.items()
}

#: Sentence forms of each topic; ``{slot}`` or ``{slot2}`` is a word of that slot, a second one differing from the first.
TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "food": (
        "{food} from {town} is {taste}",
        "the {food} my {person} cooks is {often} {taste}",
        "i {often} order {food} with {drink}",
        "for {meal} my {person} made {food} and it was {taste}",
        "{drink} goes well with {food}",
        "nobody cooks {food} like my {person}",
        "the {venue} in {town} serves {food} on {day} and it is {taste}",
        "i {feel} the {food} here is {taste}",
    ),
    "travel": (
        "we spent our {event} in {country}",
        "{month} in {country} is {weather}",
        "took the {vehicle} from {town} to {town2} and it was {delay}",
        "the {vehicle} to {town} is {often} {delay}",
        "we {feel} the beaches of {country} are {look}",
        "my {person} wants to see {country} in {month}",
        "our hotel in {country} was {look}",
    ),
    "devices": (
        "buy {device} from {brand}",
        "{adore} my old {brand}",
        "my {device} from {brand} will {perform}",
        "headphones from {brand} {perform}",
        "the {part} of my {device} is {state}",
        "i {feel} {brand} makes a {device} that is {state}",
        "first {device} by {brand} was {state}",
        "{adore} my old {device}",
    ),
    "online": (
        "search online using {engine}",
        "i {often} search for {query} using {engine}",
        "found {query} for my {person} on {engine}",
        "my {person} buys {query} online every {period}",
        "{engine} shows better {query} than {engine2}",
    ),
    "money": (
        "first credit card by {bank}",
        "{bank} charges {amount} for a {account}",
        "opened a {account} at {bank} in {month}",
        "my {person} pays {amount} for {bill} every {period}",
        "i {feel} {bill} costs {amount} this {period}",
        "the credit card from {bank} is {often} declined",
    ),
    "town": (
        "{shop} on the corner is {price}",
        "the {shop} near the {landmark} is {often} {price}",
        "the {shop} opens at {hour} on {day}",
        "walk past the {landmark} to find the {shop}",
        "i {feel} the {landmark} in {town} is {look}",
        "my {person} runs a {shop} by the {landmark}",
    ),
    "parties": (
        "celebrated my {event} at the {venue}",
        "we danced to {music} at the {event} of my {person}",
        "my {person} brought a {gift} to the {event}",
        "got a {gift} from my {person} for my {event}",
        "the {venue} was {price} for our {event} on {day}",
        "celebrated with {drink} and {food} at the {venue}",
    ),
    "sport": (
        "the {team} {result} against the {team2} on {day}",
        "my {person} {often} plays {game} at {hour}",
        "we watched the {team} at the {venue}",
        "i {feel} the {team} {result} this {period}",
        "{game} in {month} is {weather}",
    ),
    "music": (
        "the {instrument} in {music} is {sound}",
        "my {person} {often} plays {instrument} on {day}",
        "{music} from {country} is {sound}",
        "we heard {music} at the {venue} in {town}",
        "i {feel} {music} is {sound}",
    ),
    "films": (
        "the {film} we saw on {day} was {verdict}",
        "my {person} {often} falls asleep during a {film}",
        "a {film} from {country} is {often} {verdict}",
        "i {feel} the new {film} is {verdict}",
        "saw a {film} at the cinema near the {landmark}",
    ),
    "pets": (
        "my {pet} is {often} {mood}",
        "the {pet} of my {person} sleeps on the {spot}",
        "our {pet} eats {food} at {hour}",
        "i {feel} the {pet} on the {spot} is {mood}",
        "found the {pet} under the {spot} and it was {mood}",
    ),
    "garden": (
        "the {plant} are {growth} in {month}",
        "my {person} waters the {plant} every {period}",
        "lost my {tool} behind the {plant}",
        "we plant {plant} in {month} with a {tool}",
        "i {feel} our {plant} are {growth}",
    ),
    "work": (
        "the {task} for my {person} is {progress}",
        "my {person} works as a {job} in {town}",
        "we have a {task} at {hour} on {day}",
        "i {feel} the {task} is {often} {progress}",
        "a {job} earns {amount} every {period}",
        "my {pain} hurts and only {cure} helps",
        "{cure} {often} helps when my {pain} hurts",
    ),
}

#: Which word of a sentence a slot goes with.
GOES_WITH: Final = {
    "taste": "food",
    "look": "country",
    "weather": "month",
    "delay": "vehicle",
    "state": "device",
    "price": "shop",
    "result": "team",
    "sound": "music",
    "verdict": "film",
    "mood": "pet",
    "growth": "plant",
    "progress": "task",
    "cure": "pain",
    "perform": "brand",
    "engine": "query",
}

#: Sentences in a post, at least and at most.
POST = (3, 6)
#: Probability that a slot takes the word it had before in the post.
AGAIN = 0.5
#: Concentration of the Dirichlet distribution of an author's topics.
TOPIC_CONCENTRATION = 0.3
#: Standard deviation of an author's liking for a word or a sentence form, added to the logarithm of its common weight.
LIKING = 0.7

_SLOT = re.compile(r"\{([a-z]+)2?\}")


@cache
def words() -> tuple[str, ...]:
    """Return all words of the grammar, sorted."""
    fixed = {word for forms in TOPICS.values() for form in forms for word in form.split() if not _SLOT.fullmatch(word)}
    return tuple(sorted(fixed.union(*SLOTS.values())))


class Author:
    """One author's likings, and posts written by them.

    Args:
        draw: the source of everything random about this author.
    """

    def __init__(self, draw: np.random.Generator) -> None:
        self._draw = draw
        self._topics = _cumulated(draw.dirichlet(np.full(len(TOPICS), TOPIC_CONCENTRATION)))
        self._forms = {topic: _cumulated(np.exp(LIKING * draw.standard_normal(len(forms)))) for topic, forms in TOPICS.items()}
        self._liking = {slot: np.exp(LIKING * draw.standard_normal(len(known))) for slot, known in SLOTS.items()}
        self._chances: dict[tuple[str, int], np.ndarray] = {}

    def post(self) -> list[str]:
        """Return the words of one post."""
        topic = tuple(TOPICS)[self._pick(self._topics)]
        before: dict[str, int] = {}
        found: list[str] = []
        for _ in range(int(self._draw.integers(POST[0], POST[1] + 1))):
            found += self._sentence(TOPICS[topic][self._pick(self._forms[topic])], before)
        return found

    def _sentence(self, form: str, before: dict[str, int]) -> list[str]:
        found = []
        here: dict[str, int] = {}
        for word in form.split():
            match = _SLOT.fullmatch(word)
            if match is None:
                found.append(word)
                continue
            slot = match.group(1)
            partner = GOES_WITH.get(slot)
            if slot in before and slot not in here and partner not in here and self._draw.random() < AGAIN:
                place = before[slot]
            else:
                place = self._place(slot, here.get(partner, 0) if partner else 0, here.get(slot))
            here[slot] = before[slot] = place
            found.append(SLOTS[slot][place])
        return found

    def _place(self, slot: str, shift: int, other_than: int | None) -> int:
        while True:
            place = self._pick(self._chance(slot, shift))
            if place != other_than:
                return place

    def _chance(self, slot: str, shift: int) -> np.ndarray:
        """Cumulated chances of a slot's words: by rank, 1/(rank + 1), the ranks moved round by what the slot goes with."""
        if (slot, shift) not in self._chances:
            size = len(SLOTS[slot])
            ranks = (np.arange(size) - 3 * shift) % size
            self._chances[slot, shift] = _cumulated(self._liking[slot] / (ranks + 1))
        return self._chances[slot, shift]

    def _pick(self, cumulated: np.ndarray) -> int:
        return int(np.searchsorted(cumulated, self._draw.random(), side="right"))


def _cumulated(weights: np.ndarray) -> np.ndarray:
    total = np.cumsum(weights)
    total /= total[-1]
    return total
