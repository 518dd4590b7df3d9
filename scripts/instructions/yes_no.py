"""Yes or no: questions about facts, half of them answered with Yes and half with No."""

from __future__ import annotations

from random import Random

from .document import Deck, Document, capitalised, lines
from .facts import CATEGORIES

TASK = "yes or no"
HALF = 125

FRAMES = (
    "{q}",
    "{q}",
    "{q}",
    "{q}",
    "{q} Answer yes or no.",
    "{q} Yes or no?",
    "Yes or no: {q}",
    "I have a question. {q}",
    "{q} I am not sure.",
    "Please tell me: {q}",
    "Someone at work asked: {q}",
    "{q} A plain yes or no will do.",
    "Let me know, {l}",
    "{q} My brother and I disagree.",
)
"""`{q}` is the question and `{l}` the question from a small letter on."""

YES = """
Can bats fly?=bats are the only mammals that truly fly
Is a whale a mammal?=whales breathe air and feed milk to their young
Do penguins lay eggs?=penguins lay eggs, as all birds do
Is water made of hydrogen and oxygen?=each molecule has two hydrogen atoms and one oxygen atom
Does light travel faster than sound?=that is why lightning is seen before thunder is heard
Is the Earth round?=it is nearly a sphere, slightly flattened at the poles
Are tomatoes fruits in the botanical sense?=they grow from the flower and hold the seeds
Is 17 a prime number?=it can be divided only by 1 and itself
Does Antarctica have penguins?=several species breed there
Is Spanish spoken in Mexico?=it is the main language there
Can dolphins drown?=they breathe air and must come to the surface
Is glass recyclable?=it can be melted and formed again many times
Are spiders arachnids?=they have eight legs and belong to that class
Is mercury poisonous?=its vapour and many of its compounds are toxic
Does Egypt lie partly in Asia?=the Sinai Peninsula belongs to Asia
Is the Pacific larger than the Atlantic?=it is about twice as large
Was Cleopatra a queen of Egypt?=she was its last ruler of the Ptolemaic line
Did the Romans build aqueducts?=they used them to bring water to their cities
Is chess played on 64 squares?=the board has eight rows of eight squares
Do bees make honey?=they make it from nectar
Is Venus closer to the Sun than the Earth?=it is the second planet from the Sun
Are diamonds made of carbon?=their carbon atoms form a rigid lattice
Is a tuba a brass instrument?=the player's lips make the air vibrate
Does a leap year have 366 days?=the extra day is 29 February
Can cats see well in dim light?=they need far less light than people do
Is sign language a real language?=sign languages have a grammar of their own
Is bread usually baked from flour?=flour, water and yeast are common ingredients
Do sharks have skeletons of cartilage?=they have no true bones
Is the liver able to regrow?=it can grow back after part of it is removed
Is a square also a rectangle?=all four of its angles are right angles
Do trees take in carbon dioxide?=they use it in photosynthesis
Was the printing press known before 1500?=Gutenberg printed with movable type around 1450
Is Iceland in Europe?=it is a Nordic island country
Can sound travel through water?=it even travels faster there than in air
Is Java a programming language?=it came out in 1995
Do snakes shed their skin?=they shed it as they grow
Is helium lighter than air?=balloons filled with it rise
Is the Moon smaller than the Earth?=its diameter is about a quarter of the Earth's
Do onions grow underground?=the bulb forms in or on the soil
Are there seven days in a week?=they run from Monday to Sunday
Is the violin played with a bow?=it can also be plucked
Does salt dissolve in water?=it splits into ions
Is Lake Baikal in Russia?=it lies in southern Siberia
Is rice a cereal?=it is the seed of a grass
Do ostriches have wings?=they have wings but cannot fly
Is the Amazon rainforest in South America?=most of it is in Brazil
Did dinosaurs live before humans?=they died out about 66 million years ago, apart from birds
Is zero an even number?=it is divisible by two
Does Wi-Fi use radio waves?=it mostly uses bands near 2.4 and 5 GHz
Is a haiku a short poem?=it is a Japanese form of three lines
"""

