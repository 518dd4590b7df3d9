"""Everyday knowledge: colours, work, weekdays, food and animal sounds."""

from .table import Concept, Fact, table, words

FAMILY = "everyday"

COLOURS = """
a ripe banana=yellow/brown; a lemon=yellow; an egg yolk=yellow/orange; a canary=yellow; a sunflower petal=yellow;
fresh snow=white; milk=white; table salt=white; a swan in Europe=white; cotton wool=white; a polar bear=white;
coal=black; a raven=black; tar=black; a car tyre=black; fresh blood=red; a ripe strawberry=red; a ripe tomato=red;
a fire engine in London=red; a ladybird's back=red; a boiled lobster=red/orange/pink; grass=green/yellow/brown;
a cucumber=green; spinach=green; an emerald=green; a lime=green/yellow; a pea=green/yellow; parsley=green;
a clear daytime sky=blue; a sapphire=blue/purple/pink/yellow; a blueberry=blue/purple; the deep ocean=blue/black/green;
a carrot=orange; a ripe pumpkin=orange/green; a tangerine=orange; a basketball=orange/brown; milk chocolate=brown;
a coffee bean=brown/black/green; a chestnut=brown/red; tree bark=brown/grey/black/white; an aubergine=purple/black;
a lavender flower=purple/blue; an amethyst=purple; a flamingo=pink/orange/red; a piglet=pink/white;
bubble gum=pink/blue; an elephant=grey/brown; ash=grey/white/black; a dolphin=grey/blue/white/pink; concrete=grey/white;
a rain cloud=grey/black/white; whipped cream=white; soot=black; mustard=yellow/brown; a kiwi fruit's flesh=green/yellow;
a raspberry=red/pink/purple/black; cocoa powder=brown
"""

WORKPLACES = """
teacher=a school/a university/a library;
nurse=a hospital/a school/a prison/an army base/a factory/a university/a theatre;
librarian=a library/a university/a school/a museum; farmer=a farm; baker=a bakery/a supermarket/a restaurant/a hotel;
judge=a courtroom; pilot=a cockpit; astronomer=an observatory/a university; miner=a mine/a quarry; sailor=a ship;
priest=a church/a monastery; rabbi=a synagogue; imam=a mosque; monk=a monastery/a church/a brewery;
firefighter=a fire station; bank teller=a bank;
chemist=a laboratory/a pharmacy/a factory/a university/a hospital/a school;
professor=a university/a laboratory/a school/a library; waiter=a restaurant/a hotel/a bar/a coffee shop/a train/a ship;
barista=a coffee shop/a bar/a restaurant/a hotel; bartender=a bar/a hotel/a restaurant/a ship;
hotel receptionist=a hotel; zookeeper=a zoo; curator=a museum; stage actor=a theatre; lumberjack=a forest;
gardener=a garden/a zoo; hairdresser=a hair salon; butcher=a butcher's shop/a supermarket;
cashier=a supermarket/a bakery/a bank/a restaurant/a pharmacy/a coffee shop/a butcher's shop/a flower shop;
postal clerk=a post office; prison guard=a prison; lifeguard=a swimming pool/a ship; car mechanic=a garage;
potter=a pottery/a studio; sculptor=a studio/a quarry; brewer=a brewery; winemaker=a winery/a farm; blacksmith=a forge;
assembly worker=a factory; quarryman=a quarry/a mine; astronaut=a space station/a spacecraft; train driver=a train;
ambassador=an embassy; soldier=an army base/a hospital/a forest; beekeeper=an apiary/a farm/a garden;
crane operator=a building site; florist=a flower shop/a supermarket/a garden;
pharmacist=a pharmacy/a hospital/a laboratory; jockey=a racecourse; bus driver=a bus
"""

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SHIFTS = {
    "one day after": 1,
    "two days after": 2,
    "three days after": 3,
    "one day before": -1,
    "two days before": -2,
    "three days before": -3,
    "exactly one week after": 7,
}

