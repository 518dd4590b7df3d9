"""Grammar correction: sentences with one or two marked errors; the answer is the corrected sentence."""

from __future__ import annotations

import re
from random import Random

from .document import FRAMES, LAYOUTS, Deck, Document, asked, lines, with_input

TASK = "grammar correction"

STEMS = (
    "correct the grammar of this sentence",
    "fix the mistake in this sentence",
    "rewrite this in correct English",
    "repair the grammar here",
    "make this sentence grammatical",
    "remove the language errors",
    "edit this so that the English is right",
    "proofread this line and give the corrected version",
    "mend what is wrong with the wording",
    "put this into proper English without changing the meaning",
    "What is the correct form of this sentence?",
    "How should this be written?",
    "What would this be in correct English?",
    "check my sentence and correct it",
)

SENTENCES = """
She {don't|doesn't} like strong coffee in the evening.
The children {was|were} playing behind the old barn.
He has {went|gone} to the dentist twice this month.
I {am|have been} living in this town since 2011.
There {is|are} too many chairs in the meeting room.
My uncle {teached|taught} history for thirty years.
We {didn't saw|didn't see} the sign at the crossing.
This soup tastes {more better|better} than the last one.
{Her and me|She and I} went to the market on Saturday.
The dog wagged {it's|its} tail when we came home.
If I {was knowing|knew} the answer, I would tell you.
{Your|You're} the first person to notice the new lamp.
The informations {are|is} on the second page.
Everyone in the office {have|has} a key to the back door.
He plays the trumpet very {good|well}.
I look forward to {meet|meeting} the new neighbours.
She is interested {on|in} the history of bridges.
The train arrives {in|at} half past six.
We have {less|fewer} apples than last autumn.
Neither of the two maps {are|is} up to date.
They {has|have} been waiting since noon.
My sister can {sings|sing} in three languages.
The man {which|who} repaired our roof lives nearby.
I have {never saw|never seen} such a large pumpkin.
He asked me where {was the station|the station was}.
{A|An} honest answer would have helped.
She gave me {a good advice|good advice} about the loan.
The police {is|are} looking for two witnesses.
I {must to|must} finish the report by Friday.
We discussed {about the plan|the plan} for an hour.
He {explained me|explained to me} how the lock works.
She {is agree|agrees} with the committee.
It depends {of|on} the weather.
I {have seen|saw} that film last Tuesday.
The mice {has|have} eaten the cheese again.
Each of the students {need|needs} a library card.
He is {the most tall|the tallest} player on the team.
My shoes {is|are} still wet from the rain.
The news {were|was} better than we had feared.
She {leaved|left} her gloves on the bus.
He {buyed|bought} a second-hand bicycle.
They {builded|built} the hut in a single weekend.
We {eated|ate} the cake before the guests came.
I {catched|caught} a cold on the ferry.
The vase {breaked|broke} when the cat jumped.
She {writed|wrote} a long letter to the council.
He {runned|ran} all the way to the post office.
The baby {sleeped|slept} through the storm.
I {thinked|thought} the shop was open on Sundays.
The choir {singed|sang} two songs in Welsh.
We {swimmed|swam} across the small lake.
He {bringed|brought} his own tools.
{Me and my brother|My brother and I} share a garage.
This gift is for you and {I|me}.
Between you and {I|me}, the plan is too costly.
{Whom|Who} is responsible for the heating?
The box was {to|too} heavy for one person.
They parked {there|their} van beside the church.
{Its|It's} going to be a cold night.
She would rather read {then|than} watch television.
The rain will {effect|affect} the harvest.
We should {of|have} booked the table earlier.
I could {of|have} sworn the door was locked.
{Who's|Whose} umbrella is standing in the corner?
You must not {loose|lose} the receipt.
He gave me a piece of {advise|advice}.
The weather was {quiet|quite} warm for March.
There {wasn't nobody|was nobody} at the counter.
I {don't know nothing|don't know anything} about engines.
He {hasn't got no|hasn't got any} time this week.
She {can't hardly|can hardly} hear the radio.
After he {finish|finishes} work, he goes for a swim.
When she {will arrive|arrives}, we will start dinner.
If it {will rain|rains}, the match will be moved.
If he {would have|had} called, I would have waited.
I wish I {can|could} speak Finnish.
She suggested {to take|taking} the early ferry.
He avoided {to answer|answering} the question.
They decided {leaving|to leave} before sunrise.
We enjoy {to walk|walking} along the canal.
She is used to {get|getting} up early.
I am not used to {drive|driving} on the left.
He stopped {to smoke|smoking} for good last year.
They made him {to wait|wait} outside.
Let us {to begin|begin} with the first item.
My parents let me {to stay|stay} up late on Fridays.
I have been waiting {since|for} two hours.
She has worked here {for|since} last spring.
He was born {at|on} the fifth of May.
The picture hangs {in|on} the wall above the sofa.
We arrived {to|at} the hotel after midnight.
She is good {in|at} chess.
He is married {with|to} a nurse.
They listened {the speech|to the speech} in silence.
I am afraid {from|of} heights.
Please wait {me|for me} at the entrance.
The result is different {of|from} what we expected.
He congratulated her {for|on} her new job.
She {said me|told me} that the shop was closed.
He {told|said} that he was tired.
Can you {borrow|lend} me your pen for a minute?
May I {lend|borrow} your ladder this weekend?
He {did|made} a mistake in the second line.
She {makes|does} her homework at the kitchen table.
I {made|took} a photograph of the lighthouse.
The {furnitures are|furniture is} made of oak.
She bought two {breads|loaves of bread} at the corner shop.
He needs {a new glasses|new glasses}.
There were many {peoples|people} at the fair.
Both {child|children} were fast asleep.
Three {womans|women} ran the bakery.
The {leafs|leaves} turn red in October.
My {feets|feet} hurt after the walk.
All the {knifes|knives} are in the top drawer.
Two {deers|deer} stood at the edge of the wood.
{An|A} university was founded here in 1850.
It took us {a|an} hour to find the key.
She is {an|a} European lawyer.
He is {engineer|an engineer} at the airport.
{The life|Life} is full of surprises.
I play {piano|the piano} every day after lunch.
They live in {Netherlands|the Netherlands}.
{Sun|The sun} rises in the east.
We had {the dinner|dinner} at a small inn.
She drives {more careful|more carefully} than her brother.
He spoke so {quick|quickly} that I missed the name.
The flowers smell {sweetly|sweet}.
It was a {real|really} good concert.
He {hard worked|worked hard} on the model ship.
She {speaks very well Danish|speaks Danish very well}.
I {like very much|very much like} this tune.
He {always is|is always} late on Mondays.
{Rarely we|We rarely} eat meat.
What time {the bus leaves|does the bus leave}?
Where {you bought|did you buy} that coat?
How {long you have|long have you} known her?
Why {she is|is she} crying?
{Does|Do} your cousins still live in Cork?
{Do|Does} this road lead to the harbour?
She {was studied|studied} law in Vienna.
The bridge {built|was built} in 1932.
The parcel {has delivered|has been delivered} to the wrong house.
The window {was broke|was broken} by a ball.
English {speaks|is spoken} in many countries.
He {was happened to|happened to} meet his old teacher.
The accident {was occurred|occurred} near the tunnel.
I {am knowing|know} the way to the castle.
She {is having|has} two brothers and a sister.
He {is wanting|wants} a bigger desk.
This soup {is tasting|tastes} of garlic.
By next year they {will finish|will have finished} the tunnel.
Yesterday I {go|went} to the optician.
Tomorrow we {went|will go} to the coast.
Last night the wind {blows|blew} down the fence.
Every morning he {drink|drinks} a glass of milk.
The cat {sleep|sleeps} on the warm bonnet of the car.
My friends {plays|play} cards on Thursdays.
The price of eggs {have|has} risen again.
The list of names {are|is} on the door.
One of my teeth {hurt|hurts} when I drink cold water.
Mathematics {are|is} taught on Mondays.
The jury {have reach|has reached} a decision.
Physics {are|is} her favourite subject.
These scissors {is|are} too blunt.
Ten miles {are|is} a long way to walk.
{This|These} trousers are too long.
{That|Those} books belong to the school.
He hurt {hisself|himself} with the saw.
They enjoyed {theirselves|themselves} at the picnic.
She cut {her|herself} on a tin.
We saw {they|them} at the bus stop.
The house is {our|ours}, not the bank's.
A friend of {me|mine} repairs clocks.
{Mine|My} bicycle has a flat tyre.
The {childrens'|children's} room faces the yard.
The two {boy's|boys} shared a sandwich.
My {sisters|sister's} car is parked outside.
She is the woman {what|who} sold us the boat.
The town {where|that} I like most is Bath.
The reason is {because|that} the pump failed.
He is {enough old|old enough} to vote.
She is {so a kind|such a kind} person.
It was {such|so} cold that the pipes froze.
There is {not some|no} milk in the fridge.
I have {much|many} questions about the form.
How {many|much} money did the repair cost?
We had {a little|few} visitors in winter.
He ate only {a few|a little} rice.
She is {elder|older} than her husband.
This is the {worse|worst} storm in years.
He feels {more worse|worse} than yesterday.
My bag is {heavyer|heavier} than yours.
The blue one is {expensiver|more expensive}.
The more you practise, the {best|better} you get.
Not only {he cooks|does he cook}, but he also bakes.
As soon as the bell {ring|rings}, the gates open.
Unless you {don't hurry|hurry}, you will miss the boat.
Although it was late, {but we|we} kept on dancing.
Because the road was icy, {so we|we} drove slowly.
He neither smokes {or|nor} drinks.
She speaks both Greek {or|and} Turkish.
I would like {that you come|you to come} at eight.
He wants {that I|me to} sign the contract.
It is important {check|to check} the brakes.
She went to the shop {for buy|to buy} stamps.
He came {for to help|to help} us with the tent.
I am writing {for inform|to inform} you of a delay.
The teacher made us {reading|read} the poem aloud.
I saw him {to cross|cross} the street.
She {used to has|used to have} a parrot.
You {not should|should not} feed the ducks.
We {can to|can} park behind the theatre.
He {might has|might have} forgotten the date.
I {had better to|had better} call the plumber.
Would you mind {to close|closing} the window?
They {insisted to pay|insisted on paying} for the meal.
He succeeded {to open|in opening} the jar.
I apologise {to be|for being} late.
Thank you for {help|helping} me with the move.
She prevented him {to fall|from falling}.
They accused him {for|of} cheating.
He is proud {for|of} his garden.
The room is full {with|of} boxes.
I agree {to|with} you about the colour.
He has been ill {from|since} Monday.
She paid {for the bill|the bill} and left.
We entered {into the hall|the hall} on tiptoe.
He reached {to the summit|the summit} at dawn.
She married {with a sailor|a sailor}.
The film {lasted during|lasted for} three hours.
I will be back {until|by} five o'clock.
We stayed there {by|until} midnight.
She sat {besides|beside} her grandmother.
{Besides of|Besides} German, he speaks Czech.
He walked {along of|along} the river.
The keys are {in|on} the table by the door.
Our flight leaves {at|on} Wednesday.
The shop opens {on|at} nine in the morning.
They met {in|on} New Year's Day.
He has {drove|driven} this lorry for years.
She had {forgot|forgotten} her passport.
The ice has {broke|broken} near the shore.
I have {ate|eaten} there once.
The bell {rung|rang} at noon.
He {seen|saw} a fox in the yard.
We {done|did} the dishes together.
She {come|came} home at ten last night.
They {was|were} lost in the fog for hours.
{Them|Those} apples are from our own tree.
My brother {don't|doesn't} own a car.
He speaks {english|English} and {french|French}.
The lake is {deeper that|deeper than} it looks.
Nobody {know|knows} who left the gate open.
Somebody {have|has} taken my umbrella.
A pair of gloves {were|was} found on the stairs.
"""
"""`{wrong|right}` marks an error and its correction."""

MARK = re.compile(r"\{([^|}]*)\|([^}]*)\}")


def documents(rng: Random) -> list[Document]:
    """One document a sentence."""
    stems, frames, layouts, found = Deck(rng, STEMS), Deck(rng, FRAMES), Deck(rng, LAYOUTS), []
    for marked in lines(SENTENCES):
        wrong, right = MARK.sub(r"\1", marked), MARK.sub(r"\2", marked)
        user = with_input(asked(stems.deal(), frames.deal()), wrong, layouts.deal())
        found.append(Document(user=user, answer=right, group=f"grammar: {right}"))
    return found
