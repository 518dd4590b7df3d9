"""Numbered lists: steps of a procedure, or the first few of a series in a fixed order."""

from __future__ import annotations

from random import Random

from .document import FRAMES, NUMBER_WORDS, Deck, Document, asked, lines

TASK = "numbered list"

STEP_STEMS = (
    "explain how to {p}, step by step",
    "list the steps to {p}",
    "give numbered instructions to {p}",
    "write a short guide on how to {p}",
    "walk me through how to {p}",
    "tell me in order what I must do to {p}",
    "describe the procedure to {p}",
    "write down, as a numbered list, how to {p}",
    "How do I {p}?",
    "What are the steps to {p}?",
    "What do I do first, second and so on to {p}?",
    "In what order should a beginner go about it to {p}?",
    "teach me to {p} in a few steps",
    "number the steps it takes to {p}",
)

RANK_STEMS = (
    "list {r}",
    "name {r}",
    "give me {r} in order",
    "What are {r}?",
    "write a ranked list: {r}",
    "number these for me: {r}",
    "recite {r} in the right order",
    "put {r} into a numbered list",
    "Which are {r}?",
    "show {r}, numbered",
)

STEPS = """
make a cup of tea: Boil fresh water; ?Warm the pot; Pour the water over the tea; Let it steep for three minutes;
  Take out the leaves
boil an egg: Bring water to the boil; Lower the egg in with a spoon; Cook it for six to ten minutes;
  ?Cool it in cold water
cook rice in a pot: ?Rinse the rice; Add twice as much water; Bring it to the boil; Cover and simmer until dry
bake a potato: Heat the oven to 200 °C; ?Prick the skin with a fork; Bake for about an hour;
  Cut it open and add butter
fry pancakes: Whisk flour, milk and eggs; ?Let the batter rest; Heat butter in a pan; Fry each side until golden
make a vinaigrette: Stir salt into vinegar; ?Add a little mustard; Whisk in oil drop by drop; Taste and adjust
brew filter coffee: Put a filter in the holder; Add ground coffee; Pour on hot water slowly; ?Discard the filter
make toast: Slice the bread; Put it in the toaster; Wait until it is brown; ?Spread butter on it
cook pasta: Boil plenty of salted water; Add the pasta; ?Stir now and then; Drain it when firm to the bite
change a light bulb: Switch off the lamp; Let the bulb cool; Unscrew it; Screw in the new one; ?Test it
change a flat bicycle tube: Take off the wheel; Lever the tyre off the rim; Swap the tube; Put the tyre back;
  ?Pump it up hard
jump-start a car: Park the cars close together; Connect red to both plus poles;
  Connect black from the helper's minus pole to bare metal; Start the helper's engine; Start your own
check the oil in a car: Park on level ground; Pull out the dipstick and wipe it; Push it in and pull it out again;
  Read the level between the marks
sew on a button: Thread the needle and knot the end; Hold the button in place;
  Stitch through the holes several times; ?Wind thread under the button; Knot it at the back
iron a shirt: ?Dampen the cloth; Start with the collar; Go on with cuffs and sleeves; Finish with front and back
remove a splinter: Wash your hands; Clean the tweezers with alcohol; Pull the splinter out at its own angle;
  ?Cover the spot with a plaster
treat a small cut: Wash your hands; Rinse the cut with clean water; Press until the bleeding stops; ?Put on a plaster
plant a tree: Dig a hole twice as wide as the roots; Set the tree at its old depth; Fill in the soil; Water it well;
  ?Add a stake
sow lettuce: Loosen the soil; Make a shallow furrow; Scatter the seeds thinly; Cover and water them;
  ?Thin the seedlings later
repot a houseplant: Choose a slightly larger pot; Loosen the root ball; Put in fresh soil; Set the plant and fill up;
  Water it
make a compost heap: Find a shady place; Lay down twigs; Add kitchen and garden waste in layers; ?Keep it moist;
  Turn it every few weeks
prune a rose: Put on gloves; Cut out dead wood; Cut above an outward bud; ?Clear away the clippings
wash a woollen jumper: Fill a basin with cool water; Add wool detergent; Press the jumper gently; Rinse it;
  Dry it flat
clean a window: Wipe off the dust; Wash the pane with soapy water; Pull it dry with a squeegee; ?Polish the edges
unblock a sink: Remove the visible dirt; Close the overflow with a cloth; Pump with a plunger; ?Rinse with hot water
paint a wall: Clear and cover the room; Tape the edges; Paint corners with a brush; Roll on the rest;
  ?Add a second coat
hang a picture: Mark the height; Drill a hole; Put in a plug and a screw; Hang the frame; ?Check it with a level
wrap a present: Cut the paper to size; Put the box in the middle; Fold the long sides over and tape them;
  Fold in the ends and tape them
write a business letter: Put your address and the date at the top; Greet the reader; State your request;
  Close politely; Sign it
write a short essay: Choose a question; Collect your arguments; Draft an outline; Write the text; ?Revise it
prepare a talk: Define the main message; Collect three points; Make a few slides; Practise with a clock
study for an exam: Gather the material; Make a timetable; Learn a topic a day; Test yourself; ?Rest the night before
learn a poem by heart: Read it aloud; Learn the first verse; Add verse after verse; Recite the whole poem;
  ?Repeat it next day
hold a meeting: Send an agenda; Open on time; Go through the points; Note decisions; ?Mail the minutes
choose a book club novel: Ask everyone for a title; Read out the blurbs; Vote by show of hands;
  Set a date for the discussion
find a word in a dictionary: Look at its first letter; Turn to that section; Compare the following letters;
  Read the entry
borrow a book from a library: Find it in the catalogue; Note the shelf mark; Take it from the shelf;
  Show your card at the desk
send a parcel: Pack the goods firmly; Write the address clearly; Take it to the post office; Pay the postage;
  ?Keep the receipt
open a bank account: Compare a few banks; Bring proof of identity; Fill in the form; Sign the contract;
  ?Make a first deposit
vote in person: Find your polling station; Show your papers; Mark the ballot in the booth; Put it into the box
cross a road safely: Stop at the kerb; Look both ways; Listen for traffic; Walk straight across when it is clear
report a fire: Leave the building; Call the emergency number; Give the address; Say what is burning;
  ?Wait for questions
use a fire extinguisher: Pull the pin; Aim at the base of the fire; Squeeze the handle; Sweep from side to side
pitch a tent: Clear the ground; Spread the tent out; Put the poles together; Raise it; Peg down the corners
light a campfire: Make a ring of stones; Lay tinder in the middle; Build a cone of twigs; Light the tinder;
  Add larger wood
read a map with a compass: Lay the compass on the map; Turn the map to north; Find your position; Choose a direction
tie a shoelace: Cross the laces and pull; Make a loop; Wind the other lace round it; Pull it through to a second loop
tie a tie: Hang it round the neck; Cross the wide end over; Loop it under and round; Push it through the front;
  Tighten the knot
float on your back: Lean back in the water; Put your ears under; Lift hips and chest; Breathe calmly
start a run: Warm up for five minutes; Begin at an easy pace; Keep an even speed; Walk at the end; ?Stretch
do a push-up: Lie face down; Put your hands under the shoulders; Push up with a straight body; Lower yourself slowly
tune a guitar: Switch on a tuner; Pluck the lowest string; Turn the peg until it is right; Go on with the next string
take a group photograph: Find even light; Put tall people at the back; Count to three; Take several pictures
back up a computer: Connect an external disk; Open the backup program; Choose folders; Start the copy;
  ?Check some files
install a program on a computer: Download it from the maker's site; Open the installer; Follow the dialogs;
  ?Restart the machine
create a git branch and commit to it: Create and switch to the branch; Edit the files; Stage the changes;
  Commit with a message
debug a failing test: Read the error; Run that test alone; Find the line at fault; Mend it; Run all tests again
connect a phone to Wi-Fi: Open the settings; Choose Wi-Fi; Pick the network; Type in the password
take a screenshot for a bug report: Bring up the problem; Press the screenshot key; Crop the image;
  Attach it to the report
reset a forgotten password: Click on the reset link; Enter your mail address; Open the mail; Choose a new password
set up an aquarium: Rinse the gravel; Fill in gravel and water; Start filter and heater; Wait some weeks;
  Add a few fish
bathe a dog: Brush the coat; Wet it with lukewarm water; Work in dog shampoo; Rinse well; ?Towel it dry
groom a horse: Tie it up; Loosen dirt with a curry comb; Brush the coat; Pick out the hooves
adopt a cat: Visit a shelter; Meet several cats; Sign the contract; Prepare food, litter and a bed; Take it home
make a paper aeroplane: Fold a sheet lengthwise; Fold in the top corners; Fold the slanted edges in again;
  Bend down the wings
make papier mâché: Tear newspaper into strips; Mix flour and water; Dip the strips; Lay them over a form; Let it dry
develop a simple budget: Write down your income; List fixed costs; Add other spending; Subtract it all;
  ?Put savings aside
find the average of several numbers: Add the numbers; Count them; Divide the sum by the count
multiply two fractions: Multiply the numerators; Multiply the denominators; Simplify the result
solve a linear equation: Clear the brackets; Collect the unknowns on one side; Bring numbers to the other;
  Divide by the factor
measure the height of a child: Take off the shoes; Stand with heels to the wall; Lay a book flat on the head;
  Mark and measure
take a pulse: Lay two fingers on the wrist; Feel for the beat; Count for 30 seconds; Double the number
filter muddy water in class: Put filter paper in a funnel; Set it over a beaker; Pour in the water slowly;
  Collect the clear filtrate
grow salt crystals: Dissolve salt in hot water; Hang a thread in the glass; Leave it in a quiet place; Wait some days
plan a birthday party: Fix the date; Write a guest list; Send invitations; Order food; ?Decorate the room
pack a suitcase: Write a list; Put heavy things at the bottom; Roll soft clothes; Fill the gaps with socks
pitch an idea to the boss: Name the problem; Show your solution; State cost and gain; Ask for a decision
complain about a faulty product: Find the receipt; Describe the fault; Contact the seller; Ask for repair or refund
return a hired car: Fill the tank; Clear out your things; Park at the agreed place; Hand over the key;
  ?Ask for a receipt
learn new vocabulary: Write words on cards; Sort them by topic; Test yourself daily; Use them in sentences
meditate: Sit upright; Close your eyes; Watch your breath; Come back to it when thoughts wander
season a cast-iron pan: Wash and dry it; Rub in a thin coat of oil; Heat it upside down for an hour; Let it cool
sharpen a pencil with a knife: Hold the pencil away from you; Shave thin slices of wood; Turn it as you go;
  Point the lead
make lemonade: Squeeze some lemons; Dissolve sugar in warm water; Stir both together; ?Add ice
mend a torn page: Lay the edges together; Cut a strip of archival tape; Press it over the tear; ?Trim the ends
draw a cube: Draw a square; Draw a second one shifted up and right; Join the matching corners
"""
"""`purpose: step; step; …`; a step with a question mark may be left out."""