INGREDIENTS = """
bread=flour; hummus=chickpeas/sesame seeds; guacamole=avocados; tofu=soybeans; an omelette=eggs; ketchup=tomatoes;
sauerkraut=cabbage; risotto=rice; French fries=potatoes; popcorn=corn; white wine=grapes; cider=apples; mead=honey;
marzipan=almonds/sugar; tahini=sesame seeds; yogurt=milk/cream; butter=cream/milk; pesto=basil; borscht=beetroot;
porridge=oats/milk; falafel=chickpeas; raisins=grapes; prunes=plums; perry=pears; dal=lentils;
a Swiss fondue=cheese/milk; caramel=sugar/milk; calamari=squid; gravlax=salmon; clam chowder=clams/milk;
tempeh=soybeans; ham=pork; Wiener schnitzel=veal; tequila=agave; tapioca=cassava; croutons=bread/flour;
a beef burger=minced beef; maple syrup=maple sap; chocolate=cocoa beans/sugar; meringue=egg whites/eggs/sugar;
cornbread=cornmeal/corn/flour; moussaka=aubergines/minced beef; gazpacho=tomatoes; coleslaw=cabbage;
rum=sugar cane/sugar; caviar=fish eggs; peanut butter=peanuts; mozzarella=milk/cheese/cream; paella=rice;
mashed potato=potatoes/milk; pickled gherkins=cucumbers; malt whisky=malted barley
"""

SOUNDS = """
dog=barking; cat=meowing; cow=mooing; horse=neighing; sheep=bleating; goat=bleating; pig=grunting; duck=quacking;
hen=clucking; rooster=crowing; lion=roaring; tiger=roaring; wolf=howling; snake=hissing; bee=buzzing; wasp=buzzing;
housefly=buzzing; frog=croaking; toad=croaking; owl=hooting; donkey=braying; mouse=squeaking; crow=cawing;
pigeon=cooing; dove=cooing; elephant=trumpeting; turkey=gobbling; goose=honking; cricket=chirping; bull=bellowing;
hyena=laughing; chick=cheeping; kitten=mewing; mule=braying; lamb=bleating; rook=cawing; mosquito=whining;
horsefly=buzzing; bumblebee=buzzing; rattlesnake=rattling; stork=clattering; pony=neighing
"""

NEAR_SOUNDS = (
    ("barking", "howling", "whining", "yapping"),
    ("meowing", "mewing", "hissing", "whining"),
    ("mooing", "bellowing"),
    ("roaring", "bellowing"),
    ("quacking", "honking", "hissing", "gobbling", "clucking", "cheeping", "crowing", "chirping", "cooing"),
    ("buzzing", "whining", "chirping"),
    ("squeaking", "cheeping", "chirping"),
    ("hissing", "rattling"),
    ("cawing", "croaking", "crowing", "laughing"),
    ("hooting", "cooing", "hissing"),
    ("grunting", "braying", "squeaking", "barking", "bellowing"),
    ("croaking", "chirping"),
    ("clattering", "hissing"),
    ("trumpeting", "roaring", "bellowing"),
    ("neighing", "braying"),
    ("bleating", "mewing"),
    ("howling", "whining", "hooting", "laughing"),
)


def sounds() -> tuple[Fact, ...]:
    """Animal sounds; words that a listener could also use for the animal are barred as foils."""
    facts = []
    for fact in table(SOUNDS):
        near = {word for words in NEAR_SOUNDS if fact.target in words for word in words}
        facts.append(Fact(subject=fact.subject, target=fact.target, also=tuple(sorted(near - {fact.target}))))
    return tuple(facts)


CONCEPTS = (
    Concept(
        family=FAMILY,
        name="colour of a thing",
        templates=(
            "The usual colour of {0} is",
            "In a colour photograph, {0} looks",
            "A painter who shows {0} paints it",
            "Asked for the colour of {0}, most people say",
        ),
        facts=table(COLOURS),
    ),
    Concept(
        family=FAMILY,
        name="workplace",
        templates=(
            "The usual workplace of {a} is",
            "The place where {a} works is",
            "For {a}, the place of work is",
            "A list of jobs and workplaces matches {a} with",
        ),
        facts=table(WORKPLACES),
    ),
    Concept(
        family=FAMILY,
        name="weekday",
        templates=(
            "The weekday that comes {1} {0} is",
            "An appointment {1} {0} takes place on a",
            "If you count to the day {1} {0}, you reach",
            "In a calendar, the day {1} {0} is a",
        ),
        facts=tuple(
            Fact(subject=f"{day}|{phrase}", target=DAYS[(index + shift) % 7])
            for index, day in enumerate(DAYS)
            for phrase, shift in SHIFTS.items()
        ),
    ),
    Concept(
        family=FAMILY,
        name="main ingredient",
        templates=(
            "The main ingredient of {0} is",
            "What you need above all to make {0} is",
            "{C} is traditionally made from",
            "The basis of {0} is",
        ),
        facts=table(INGREDIENTS),
    ),
    Concept(
        family=FAMILY,
        name="animal sound",
        templates=(
            "The typical sound of {a} is called",
            "When {a} makes itself heard, we call it",
            "On a recording of {a}, you hear",
            "The English word for the noise of {a} is",
        ),
        facts=sounds(),
    ),
)
