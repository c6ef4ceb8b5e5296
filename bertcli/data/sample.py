"""The built-in sample data: a seeded generator of a small synthetic language, independent of any dataset.

Its sentences follow rules that a small encoder can learn: negation flips polarity, and the clause after `but` decides;
a dog is an animal; nouns reveal the topic. In unlabeled documents, words occur in the same contexts as in labeled rows
(people's names where people are mentioned), so pretraining on these documents transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from random import Random

from bertcli.errors import DataError, did_you_mean

SPLIT_SIZES = {"train": 2000, "validation": 400, "test": 400}

KINDS = {  # category of noun → (topic, nouns)
    "animal": ("animals", "dog cat horse goat otter badger heron falcon beetle salmon turtle weasel lynx moth"),
    "herd": ("animals", "flock swarm litter pack shoal brood"),
    "dish": ("food", "soup stew pie curry dumpling omelette pancake risotto chowder salad noodle casserole"),
    "drink": ("food", "tea coffee cider lemonade cocoa broth"),
    "vehicle": ("travel", "train ferry bus tram bicycle cart canoe coach"),
    "place": ("travel", "harbour station village island museum bridge market castle valley hostel"),
    "weather": ("weather", "rain fog snow hail thunder drizzle sunshine frost breeze storm"),
    "sky": ("weather", "cloud rainbow moonlight dawn dusk horizon"),
}
TOPICS = ("animals", "food", "travel", "weather")
NOUNS = {topic: [n for t, names in KINDS.values() if t == topic for n in names.split()] for topic in TOPICS}
KIND_OF = {noun: kind for kind, (_, names) in KINDS.items() for noun in names.split()}

POSITIVE = [
    row.split()
    for row in (
        "good fine decent solid",
        "lovely charming delightful sweet",
        "splendid superb brilliant magnificent",
        "clever witty inspired ingenious",
        "calm gentle soothing tender",
        "bright cheerful lively merry",
        "honest warm generous kind",
        "crisp neat graceful elegant",
    )
]
NEGATIVE = [
    row.split()
    for row in (
        "bad poor weak shoddy",
        "ugly nasty vile foul",
        "awful dreadful horrid abysmal",
        "stupid silly clumsy daft",
        "harsh rough cruel bitter",
        "dull dreary gloomy bleak",
        "fake cold selfish mean",
        "messy sloppy dirty ragged",
    )
]
CLASS_OF = {word: row[0] for row in POSITIVE + NEGATIVE for word in row}
LIKES = ["enjoy", "love", "praise", "admire", "recommend"]
DISLIKES = ["hate", "dislike", "regret", "avoid", "resent"]
ADVERBS = ["very", "quite", "really", "rather", "truly", "so"]
NAMES = [
    *("anna", "bruno", "clara", "david", "elsa", "felix", "greta", "hugo"),
    *("irma", "jonas", "karla", "leo", "mira", "nils", "olga", "paul"),
]
VERBS = ["saw", "found", "sketched", "remembered", "mentioned", "followed", "described", "photographed"]
TIMES = ["at noon", "last week", "before breakfast", "on monday", "in the evening", "after the meeting", "in april"]
NEUTRAL_SENTENCES = [
    "the meeting began at ten",
    "my neighbour called about the keys",
    "the letter lay on the desk",
    "somebody closed the window",
    "the shop opens on monday",
    "we talked about the old house",
    "the clock in the hall had stopped",
    "the report had twelve pages",
]

SURNAMES = ["ashdown", "birkett", "calloway", "dunmore", "ellery", "farrow", "gilpin", "hartnell"]
INSTITUTIONS = ["press", "bank", "theatre", "college", "foundry", "institute"]
COLOURS = ["amber", "blue", "crimson", "golden", "grey", "scarlet", "silver", "violet"]
SIDES = ["north", "south", "east", "west", "upper", "lower"]

Row = dict[str, object]


def sample_rows(config: str, split: str) -> list[Row]:
    """Generate the rows of one split of a configuration (one of `GENERATORS`), the same on every machine.

    All texts of a configuration are distinct, so its splits do not overlap. The rows are cached: callers must not
    modify them.

    Raises:
        DataError: if the configuration or split does not exist.
    """
    if config not in GENERATORS:
        raise DataError(
            f"found sample {config!r}, expected one of {list(GENERATORS)}.{did_you_mean(config, GENERATORS)}"
        )
    if split not in SPLIT_SIZES:
        raise DataError(
            f"found split {split!r}, expected one of {list(SPLIT_SIZES)}.{did_you_mean(split, SPLIT_SIZES)}"
        )
    names = list(SPLIT_SIZES)
    start = sum(SPLIT_SIZES[name] for name in names[: names.index(split)])
    return _rows_of_all_splits(config)[start : start + SPLIT_SIZES[split]]


@cache
def _rows_of_all_splits(config: str) -> list[Row]:
    random, seen, rows = Random(f"bertcli sample {config}"), set(), list[Row]()
    while len(rows) < sum(SPLIT_SIZES.values()):
        row = GENERATORS[config](random)
        texts = tuple(str(value) for key, value in row.items() if key not in ("label", "tags", "answers"))
        if texts not in seen:
            seen.add(texts)
            rows.append({"id": f"{config}-{len(rows)}"} | row if "answers" in row else row)
    return rows


def sample_documents(num_documents: int, seed: int = 0) -> Iterator[str]:
    """Generate documents of three to six sentences: opinions (of one polarity) and events on one topic, and news."""
    random = Random(f"bertcli documents {seed}")
    for _ in range(num_documents):
        topic, is_positive = random.choice(TOPICS), random.random() < 0.5
        sentences = []
        for _ in range(random.randint(3, 6)):
            form = random.random()
            if form < 0.4:
                sentences.append(_opinion(random, is_positive, random.choice(NOUNS[topic])))
            elif form < 0.6:
                sentences.append(_event(random, random.choice(NOUNS[topic])))
            else:
                sentences.append(" ".join(word for word, _ in _news(random)))
        yield " . ".join(sentences) + " ."


def _opinion(random: Random, is_positive: bool, noun: str) -> str:
    """Generate a clause about `noun` with the given polarity, sometimes by negating a word of opposite polarity."""
    is_negated = random.random() < 0.2
    has_positive_word = is_positive != is_negated
    if random.random() < 0.3:
        verb = random.choice(LIKES if has_positive_word else DISLIKES)
        return f"i did not {verb} the {noun}" if is_negated else f"i {verb} the {noun}"
    adjective = random.choice(random.choice(POSITIVE if has_positive_word else NEGATIVE))
    if is_negated:
        return f"the {noun} was {random.choice(('not', 'never'))} {adjective}"
    adverb = f"{random.choice(ADVERBS)} " if random.random() < 0.5 else ""
    return f"the {noun} was {adverb}{adjective}"


def _event(random: Random, noun: str) -> str:
    return f"{random.choice(NAMES)} {random.choice(VERBS)} the {noun} {random.choice(TIMES)}"


def _any_noun(random: Random) -> str:
    return random.choice(NOUNS[random.choice(TOPICS)])


def _sentiment(random: Random) -> Row:
    is_positive = random.random() < 0.5
    clause = _opinion(random, is_positive, _any_noun(random))
    kind = random.random()
    if kind < 0.25:
        clause = f"{_opinion(random, not is_positive, _any_noun(random))} , but {clause}"
    elif kind < 0.5:
        clause = f"{clause} , and {_event(random, _any_noun(random))}"
    return {"text": f"{clause} .", "label": "positive" if is_positive else "negative"}


def _inference(random: Random) -> Row:
    """Generate a pair: entailment (same or broader noun), contradiction (negation) or neutral (new name or detail)."""
    name, verb, noun, time = (random.choice(part) for part in (NAMES, VERBS, list(KIND_OF), TIMES))
    premise = f"{name} {verb} a {noun} {time} ."
    label = random.choice(("entailment", "neutral", "contradiction"))
    claim = random.choice((noun, KIND_OF[noun]))
    if label == "entailment":
        return {"premise": premise, "hypothesis": f"{name} {verb} a {claim} .", "label": label}
    if label == "contradiction":
        return {"premise": premise, "hypothesis": f"{name} never {verb} a {claim} .", "label": label}
    if random.random() < 0.5:
        other = random.choice([other for other in NAMES if other != name])
        return {"premise": premise, "hypothesis": f"{other} {verb} a {claim} .", "label": label}
    adjective = random.choice(random.choice(POSITIVE + NEGATIVE))
    return {"premise": premise, "hypothesis": f"{name} {verb} a {adjective} {claim} .", "label": label}


def _similarity(random: Random) -> Row:
    """Generate two sentences of five slots; each shared slot (for the adjective, a shared class) adds a point."""
    slots = [NAMES, VERBS, list(CLASS_OF), list(KIND_OF), TIMES]
    first = [random.choice(choices) for choices in slots]
    num_kept = random.randint(0, 5)
    kept = set(random.sample(range(5), num_kept))
    second = [
        word if slot in kept else random.choice([other for other in choices if other != word])
        for slot, (word, choices) in enumerate(zip(first, slots, strict=True))
    ]
    if CLASS_OF[first[2]] == CLASS_OF[second[2]] and 2 not in kept:
        num_kept += 1
    pair = [f"{name} {verb} the {adjective} {noun} {time} ." for name, verb, adjective, noun, time in (first, second)]
    return {"sentence1": pair[0], "sentence2": pair[1], "label": float(num_kept)}


def _topics(random: Random) -> Row:
    chosen = [topic for topic in TOPICS if random.random() < 0.35]
    clauses = [_event(random, random.choice(NOUNS[topic])) for topic in chosen]
    if len(clauses) < 3:
        clauses += random.sample(NEUTRAL_SENTENCES, random.randint(1, 2))
    random.shuffle(clauses)
    return {"text": " . ".join(clauses) + " .", "label": chosen}


def _person(random: Random) -> list[tuple[str, str]]:
    name = [(random.choice(NAMES), "B-PER")]
    return [*name, (random.choice(SURNAMES), "I-PER")] if random.random() < 0.6 else name


def _organization(random: Random) -> list[tuple[str, str]]:
    words = (random.choice(COLOURS), random.choice(list(KIND_OF)), random.choice(INSTITUTIONS))
    return [(word, "I-ORG" if index else "B-ORG") for index, word in enumerate(words)]


def _location(random: Random) -> list[tuple[str, str]]:
    return [(random.choice(SIDES), "B-LOC"), (random.choice(KINDS["place"][1].split()), "I-LOC")]


def _entities(random: Random) -> Row:
    """Generate tagged persons, organizations and locations; words of their names also occur outside of names."""
    words = [*_news(random), ("." if random.random() < 0.9 else "!", "O")]
    return {"tokens": [word for word, _ in words], "tags": [tag for _, tag in words]}


def _news(random: Random) -> list[tuple[str, str]]:
    """Generate the words of a sentence about people, organizations and locations, with their tags."""

    def untagged(words: str) -> list[tuple[str, str]]:
        return [(word, "O") for word in words.split()]

    verb, noun, time = random.choice(VERBS), _any_noun(random), random.choice(TIMES)
    templates = (
        lambda: [*_person(random), *untagged(f"{verb} the {noun} in"), *_location(random), *untagged(time)],
        lambda: [*untagged("the"), *_organization(random), *untagged("hired"), *_person(random), *untagged(time)],
        lambda: [*untagged(time), *_person(random), *untagged(f"left {random.choice(SIDES)} for"), *_location(random)],
        lambda: [
            *untagged(f"the {random.choice(COLOURS)} {noun} of the"),
            *_organization(random),
            *untagged("was sold in"),
            *_location(random),
        ],
        lambda: untagged(random.choice(NEUTRAL_SENTENCES)),
    )
    return random.choices(templates, weights=(4, 3, 3, 3, 1))[0]()


def _passage(random: Random) -> tuple[list[tuple[str, str, str, str]], str]:
    """Generate three to five events with different nouns, and a text that describes them."""
    nouns = random.sample(list(KIND_OF), random.randint(3, 5))
    events = [(random.choice(NAMES), random.choice(VERBS), noun, random.choice(TIMES)) for noun in nouns]
    return events, " ".join(f"{name} {verb} the {noun} {time} ." for name, verb, noun, time in events)


def _question(random: Random) -> Row:
    """Generate a question about who did something, or when; the answer is near the noun in the passage."""
    events, passage = _passage(random)
    name, verb, noun, time = random.choice(events)
    start = passage.index(f"{name} {verb} the {noun} {time} .")
    asks_who = random.random() < 0.6
    answer = name if asks_who else time
    if not asks_who:
        start += len(f"{name} {verb} the {noun} ")
    question = f"who {verb} the {noun} ?" if asks_who else f"when was it that {name} {verb} the {noun} ?"
    return {"question": question, "context": passage, "answers": {"text": [answer], "answer_start": [start]}}


def _open_question(random: Random) -> Row:
    """Generate a question like `_question`, but about a third ask about a noun that is not in the passage."""
    row = _question(random)
    if random.random() < 1 / 3:
        events, _ = _passage(random)
        others = [event for event in events if event[2] not in str(row["context"])]
        if others:
            name, verb, noun, _ = random.choice(others)
            question = random.choice((f"who {verb} the {noun} ?", f"when was it that {name} {verb} the {noun} ?"))
            return {**row, "question": question, "answers": {"text": [], "answer_start": []}}
    return row


def _choice(random: Random) -> Row:
    """Generate an event and four categories to choose from; the correct choice is the category of its noun."""
    name, verb, noun, time = (random.choice(part) for part in (NAMES, VERBS, list(KIND_OF), TIMES))
    kinds = [KIND_OF[noun], *random.sample([kind for kind in KINDS if kind != KIND_OF[noun]], 3)]
    random.shuffle(kinds)
    endings = [f"it was {kind} ." for kind in kinds]
    return {"text": f"{name} {verb} the {noun} {time} .", "choices": endings, "label": kinds.index(KIND_OF[noun])}


GENERATORS: dict[str, Callable[[Random], Row]] = {
    "sentiment": _sentiment,
    "inference": _inference,
    "similarity": _similarity,
    "topics": _topics,
    "entities": _entities,
    "questions": _question,
    "open-questions": _open_question,
    "choices": _choice,
}
