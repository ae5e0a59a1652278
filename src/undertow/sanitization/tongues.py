"""Languages of answers, told by their most frequent words and by letters that only one of them has.

A word of a text speaks for every language whose list holds it, or whose letters it has; the language with most words is the
text's, where these are enough and hardly any word is English. This is the oldest way to tell languages apart (Ingle 1976, "A
language identification table"); it needs a few words of a text and no model. Close languages share a list, so that the answers of
one language are of one kind.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection

#: Frequent words of some languages, other than English.
LANGUAGES = {
    "Spanish": "el la los las de que y en un una es por con para como del se su al más",
    "French": "le la les des de et en un une est que pour dans qui sur pas par du au ce",
    "German": "der die das und ist ein eine nicht mit von zu den auf für im des sich dem auch es",
    "Italian": "il la di che e un una è per con non del della sono come le gli i nel si",
    "Portuguese": "o a os as de que e em um uma é para com não por do da dos como se",
    "Dutch": "de het een en van is dat op te in voor met niet zijn aan er ook als om door",
    "Afrikaans": "die het nie en van is dat op te in vir met ek ons jy wat sal kan ook om hulle baie was",
    "Catalan": "el la els les de que i en un una és per amb no del al com més però aquest són han seva",
    "Romanian": "și în de la nu o un este cu pe din că pentru care să mai sunt sau dar prin al fi fost lui aici ce când",
    "Latin": "et in est non ad cum ut quod qui sed si ex ab hic esse sunt quae atque nec enim autem aut haec omnis quia erat ita",
    "Swedish": "och att det som en på är av för med den till inte om ett men har de jag var vi kan här när eller från",
    "Danish or Norwegian": "og det at som en på er af av for med den til ikke om et men har de jeg var vi kan her når "
    "eller fra der",
    "Icelandic": "og að það sem er ekki við um en til af með var hann ég á í þetta þú hafa fyrir eru",
    "Finnish": "ja on ei se että hän oli ovat mutta myös kun niin tai mitä joka ole sen kuin voi olla siitä nyt vain hyvin",
    "Estonian": "ja on ei see et oli kui ta ka oma aga mis siis olen või nende kes seda väga need",
    "Hungarian": "a az és hogy nem is egy van de ha ez meg csak már volt azt mint vagy el ki még minden kell itt nagyon",
    "Polish": "i w nie na się z do to że jest o jak ale po co tak za od jego są ten czy przez dla był jako bardzo",
    "Czech or Slovak": "a se na je v že to s z do o i ve by ale jako pro sa ako ktoré byl bol nebo alebo není nie po jsem aj tak "
    "které který",
    "Croatian, Serbian or Slovene": "i je u na se da za su od sa ne što to koji ali kao iz bi in ki ni pa so kako samo sam "
    "nije po jer",
    "Lithuanian": "ir yra kad į ne su iš kaip tai bet jis buvo ar po savo šis ji apie nuo labai",
    "Latvian": "un ir ka ar par bet kas to tā nav uz vai ļoti kā es viņš bija lai gan",
    "Albanian": "dhe të në një për me që është nuk si nga ka por kjo ai janë më shumë ky do",
    "Turkish": "ve bir bu da de için çok ile ne o var ama daha gibi olarak kadar değil sonra en olan ben sen her mi ki "
    "yok şey diye",
    "Azerbaijani": "və bir bu da də üçün çox ilə ki var daha kimi olan deyil sonra o hər edir amma isə",
    "Indonesian or Malay": "yang dan di itu dengan untuk tidak dari ini dalam akan pada juga saya ke karena ada adalah bisa oleh "
    "atau telah sudah anda mereka kami kita sebagai boleh seperti kepada tetapi",
    "Tagalog": "ang ng sa na mga ay at si ni ito hindi para ako siya niya kung nang po may ka mo lang isang",
    "Swahili": "na ya wa kwa ni katika za la hii kama si cha yake huo kuwa lakini hiyo sana pia watu",
    "Vietnamese": "và là của có không được cho các một trong với những người này đã khi đến từ ở cũng như để thì trên về vì "
    "tôi rất nhưng mà",
    "Welsh": "yn y yr a i o ar mae ac ei wedi am gan bod ond hefyd fel oedd nid cael dyma sydd",
    "Irish": "agus an na is ar le go sé tá bhí ag do sin nach a bhfuil siad níl faoi seo",
    "Basque": "eta da ez bat du dira egin zen izan dute baina hori ere bere den dago nire",
    "Esperanto": "la kaj de en estas ne al por kun mi vi li ke ĝi sed oni tio kiel ili pri",
}
#: Letters, and the languages of the list that have them.
_LETTERS = {
    "ığş": ("Turkish",),
    "ə": ("Azerbaijani",),
    "łąęśżź": ("Polish",),
    "řěůľť": ("Czech or Slovak",),
    "țţăș": ("Romanian",),
    "őű": ("Hungarian",),
    "øæ": ("Danish or Norwegian",),
    "å": ("Danish or Norwegian", "Swedish"),
    "ä": ("Swedish", "Finnish", "German", "Estonian"),
    "ö": ("Swedish", "Finnish", "German", "Hungarian", "Turkish"),
    "ü": ("German", "Turkish", "Hungarian"),
    "ß": ("German",),
    "ñ": ("Spanish",),
    "ãõ": ("Portuguese",),
    "þð": ("Icelandic",),
    "ėįų": ("Lithuanian",),
    "ģķļņā": ("Latvian",),
    "čšž": ("Czech or Slovak", "Croatian, Serbian or Slovene", "Lithuanian", "Latvian"),
    "ć": ("Croatian, Serbian or Slovene", "Polish"),
    "ĉĝĥĵŝŭ": ("Esperanto",),
    "ơưđ" + "".join(map(chr, range(0x1EA0, 0x1EFA))): ("Vietnamese",),
}
ENGLISH = frozenset("the of and to a in is that for it as with on are be this by an or from you can i".split())
#: English words that a text of another language may hold; its share of words of its own, and the fewest of them.
_FEW, _SPOKEN, _FEWEST = 2, 0.2, 3
#: Languages whose words that are English, too, count beside so many others: few English texts hold those.
_BOTH, _ALONE = frozenset({"Italian", "Portuguese", "Dutch"}), 2
#: A word speaks for a language the less, the more others have it, in whole parts of this.
_PARTS = 5040
#: Words by language, and the English ones that no other has; one that another has does not speak against it.
_LISTS = {name: frozenset(words.split()) for name, words in LANGUAGES.items()}
_OWN = ENGLISH.difference(*_LISTS.values())
_OF_WORD = {word: tuple(n for n, own in _LISTS.items() if word in own) for word in frozenset().union(*_LISTS.values()) - ENGLISH}
_OF_LETTER = {letter: names for letters, names in _LETTERS.items() for letter in letters}
_LETTERED = re.compile(f"[{''.join(_OF_LETTER)}]")
_EDGES = ".,;:!?\"'()[]«»„“”¿¡"


def language(words: Collection[str]) -> str:
    """Return the language of a text, "" for English and for what is no language of the lists.

    Args:
        words: of its beginning, in lower case, cut at blanks.
    """
    if len(_OWN.intersection(words)) > _FEW:
        return ""
    own = {word.strip(_EDGES) for word in words}
    english = own & ENGLISH
    if len(english & _OWN) > _FEW:
        return ""
    hits: Counter[str] = Counter()
    weight: Counter[str] = Counter()
    for word in own:
        speaks = _OF_WORD.get(word, ())
        if not speaks and not word.isascii():
            word = unicodedata.normalize("NFC", word)
            letter = _LETTERED.search(word)
            speaks = _OF_WORD.get(word) or (_OF_LETTER[letter[0]] if letter else ())
        for name in speaks:
            hits[name] += 1
            weight[name] += _PARTS // len(speaks)
    enough = max(_FEWEST, _SPOKEN * len(own))
    for name in _BOTH.intersection(hits):
        hits[name] += len(english & _LISTS[name]) * (hits[name] >= _ALONE)
    told = [name for name in hits if hits[name] >= enough and len(english - _LISTS[name]) <= _FEW]
    return max(told, key=lambda name: (weight[name], name), default="")