RANKS = """
the {n} largest oceans: Pacific; Atlantic; Indian; Southern; Arctic
the {n} largest continents: Asia; Africa; North America; South America; Antarctica
the first {n} presidents of the United States: George Washington; John Adams; Thomas Jefferson; James Madison;
  James Monroe
the {n} planets nearest to the Sun: Mercury; Venus; Earth; Mars; Jupiter
the {n} largest planets of the Solar System: Jupiter; Saturn; Uranus; Neptune; Earth
the first {n} chemical elements: Hydrogen; Helium; Lithium; Beryllium; Boron
the first {n} letters of the Greek alphabet: Alpha; Beta; Gamma; Delta; Epsilon
the {n} lightest noble gases: Helium; Neon; Argon; Krypton; Xenon
the {n} largest countries of South America by area: Brazil; Argentina; Peru; Colombia; Bolivia
the {n} largest countries of Africa by area: Algeria; DR Congo; Sudan; Libya; Chad
the {n} highest mountains on Earth: Mount Everest; K2; Kangchenjunga; Lhotse; Makalu
the {n} largest US states by area: Alaska; Texas; California; Montana; New Mexico
the {n} smallest prime numbers: Two; Three; Five; Seven; Eleven
the first {n} colours of the rainbow, from the outside in: Red; Orange; Yellow; Green; Blue
the first {n} books of the Bible: Genesis; Exodus; Leviticus; Numbers; Deuteronomy
the first {n} Roman emperors: Augustus; Tiberius; Caligula; Claudius; Nero
the first {n} words of the NATO alphabet: Alfa; Bravo; Charlie; Delta; Echo
the {n} largest islands in the world: Greenland; New Guinea; Borneo; Madagascar; Baffin Island
the {n} largest Great Lakes of North America by area: Superior; Huron; Michigan; Erie; Ontario
the first {n} people on the Moon: Neil Armstrong; Buzz Aldrin; Pete Conrad; Alan Bean; Alan Shepard
the {n} largest islands in the Mediterranean: Sicily; Sardinia; Cyprus; Corsica; Crete
the first {n} British monarchs of the twentieth century after Victoria: Edward VII; George V; Edward VIII; George VI;
  Elizabeth II
the first {n} months of the year: January; February; March; April; May
the {n} smallest square numbers above zero: One; Four; Nine; Sixteen; Twenty-five
the {n} simplest polygons by number of sides: Triangle; Quadrilateral; Pentagon; Hexagon; Heptagon
the first {n} days of the week, from Monday: Monday; Tuesday; Wednesday; Thursday; Friday
the {n} SI prefixes upwards from one thousand: kilo; mega; giga; tera; peta
"""
"""`series: first; second; …`; `{n}` is how many are asked for."""


def numbered(items: list[str]) -> str:
    """The items as lines `1. …`."""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def documents(rng: Random) -> list[Document]:
    """Two documents a procedure, the second without the step that may be left out; three a series, for n = 3, 4, 5."""
    frames, found = Deck(rng, FRAMES), []
    stems, ranks = Deck(rng, STEP_STEMS), Deck(rng, RANK_STEMS)
    for purpose, steps in (line.split(": ", 1) for line in lines(STEPS)):
        for brief in (False, True):
            kept = [step.lstrip("?") for step in steps.split("; ") if not (brief and step.startswith("?"))]
            user = asked(stems.deal().format(p=purpose), frames.deal())
            found.append(Document(user=user, answer=numbered(kept), group=f"steps: {purpose}"))
    for series, items in (line.split(": ", 1) for line in lines(RANKS)):
        for size in (3, 4, 5):
            stem = ranks.deal().format(r=series.format(n=NUMBER_WORDS[size]))
            answer = numbered(items.split("; ")[:size])
            found.append(Document(user=asked(stem, frames.deal()), answer=answer, group=f"series: {series}"))
    return found
