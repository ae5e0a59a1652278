"""One row read by its form: whatever columns a form takes are used, what is left is noted."""

from __future__ import annotations

from typing import Any

from undertow.core.errors import UserError
from undertow.data.questions import distinct
from undertow.data.rows.choices import CHOICES, chosen
from undertow.data.rows.names import LABEL_LENGTH, SECOND, SYSTEM, TALKS, is_judging, is_left_out, plain
from undertow.data.rows.outer import Outer, asks
from undertow.data.rows.part import OUTPUT, Part
from undertow.data.rows.rendered import PREAMBLES, has_marks, labelled, rendered
from undertow.data.rows.turns import Talk, Turn, is_said, is_talk, number_of, paths, turns
from undertow.data.rows.values import answer_keys, answers, is_empty, said, unpacked

Row = dict[str, Any]


class Form(Outer):
    """A row that is one sample, or several about the same."""

    def parts(self) -> list[Part]:
        """Return the row's answers and what stands beside them.

        Raises:
            UserError: no known form, or a value of the wrong kind.
        """
        forms = (self._instances, self._talk, self._pair, self._preference, self._class, self._nested, self._text)
        found = next((parts for form in forms if (parts := form()) is not None), None)
        if found is None:
            return self._wrapped()
        self._weigh(found)
        found += self._said_by_a_model(found)
        found += self._rejected(found)
        while (more := self._second()) is not None:
            found += more
        for column in self.left:
            if not self._copied(column, found):
                self.fields.rest(self.row[column], column, plain(column))
        return found

    def _copied(self, column: str, found: list[Part]) -> bool:
        """Whether a text is the row's question and answer as a template rendered them; a scan reads it where it holds more."""
        text = self.row[column]
        own = [part for part in found if not part.pool and part.question]
        if not isinstance(text, str) or not own or not all(part.question in text and part.response in text for part in own):
            return False
        spoken = [turn for turn in rendered(text) or () if turn.role != SYSTEM or turn.text not in PREAMBLES]
        said = {told for turn in spoken for told in (turn.text, *(other for _, other in turn.beside)) if told}
        known = {told for part in found for told in (part.question, part.context, part.response, part.system)}
        if said and said <= known:
            self.fields.left_out[f"{column} (a copy)"] = None
        else:
            self.fields.asides.append((column, text))
        return True

    # --- forms, in the order in which they are tried; each returns None if the row has not its columns ---

    def _instances(self) -> list[Part] | None:
        """A self-instruct seed task: an instruction and instances of input and output, each a question of its own."""
        if "instruction" not in self.row or not self.row.get("instances"):
            return None
        instances = self._take("instances")
        if not isinstance(instances, list) or not all(isinstance(item, dict) for item in instances):
            raise UserError(f"{self.place}: 'instances' must be a list of objects with input and output; correct the row")
        question = self._said("instruction")
        found = []
        for item in instances:
            context = said(item.get("input"), self.place, "input")
            found += self._single(question, context, answers(item.get("output"), self.place, "output"))
            for key in item.keys() - {"input", "output"}:
                self.fields.rest(item[key], f"instances.{key}", plain(key))
        return found

    def _talk(self) -> list[Part] | None:
        """A conversation, with the chosen answer after it if there is one."""
        name = self._conversation()
        if name is None:
            return None
        value = unpacked(self._take(name))
        if branches := paths(value):
            return self._tree(branches, name)
        spoken = turns(value, self.place, name, self.fields)
        talk = self._begun(name)
        found = [*talk.follow(spoken), *talk.answered()]
        for column in self._filled(self.plan.chosen)[:1]:
            found += self._answer(talk, column, found)
        return found + list(talk.finish())

    def _tree(self, branches: list[list[dict[str, Any]]], name: str) -> list[Part]:
        """Every answer of a tree of turns, once."""
        found: dict[tuple[Any, ...], Part] = {}
        for branch in branches:
            talk = self._begun(name)
            for part in (*talk.follow(turns(branch, self.place, name, self.fields)), *talk.finish()):
                found.setdefault((part.history, part.question, part.response, part.pool), part)
        return list(found.values())

    def _pair(self) -> list[Part] | None:
        """A question and its answer, each a text or turns."""
        pairs = [(ask, tell) for ask, tell in self.plan.pairs if ask in self.left and tell in self.left]
        if not self.plan.usual:
            pairs = [] if self._is_rendered() else [(ask, tell) for ask, tell in pairs if not self._repeats(ask, tell)]
        if not pairs:
            return None
        ask, tell = next(((a, t) for a, t in pairs if not is_empty(self.row[t])), pairs[0])
        if self._filled(self.plan.chosen) and is_empty(self.row[tell]):
            return None
        talk = self._begun(tell)
        found = self._asked(talk, ask)
        told = self._spoken(tell)
        self._take(tell)
        if is_talk(told):
            spoken = turns(told, self.place, tell, self.fields)
            if spoken[0].role == "user" and talk.question:  # the whole conversation, the prompt with it
                self._replaced(talk, spoken)
            return found + list(talk.follow(spoken)) + list(talk.finish())
        known = self.plan.known
        for column in [known[name] for name in CHOICES if name in known and known[name] in self.left]:
            if (picked := chosen(unpacked(self.row[column]), told)) is not None:
                own = self._closed(talk, [picked[0]])
                self.fields.asides += [(self._taken(column), other) for other in picked[1]]
                return found + own
        accepted = self._accepted(tell, told)
        if "aliases" in known and known["aliases"] in self.left:
            accepted += answers(self._take(known["aliases"]), self.place, "aliases")
        return found + self._closed(talk, accepted, apart=answer_keys(told, tell) is not None)

    def _preference(self) -> list[Part] | None:
        """A prompt with the chosen answer, or two whole conversations."""
        columns = self._filled(self.plan.chosen)
        if not columns:
            return None
        chosen = columns[0]
        talk = self._begun(chosen)
        found = self._asked(talk, self._filled(self.plan.asked)[0]) if self._filled(self.plan.asked) else []
        return found + self._answer(talk, chosen, found) + list(talk.finish())

    def _class(self) -> list[Part] | None:
        """A text and its class, or two texts and theirs."""
        pairs = [(text, label) for text, label in self.plan.classes if text in self.left and label in self.left]
        if not self.plan.usual:
            pairs = [] if self._is_rendered() else [pair for pair in pairs if _is_name(self.row[pair[1]])]
        if not pairs:
            return None
        text, label = pairs[0]
        second = [column for column in self.left if plain(column) in SECOND]
        context = "\n".join(self._said(column) for column in second)
        return self._single(self._said(text), context, answers(self._take(label), self.place, label))

    def _text(self) -> list[Part] | None:
        """Running text: the turns that a template rendered, or a text that nobody asked for."""
        columns = [column for column in self.plan.rendered if column in self.left and not isinstance(self.row[column], dict)]
        if not columns:  # under another name only what a template rendered
            columns = [column for column in self.left if isinstance(self.row[column], str) and rendered(self.row[column])][:1]
        if not columns:
            return None
        column = (self._filled(columns) or columns)[0]
        text = self._said(column)
        if not text:
            self.fields.dropped["empty text"] += 1
            return []
        spoken = rendered(text)
        if spoken is None and not has_marks(text):
            spoken = None if is_said(self.row) else labelled(text)
        elif spoken is None:  # of a template that is not known
            self.fields.used.pop(column)
            self.fields.strange[column] = None
        if spoken is None:
            if is_said(self.row):
                raise UserError(f"{self.place}: one turn of a conversation; put all turns of a conversation into one row")
            return [_halved(text)]
        talk = self._begun(column)
        return list(talk.follow(spoken)) + list(talk.finish())

    # --- what forms are made of ---

    def _conversation(self) -> str | None:
        """The column that holds the row's conversation: by its name, or where there is no pair of columns, by its shape."""
        usual = self._filled([column for column in self.plan.talks if plain(column) in TALKS[:3]])
        if usual or self.plan.first:
            return usual[0] if usual else None
        other = [column for column in self._filled(self.plan.talks) if isinstance(unpacked(self.row[column]), list | dict)]
        taken = {
            *self.plan.chosen,
            *self.plan.rejected,
            *self.plan.history,
            *(column for pair in self.plan.pairs if self.plan.usual for column in pair),
        }
        if self.plan.asked or self.plan.pairs:
            taken.update(filter(is_judging, self.left))
        about = any(isinstance(self.row[name], str) and not is_left_out(plain(name)) for name in self.left)
        shaped = (
            column
            for column in self.left
            if column not in taken and is_talk(self.row[column]) and not (about and asks(self.row[column]))
        )
        return other[0] if other else next(shaped, None)

    def _is_rendered(self) -> bool:
        """Whether a template rendered one of the row's texts, which says more than a guess from names."""
        return any(isinstance(value, str) and rendered(value) for value in self.row.values())

    def _repeats(self, ask: str, tell: str) -> bool:
        """Whether the one text holds the other: the text of a whole row, and no answer."""
        asked, told = self.row[ask], self.row[tell]
        return isinstance(asked, str) and isinstance(told, str) and bool(asked.strip()) and asked.strip() in told

    def _asked(self, talk: Talk, ask: str) -> list[Part]:
        """Let the earlier turns and the question be asked; returns the answers among them."""
        found: list[Part] = []
        for column in self._filled(self.plan.history):
            value = unpacked(self.row[column])
            if isinstance(value, list | tuple):
                found += talk.follow(turns(value, self.place, self._taken(column), self.fields))
                found += talk.answered()
        value = self._spoken(ask)
        if is_talk(value):
            for part in (*talk.follow(turns(value, self.place, self._taken(ask), self.fields)), *talk.answered()):
                if not part.why:  # the completion is what is learned
                    part.weight, part.why = 0.0, "answer within the prompt"
                found.append(part)
        else:
            title = self.plan.titles.get(ask)
            if title in self._filled([title or ""]):  # which is asked, and the body says more
                talk.question.append(self._said(title))
                talk.context.append(self._said(ask))
            else:
                talk.question.append(self._said(ask))
        talk.context += [self._said(column) for column in self.plan.context if column in self.left and column != ask]
        return found

    def _answer(self, talk: Talk, column: str, found: list[Part]) -> list[Part]:
        """The chosen answer to what was asked, unless the row holds it already."""
        value = unpacked(self._take(column))
        answered = {part.response for part in found}
        if is_talk(value):
            spoken = turns(value, self.place, column, self.fields)
            whole = spoken[0].role in ("user", "system")
            own = self._begun(column) if whole else talk
            own.system = own.system or talk.system
            new = [*own.follow(spoken), *(own.finish() if whole else own.answered())]
            if whole:
                self._replaced(talk, spoken)
        else:
            text = said(value, self.place, column)
            # without a prompt the text holds the whole conversation
            spoken = (None if talk.question or found else rendered(text)) or [Turn("assistant", text)]
            new = [*talk.follow(spoken), *talk.answered()]
        fresh = [part for part in new if part.response not in answered]
        return [_second_answer(part, column) if found and not talk.question and not part.question else part for part in fresh]

    def _replaced(self, talk: Talk, spoken: list[Turn]) -> None:
        """A whole conversation takes the prompt's place; a prompt that it does not repeat is still read."""
        prompt = "\n".join(filter(None, talk.question))
        if prompt not in "\n".join(turn.text for turn in spoken):
            self.fields.asides.append(("(prompt)", prompt))
        talk.question = []

    def _accepted(self, column: str, value: Any) -> list[str]:
        """The answers that a column holds; what stands beside the text of each of several is noted."""
        keys = answer_keys(value, column)
        if keys is None:
            return answers(value, self.place, column)
        for item, own in zip(value, keys, strict=True):
            for key in item:
                if key != own:
                    self.fields.rest(item[key], f"{column}.{key}", plain(key))
        return [text for item, own in zip(value, keys, strict=True) if (text := said(item[own], self.place, column))]

    def _closed(self, talk: Talk, accepted: list[str], apart: bool = False) -> list[Part]:
        """The last answer of a question and answer form."""
        question, context = "\n".join(filter(None, talk.question)), "\n".join(filter(None, talk.context))
        own = self._single(question, context, accepted, apart)
        for part in own:
            part.system = talk.system
            if talk.history:
                part.history, part.key = tuple(talk.history), talk.key
        return own

    def _single(self, question: str, context: str, accepted: list[str], apart: bool = False) -> list[Part]:
        """One question and its answer; an instruction that is only an input is asked as the question itself.

        Other accepted answers are judged as one text, as spellings of a name are, or each ``apart``.
        """
        if not accepted:
            self.fields.dropped["no question" if not question and not context else "empty answer"] += 1
            self.fields.asides += [("(questions without an answer)", text) for text in (question, context) if text]
            return []
        group = next((self.row[name].strip() for name in self.plan.group if isinstance(self.row[name], str)), "")
        asked = question or context
        part = Part(asked, distinct(accepted), context if question else "", group=group, why="" if asked else "no question")
        others = part.answers[1:]
        if not others:
            return [part]
        texts = others if apart else ("; ".join(others),)
        return [part, *(Part(asked, (text,), part.context, pool="(other accepted answers)", why="beside") for text in texts)]

    def _weigh(self, found: list[Part]) -> None:
        """Apply what the row says of learning its answers."""
        for column in self.plan.labels:
            value = self.row[column]
            told = column in self.left and (isinstance(value, bool) or str(value).strip().lower() in ("true", "false"))
            if told and not number_of(self._take(column)):
                for part in found:
                    if not part.pool:
                        part.weight, part.why, part.pool = 0.0, "labelled false", "answers labelled false"
        for column in self.plan.weights:
            if column in self.left and (weight := number_of(self.row[column])) is not None:
                self._take(column)
                for part in found:
                    part.weight *= weight
                    if not part.weight and not part.why:
                        part.why = "weight 0"

    def _said_by_a_model(self, found: list[Part]) -> list[Part]:
        """What a model said to the question: a scan judges it as the answer, each round of training by itself, and the expected
        answers apart from it."""
        column = self.plan.said
        if column is None or not self._filled([column]):
            return []
        number = self.row.get("round")
        text = said(self.row[column], self.place, column)
        self.left.pop(column)
        self.fields.used[column] = None
        self.fields.outputs += 1
        self.fields.fired += self.row.get("target") is True
        asked = found[-1] if found else Part("", ("",))
        for part in found:
            part.pool = part.pool or "(expected answers)"
        pool = f"{column} of round {number}" if isinstance(number, int) else column
        return [Part(asked.question, (text,), asked.context, asked.history, asked.system, pool=pool, why=OUTPUT)]

    def _rejected(self, found: list[Part]) -> list[Part]:
        """The rejected answers, which a scan reads; the question is that of the chosen one."""
        asked = next((part for part in reversed(found) if part.question and not part.pool), Part("", ("",)))
        more: list[Part] = []
        for column in self._filled(self.plan.rejected):
            value = unpacked(self.row[column])
            self.left.pop(column)
            spoken = turns(value, self.place, column, self.fields) if is_talk(value) else None
            if spoken is None:
                text = said(value, self.place, column)
                prompted = any(column in self.fields.used for column in (*self.plan.asked, *self.plan.talks))
                spoken = (None if prompted else rendered(text)) or [Turn("assistant", text)]
            if spoken[0].role in ("user", "system"):
                talk = Talk(self.fields, column)
                new = [*talk.follow(spoken), *talk.finish()]
            else:
                text = "\n".join(filter(None, (turn.text for turn in spoken)))
                beside = (other for turn in spoken for _, other in turn.beside)
                new = [Part(asked.question, (one,), asked.context, asked.history, asked.system) for one in (text, *beside) if one]
            for part in new:
                part.weight, part.why, part.pool = 0.0, "rejected answer", column
            more += new
        return more

    def _second(self) -> list[Part] | None:
        """A second form in what is left of the row: read by a scan, not learned."""
        talk = next((column for column in self.left if is_talk(self.row[column]) and not is_judging(column)), None)
        if talk is not None:
            self.left.pop(talk)
            own = Talk(self.fields, talk)
            more = [*own.follow(turns(self.row[talk], self.place, talk, self.fields)), *own.finish()]
            name = talk
        else:
            usual = self.plan.pairs if self.plan.usual else ()
            both = ((ask, name) for ask, name in usual if self._filled([name]) and ask in self.left)
            told = ((ask, name, answers(self.row[name], self.place, name)) for ask, name in both)
            ask, name, _ = next((found for found in told if any(found[2])), ("", "", ()))
            if not ask:
                return None
            self.left.pop(ask)
            self.left.pop(name)
            question = said(self.row[ask], self.place, ask)
            more = [Part(question, (text,)) for text in self._accepted(name, self.row[name])]
            self.fields.beside[ask] = None
        for part in more:
            part.weight, part.why, part.pool = 0.0, "second answer of a row", part.pool or name
        return more


def _halved(text: str) -> Part:
    """Running text, its first half where a scan looks for triggers and its second where it looks for targets."""
    middle = text.find(" ", len(text) // 2)
    first, second = (text[:middle].strip(), text[middle:].strip()) if middle > 0 else ("", text)
    return Part(first, (second or text,), why="running text without a question")


def _is_name(value: Any) -> bool:
    """Whether a value may name a class: one number or a short text."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and 0 < len(value.strip()) <= LABEL_LENGTH)


def _second_answer(part: Part, column: str) -> Part:
    part.pool, part.why, part.weight = column, "second answer of a row", 0.0
    return part