NO = """
Can ostriches fly?=they are too heavy and run instead
Is a spider an insect?=it is an arachnid
Do fish have lungs like ours?=most fish breathe with gills
Is the Sun a planet?=it is a star
Are bats blind?=all bats can see, and many also use echoes
Is 21 a prime number?=it is 3 times 7
Do polar bears live in Antarctica?=they live in the Arctic
Is Sydney the capital city of New Zealand?=it is a city in Australia; the capital is Wellington
Does sound travel through empty space?=it needs a medium such as air
Is gold lighter than aluminium?=gold is about seven times as dense
Was Napoleon born in Paris?=he was born in Ajaccio on Corsica
Do mushrooms make food by photosynthesis?=they are fungi and feed on organic matter
Is the Great Wall of China in Japan?=it is in China
Is Portuguese the main language of Argentina?=people there mostly speak Spanish
Are whales fish?=they are mammals
Does the Sun move around the Earth?=the Earth moves around the Sun
Is a koala a bear?=it is a marsupial
Did Shakespeare write War and Peace?=Leo Tolstoy wrote it
Is Africa smaller than Europe?=Africa is about three times as large
Is the North Pole on land?=it lies in the Arctic Ocean, covered by sea ice
Do spiders have six legs?=they have eight
Is honey made by butterflies?=bees make it
Does a triangle have four sides?=it has three
Is the cello smaller than the violin?=it is much larger
Can humans breathe under water without equipment?=human lungs cannot take oxygen from water
Is Mars hotter than Venus?=Venus has the hottest surface of all planets
Was the telephone invented in the Middle Ages?=it dates from the 1870s
Do all birds migrate?=many stay in one place all year
Is the Nile in Europe?=it runs through north-eastern Africa
Is a tomato a mineral?=it is a fruit
Are there 30 hours in a day?=there are 24
Does February ever have 30 days?=it has 28 or 29
Is plastic made from clay?=most plastics are made from oil or gas
Is HTML a video format?=it is a markup language for web pages
Did people live together with Tyrannosaurus?=the two are separated by about 66 million years
Is 100 less than 10?=it is ten times as much
Is the Moon a source of its own light?=it reflects the light of the Sun
Is tea made from cocoa beans?=it is made from the leaves of the tea plant
Are penguins found at the North Pole?=wild penguins live almost only in the southern hemisphere
Is the piano a wind instrument?=hammers strike its strings
Do cows lay eggs?=they give birth to live calves
Is iron a gas at room temperature?=it is a solid metal
Is Switzerland a member of the European Union?=it is outside the union
Was the Eiffel Tower built in Rome?=it stands in Paris
Can plants grow without any light for years?=nearly all of them need light to live
Is Canada south of the equator?=it lies in the north of North America
Does a violin have twelve strings?=it has four
Is a gigabyte smaller than a kilobyte?=it is about a million times as large
Is the whale shark a mammal?=it is the largest living fish
Is Mount Everest in the Andes?=it is in the Himalayas
"""

FORMS = ("{y}.", "{y}, {t}.", "{y}. {T}.", "{y}, {t}.", "{y}: {t}.")


def documents(rng: Random) -> list[Document]:
    """All questions of `YES` and `NO`, and claims from the fact tables up to half of the documents each."""
    frames, forms, found = Deck(rng, FRAMES), Deck(rng, FORMS), []

    def add(word: str, question: str, reason: str, group: str) -> None:
        user = frames.deal().format(q=question, l=question[0].lower() + question[1:])
        answer = forms.deal().format(y=word, t=reason, T=capitalised(reason))
        found.append(Document(user=user, answer=answer, group=group))

    rows = [(category, *fact) for category in CATEGORIES for fact in category.facts()]
    rng.shuffle(rows)
    written = {"Yes": lines(YES), "No": lines(NO)}
    for word, table in written.items():
        for question, reason in (line.split("=") for line in table):
            add(word, question, reason, f"fact: {question}")
        for _ in range(HALF - len(table)):
            category, subject, answer, also = rows.pop()
            others = sorted({other for _, other, _ in category.facts()} - {answer, *also})
            named = answer if word == "Yes" else rng.choice(others)
            question = capitalised(rng.choice(category.claims).format(s=subject, a=named))
            add(word, question, category.truth.format(s=subject, a=answer), f"{category.name}: {subject}")
    return found
