"""JSON: the facts of a sentence as a JSON object, or its things as a JSON array."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from .document import FRAMES, LAYOUTS, Deck, Document, asked, with_input

TASK = "json"
PER_SCHEMA = 16

STEMS = (
    "turn this sentence into a JSON object with the keys {k}",
    "extract {k} as JSON",
    "give me the data as JSON, keys: {k}",
    "parse this into JSON with the fields {k}",
    "return a JSON object holding {k}",
    "convert this note to JSON (fields {k})",
    "What is this as JSON with {k}?",
    "pull out {k} and answer in JSON",
    "represent this in JSON, using {k} as keys",
    "fill a JSON record with {k}",
    "output JSON only; the keys are {k}",
    "read off {k} and format them as JSON",
)

ARRAY_STEMS = (
    "collect the {k} in a JSON array",
    "return the {k} as a JSON list of strings",
    "give me all the {k} as a JSON array",
    "extract every one of the {k} and put them into a JSON list",
    "Which {k} are mentioned here, as a JSON array?",
    "turn the {k} into a JSON array of strings",
    "find the {k} and answer with a JSON list",
    "output the {k} as JSON",
)

NAMES = (
    "Amina Bruno Clara Dmitri Elena Farid Greta Hugo Ines Jonas Keiko Liam Marta Nils Olga Pedro Rosa Samir Tara Viktor"
).split()
CITIES = "Lisbon Graz Osaka Bristol Lyon Seville Turin Bergen Ghent Porto Riga Cork Leipzig Tampere".split()
JOBS = "baker nurse pilot carpenter teacher librarian plumber architect gardener chemist".split()
GOODS = "lamp kettle rucksack desk blanket teapot mirror toaster umbrella ladder".split()
COLOURS = "red green blue white black yellow grey brown".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EVENTS = ["concert", "lecture", "workshop", "flea market", "book fair", "film night"]
ANIMALS = "dog cat parrot rabbit pony hamster tortoise".split()
PETS = "Bella Max Luna Oscar Coco Rex Molly Toby Nala Felix".split()
FRUIT = "apples pears plums cherries figs grapes melons apricots quinces".split()
SPORTS = "tennis rowing judo fencing chess archery hockey golf".split()
WEATHER = "sunny rainy cloudy windy foggy snowy".split()
BOOKS = [
    "The Salt Road",
    "Winter Harbour",
    "A Clock for Nora",
    "The Glass Orchard",
    "Seven Bridges",
    "North of the Mill",
]

Values = dict[str, object]


def person(rng: Random) -> tuple[str, Values]:
    name, age, city = rng.choice(NAMES), rng.randint(19, 78), rng.choice(CITIES)
    text = rng.choice(
        (
            "{0} is {1} years old and lives in {2}.",
            "Our new member {0}, aged {1}, comes from {2}.",
            "In {2} I met {0}, who is {1}.",
        )
    )
    return text.format(name, age, city), {"name": name, "age": age, "city": city}


def job(rng: Random) -> tuple[str, Values]:
    name, work, years = rng.choice(NAMES), rng.choice(JOBS), rng.randint(2, 30)
    text = rng.choice(
        ("{0} has worked as a {1} for {2} years.", "For {2} years now, {0} has earned a living as a {1}.")
    )
    return text.format(name, work, years).replace("a architect", "an architect"), {
        "name": name,
        "job": work,
        "years": years,
    }


def product(rng: Random) -> tuple[str, Values]:
    item, colour, price = rng.choice(GOODS), rng.choice(COLOURS), rng.randint(8, 140)
    text = rng.choice(
        (
            "The {1} {0} costs {2} euros.",
            "We sell one {0} in {1} at a price of {2} euros.",
            "For {2} euros you get a {1} {0}.",
        )
    )
    return text.format(item, colour, price), {"item": item, "colour": colour, "price": price}


def event(rng: Random) -> tuple[str, Values]:
    kind, day, city = rng.choice(EVENTS), f"{rng.randint(1, 28)} {rng.choice(MONTHS)}", rng.choice(CITIES)
    text = rng.choice(
        ("The {0} takes place in {2} on {1}.", "On {1} there will be a {0} in {2}.", "Come to {2} for the {0} on {1}!")
    )
    return text.format(kind, day, city), {"event": kind, "date": day, "place": city}


def train(rng: Random) -> tuple[str, Values]:
    (start, end), time, platform = (
        rng.sample(CITIES, 2),
        f"{rng.randint(6, 22)}:{rng.randint(10, 59)}",
        rng.randint(1, 14),
    )
    text = rng.choice(
        (
            "The {2} train from {0} to {1} leaves from platform {3}.",
            "At {2} a train to {1} departs from {0}, platform {3}.",
        )
    )
    return text.format(start, end, time, platform), {"from": start, "to": end, "time": time, "platform": platform}


def weather(rng: Random) -> tuple[str, Values]:
    city, sky, degrees = rng.choice(CITIES), rng.choice(WEATHER), rng.randint(-8, 33)
    text = rng.choice(
        (
            "It is {1} in {0} at {2} degrees.",
            "{0} reports {1} weather and {2} °C.",
            "Today {0} is {1}, with {2} degrees.",
        )
    )
    return text.format(city, sky, degrees), {"city": city, "weather": sky, "temperature": degrees}


def pet(rng: Random) -> tuple[str, Values]:
    owner, animal, name = rng.choice(NAMES), rng.choice(ANIMALS), rng.choice(PETS)
    text = rng.choice(
        ("{0} has a {1} called {2}.", "{2} is a {1} and belongs to {0}.", "The {1} of {0} answers to the name {2}.")
    )
    return text.format(owner, animal, name), {"owner": owner, "animal": animal, "name": name}


def book(rng: Random) -> tuple[str, Values]:
    title, author, pages = rng.choice(BOOKS), rng.choice(NAMES), rng.randint(90, 620)
    text = rng.choice(("{1}'s novel '{0}' has {2} pages.", "I finished '{0}' by {1}, all {2} pages of it."))
    return text.format(title, author, pages), {"title": title, "author": author, "pages": pages}


def order(rng: Random) -> tuple[str, Values]:
    number, name, item, count = rng.randint(1000, 9999), rng.choice(NAMES), rng.choice(GOODS), rng.randint(2, 9)
    text = rng.choice(
        ("Order {0}: the {3}, {2} times, for {1}.", "{1} has ordered the {3} {2} times, under number {0}.")
    )
    return text.format(number, name, count, item), {"order": number, "customer": name, "item": item, "quantity": count}


def match(rng: Random) -> tuple[str, Values]:
    (home, away), goals = rng.sample(CITIES, 2), (rng.randint(0, 5), rng.randint(0, 5))
    text = rng.choice(("{0} played {1} at home and the score was {2} to {3}.", "{0} against {1} ended {2}:{3}."))
    return text.format(home, away, *goals), {"home": home, "away": away, "home_goals": goals[0], "away_goals": goals[1]}


def lesson(rng: Random) -> tuple[str, Values]:
    sport, day, hour, open_ = rng.choice(SPORTS), rng.choice(DAYS), rng.randint(9, 20), rng.random() < 0.5
    text = f"The {sport} class is on {day} at {hour}:00 and {'still has free places' if open_ else 'is full'}."
    return text, {"class": sport, "day": day, "hour": hour, "places_left": open_}


def flat(rng: Random) -> tuple[str, Values]:
    rooms, size, rent, city = rng.randint(2, 5), rng.randint(35, 120), 10 * rng.randint(45, 160), rng.choice(CITIES)
    text = rng.choice(
        (
            "To let in {3}: {0} rooms, {1} square metres, {2} euros a month.",
            "The flat in {3} has {0} rooms on {1} square metres; the rent is {2} euros.",
        )
    )
    return text.format(rooms, size, rent, city), {"city": city, "rooms": rooms, "square_metres": size, "rent": rent}


OBJECTS: tuple[Callable[[Random], tuple[str, Values]], ...] = (
    person, job, product, event, train, weather, pet, book, order, match, lesson, flat
)  # fmt: skip

ARRAYS = (
    (
        "names",
        NAMES,
        ("{0} were at the table when I came in.", "The prizes went to {0}.", "This year {0} share an office."),
    ),
    ("cities", CITIES, ("Our tour goes to {0}.", "The firm has branches in {0}.", "She has lived in {0} so far.")),
    (
        "colours",
        COLOURS,
        ("The flag has stripes in {0}.", "You can order the chair in {0}.", "I need paint in {0} for the fence."),
    ),
    (
        "fruits",
        FRUIT,
        ("On the market they had {0} today.", "Put {0} into the salad.", "Grandma grows {0} behind her house."),
    ),
    ("days", DAYS, ("The surgery is open on {0}.", "Rehearsals are on {0} this month.")),
)


def documents(rng: Random) -> list[Document]:
    """`PER_SCHEMA` objects of each kind, and twelve arrays of each kind of thing."""
    stems, array_stems, found = Deck(rng, STEMS), Deck(rng, ARRAY_STEMS), []
    frames, layouts, indents = Deck(rng, FRAMES), Deck(rng, LAYOUTS), Deck(rng, (None, None, 2))
    texts: set[str] = set()

    def add(stem: str, text: str, value: object) -> None:
        texts.add(text)
        user = with_input(asked(stem, frames.deal()), text, layouts.deal())
        answer = json.dumps(value, ensure_ascii=False, indent=indents.deal())
        found.append(Document(user=user, answer=answer, group=f"json: {text}"))

    for schema in OBJECTS:
        for _ in range(PER_SCHEMA):
            text, values = schema(rng)
            while text in texts:
                text, values = schema(rng)
            *keys, last = values
            add(stems.deal().format(k=f"{', '.join(keys)} and {last}"), text, values)
    for kind, pool, sentences in ARRAYS:
        wordings = Deck(rng, sentences)
        for _ in range(12):
            chosen = rng.sample(pool, rng.randint(2, 4))
            *first, last = chosen
            text = wordings.deal().format(f"{', '.join(first)} and {last}")
            if text not in texts:
                add(array_stems.deal().format(k=kind), text, chosen)
    return found
