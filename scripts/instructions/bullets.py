"""Bulleted lists: three to five things, tips or examples, in no particular order."""

from __future__ import annotations

from random import Random

from .document import FRAMES, NUMBER_WORDS, Deck, Document, asked, capitalised, lines

TASK = "bulleted list"
PER_TOPIC = 3

STEMS = (
    "list {n} {t}",
    "name {n} {t}",
    "give me {n} {t}",
    "write a bulleted list of {n} {t}",
    "make a list with {n} {t}",
    "suggest {n} {t} as bullet points",
    "put {n} {t} into bullet points",
    "think of {n} {t}",
    "What are {n} {t}?",
    "What are some {t}?",
    "Which {t} come to mind?",
    "jot down {n} {t}",
    "collect {n} {t} for a poster",
    "show me {n} {t}, one per line",
    "come up with {n} {t}",
    "What would you put on a list of {t}?",
)

TOPICS = """
citrus fruits: lemon; orange; lime; grapefruit; mandarin; pomelo
root vegetables: carrot; beetroot; turnip; radish; parsnip; swede
kitchen herbs: basil; parsley; thyme; rosemary; oregano; chives
string instruments: violin; cello; guitar; harp; double bass; lute
brass instruments: trumpet; trombone; tuba; French horn; cornet; euphonium
percussion instruments: timpani; snare drum; cymbals; triangle; xylophone; tambourine
breeds of dog: Labrador; poodle; beagle; dachshund; border collie; boxer
birds that cannot fly: ostrich; emu; kiwi; penguin; rhea; cassowary
birds of prey: eagle; falcon; hawk; kite; buzzard; osprey
marsupials: kangaroo; koala; wombat; wallaby; opossum; Tasmanian devil
reptiles: lizard; tortoise; crocodile; snake; chameleon; gecko
insects: ant; beetle; butterfly; dragonfly; grasshopper; ladybird
freshwater fish: trout; pike; perch; carp; catfish; bream
animals that hibernate: hedgehog; dormouse; marmot; bat; ground squirrel; box turtle
deciduous trees: oak; beech; maple; birch; ash; elm
evergreen trees: pine; spruce; fir; holly; yew; cedar
spring flowers: tulip; daffodil; crocus; hyacinth; snowdrop; primrose
team sports: football; basketball; volleyball; hockey; rugby; cricket
winter sports: skiing; snowboarding; ice hockey; curling; biathlon; figure skating
martial arts: judo; karate; taekwondo; aikido; kendo; kung fu
board games: chess; draughts; backgammon; Monopoly; Scrabble; Go
programming languages: Python; Java; Rust; Ruby; Go; Haskell
operating systems: Linux; Windows; macOS; Android; iOS; FreeBSD
sorting algorithms: merge sort; quicksort; heapsort; insertion sort; bubble sort; selection sort
noble gases: helium; neon; argon; krypton; xenon; radon
metals that are solid at room temperature: iron; copper; aluminium; zinc; silver; tin
kinds of cloud: cumulus; stratus; cirrus; nimbostratus; cumulonimbus; altocumulus
rocks: granite; basalt; limestone; slate; marble; sandstone
gemstones: ruby; sapphire; emerald; topaz; opal; amethyst
countries in South America: Brazil; Peru; Chile; Bolivia; Ecuador; Uruguay
countries in Africa: Kenya; Ghana; Egypt; Morocco; Zambia; Senegal
cities in Italy: Rome; Milan; Naples; Turin; Venice; Bologna
rivers in Europe: Danube; Rhine; Loire; Elbe; Volga; Tagus
US states on the Pacific: California; Oregon; Washington; Alaska; Hawaii
deserts: Sahara; Gobi; Atacama; Kalahari; Namib; Mojave
islands in the Mediterranean: Sicily; Crete; Malta; Corsica; Cyprus; Ibiza
plays by Shakespeare: Hamlet; Macbeth; Othello; King Lear; The Tempest; Twelfth Night
novels by Charles Dickens: Oliver Twist; Bleak House; Hard Times; Little Dorrit; David Copperfield; Dombey and Son
Impressionist painters: Claude Monet; Edgar Degas; Berthe Morisot; Camille Pissarro; Alfred Sisley; Mary Cassatt
Baroque composers: Bach; Handel; Vivaldi; Purcell; Telemann; Corelli
dances: waltz; tango; salsa; foxtrot; polka; flamenco
types of pasta: spaghetti; penne; farfalle; fusilli; linguine; rigatoni
cheeses: Brie; Cheddar; Gouda; Manchego; Feta; Gruyère
hot drinks: tea; coffee; cocoa; mulled wine; chai; hot lemon
breads from around the world: baguette; naan; pita; ciabatta; rye bread; focaccia
baking ingredients: flour; sugar; butter; eggs; yeast; baking powder
hand tools: hammer; screwdriver; pliers; saw; chisel; spanner
kitchen appliances: oven; kettle; toaster; blender; dishwasher; microwave
pieces of furniture: sofa; wardrobe; bookcase; armchair; desk; chest of drawers
means of public transport: bus; tram; underground; train; ferry; trolleybus
jobs in a hospital: nurse; surgeon; porter; midwife; radiographer; pharmacist
school subjects: history; biology; geography; music; mathematics; art
bones of the human body: femur; skull; ribs; humerus; tibia; collarbone
renewable sources of energy: solar power; wind power; hydropower; geothermal heat; tidal power; biomass
materials that conduct electricity: copper; gold; graphite; salt water; aluminium; steel
items for a first-aid kit: plasters; gauze; antiseptic; tweezers; scissors; bandages
things to pack for a camping trip: tent; sleeping bag; torch; matches; water bottle; rain jacket
ways to fall asleep more easily: Keep the room dark; Put the phone away; Go to bed at a fixed time;
  Avoid coffee after noon; Take a warm bath
tips for a job interview: Read about the company; Arrive ten minutes early; Prepare two questions;
  Give short examples; Bring a copy of your CV
reasons to ride a bicycle: It costs little; It keeps you fit; It makes no exhaust gas; Parking is easy; It is quiet
ways to use less electricity: Switch off lights; Wash at low temperatures; Unplug chargers; Use LED bulbs;
  Dry laundry on a line
habits of good listeners: They let others finish; They ask open questions; They look at the speaker;
  They do not judge at once; They sum up what they heard
tips for growing tomatoes: Choose a sunny place; Water the soil, not the leaves; Tie the stems to a stake;
  Pinch out side shoots; Feed every two weeks
ways to remember names: Repeat the name aloud; Link it to a picture; Use it when you say goodbye; Write it down;
  Think of someone with the same name
reasons to learn a musical instrument: It trains the memory; It is fun in company; It teaches patience;
  It sharpens the ear; It helps to relax
rules for safe passwords: Make them long; Use a different one for each site; Avoid names and dates;
  Keep them in a password manager; Never send them by mail
ideas for a rainy day: Bake a cake; Read a novel; Play cards; Visit a museum; Sort old photographs
tips for public speaking: Practise aloud; Speak slowly; Look at the audience; Pause between points; Start with a story
ways to cut food waste: Plan meals ahead; Freeze leftovers; Check the fridge before shopping; Store vegetables cool;
  Use stale bread for crumbs
signs of a healthy lawn: Even green colour; Few weeds; Dense growth; No bare patches; Earthworms in the soil
benefits of reading every day: It widens vocabulary; It lowers stress; It builds knowledge; It trains concentration;
  It gives topics for conversation
duties of a treasurer: Keeping the accounts; Paying bills; Drawing up the budget; Reporting to members;
  Collecting fees
parts of a bicycle: saddle; pedals; chain; handlebars; spokes; brakes
parts of a flower: petal; stamen; pistil; sepal; stem; ovary
parts of a letter: date; greeting; body; closing; signature; address
features of a good map: A clear legend; A scale; A north arrow; Readable labels; Fitting colours
causes of the decline of bees: Pesticides; Loss of meadows; Parasitic mites; Disease; Climate change
advantages of trains over cars: You can read on the way; They need less energy per person; There are fewer accidents;
  No parking is needed; They avoid traffic jams
topics for small talk: the weather; holidays; films; food; sport; hobbies
questions to ask a landlord: Is heating included?; Are pets allowed?; How long is the notice period?;
  Who does repairs?; How high is the deposit?
ways to thank a colleague: Write a card; Bring a cake; Praise the work in a meeting; Invite them to lunch;
  Return the favour
safety rules for a laboratory: Wear goggles; Tie back long hair; Do not eat or drink; Label all bottles;
  Know where the exits are
uses for old jars: Storing buttons; Holding candles; Keeping spices; Starting seedlings; Carrying salad dressing
hobbies that cost little: walking; drawing; birdwatching; singing in a choir; reading; chess
"""
"""`topic: item; item; …`, the topic in the plural."""


def documents(rng: Random) -> list[Document]:
    """`PER_TOPIC` lists a topic, each with its own choice of items."""
    stems, frames, found = Deck(rng, STEMS), Deck(rng, FRAMES), []
    for topic, items in (line.split(": ", 1) for line in lines(TOPICS)):
        sizes = rng.sample((3, 4, 5), PER_TOPIC)
        for size in sizes:
            stem = stems.deal().format(n=NUMBER_WORDS[size], t=topic)
            chosen = rng.sample(items.split("; "), size)
            answer = "\n".join(f"- {capitalised(item)}" for item in chosen)
            found.append(Document(user=asked(stem, frames.deal()), answer=answer, group=f"list: {topic}"))
    return found
