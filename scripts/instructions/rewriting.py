"""Rewriting: a sentence made more formal, shorter, politer or plainer, or put into another tense or form."""

from __future__ import annotations

from random import Random

from .document import FRAMES, LAYOUTS, Deck, Document, asked, lines, with_input

TASK = "rewriting"

STEMS = {
    "formal": (
        "make this sentence more formal",
        "rewrite this in a formal style",
        "How would one put this in an official letter?",
        "rephrase this for a business e-mail",
        "say this in formal English",
        "turn this into polished, formal language",
        "restate this for a formal setting",
        "give this a more professional tone",
    ),
    "shorter": (
        "shorten this sentence",
        "say this in fewer words",
        "make this more concise",
        "trim the padding from this sentence",
        "rewrite this briefly",
        "condense this",
        "How can this be put more briefly?",
        "cut this down to the essential",
    ),
    "polite": (
        "make this more polite",
        "rephrase this so that it sounds friendly",
        "soften this sentence",
        "How could one ask this politely?",
        "turn this into a courteous request",
        "rewrite this in a kinder tone",
        "say this more gently",
        "word this more nicely",
    ),
    "plain": (
        "put this into plain English",
        "rewrite this in simpler words",
        "make this easy for a child to read",
        "How would you say this more simply?",
        "reword this without jargon",
        "simplify this sentence",
        "express this in everyday language",
        "replace the difficult words",
    ),
    "past": (
        "put this sentence into the past tense",
        "rewrite this as something that happened yesterday",
        "change the verb to the simple past",
        "What is this in the past tense?",
        "turn the present into the past",
        "move this into the past",
        "tell this in the simple past",
        "recast this sentence in past time",
    ),
    "future": (
        "put this sentence into the future with 'will'",
        "change this to the future tense",
        "How does this read in the future tense?",
        "rewrite this with 'will'",
        "make this a statement about the future",
        "shift this sentence to the future, using will",
        "turn this into a prediction with will",
        "recast this in the future tense",
    ),
    "negative": (
        "make this sentence negative",
        "negate this statement",
        "rewrite this so that it says the opposite, with 'not'",
        "put this into the negative form",
        "What is the negative of this sentence?",
        "change this to a negated sentence",
        "deny this statement in one sentence",
        "turn this into its negation",
    ),
    "question": (
        "turn this into a question",
        "rewrite this statement as a question",
        "How do you ask about this, keeping the words?",
        "change this sentence to a yes-no question",
        "make a question out of this",
        "put this into question form",
        "rephrase this statement so that it asks",
        "convert this to an interrogative sentence",
    ),
    "passive": (
        "put this into the passive voice",
        "rewrite this sentence in the passive",
        "change active to passive",
        "What is the passive form of this?",
        "make the object the subject of a passive sentence",
        "turn this active sentence into a passive one",
        "recast this in the passive voice",
        "use the passive here",
    ),
}

FREE = {
    "formal": """
Hey, can you get back to me soon? = I would be grateful for a prompt reply.
We can't make it to your thing on Friday. = We regret that we are unable to attend your event on Friday.
Sorry I messed up the bill. = I apologise for the error in the invoice.
The boss is fine with the plan. = The director has approved the plan.
Tell us if you've got questions. = Please do not hesitate to contact us with any questions.
We're gonna start a bit late. = The event will begin slightly later than scheduled.
This stuff is way too pricey. = These goods are considerably too expensive.
I want my money back. = I request a full refund.
Thanks a lot for helping out. = I am most grateful for your assistance.
The kids loved the trip. = The children greatly enjoyed the excursion.
He got sacked last week. = He was dismissed from his position last week.
Can I have a day off? = I would like to request a day of leave.
Lots of people turned up. = A large number of people attended.
We ran out of time. = There was insufficient time to finish.
The machine's broken again. = The machine is out of order once more.
She's really good at her job. = She performs her duties exceptionally well.
Let's talk about money next week. = We should discuss the financial matters next week.
You forgot to sign the form. = The form has not yet been signed.
I can't find your letter. = I am unable to locate your letter.
Check out the new rules. = Please consult the new regulations.
""",
    "shorter": """
Due to the fact that it was raining, we decided to stay inside the house. = Because of the rain, we stayed inside.
In my personal opinion, I think that the film was too long. = I think the film was too long.
At this point in time we do not have any tickets left. = We have no tickets left.
He is a man who always arrives late to everything. = He is always late.
The reason why she left was because she felt tired. = She left because she was tired.
It is necessary that you bring a pen with you. = Bring a pen.
There are many people who like to swim in the sea. = Many people like to swim in the sea.
In spite of the fact that he was ill, he came to work. = Although ill, he came to work.
We would like to inform you that the shop will be closed on Monday. = The shop will be closed on Monday.
The car, which is red in colour, belongs to my aunt. = The red car belongs to my aunt.
She made the decision to accept the offer. = She decided to accept.
He has the ability to speak four languages. = He can speak four languages.
In the event that the alarm rings, leave the building. = If the alarm rings, leave.
They held a discussion about the new timetable. = They discussed the new timetable.
The meeting was cancelled on account of the storm outside. = The meeting was cancelled because of the storm.
Until such time as the bridge is repaired, use the ferry. = Use the ferry until the bridge is repaired.
A large number of the visitors came by bus. = Many visitors came by bus.
The soup that my grandmother makes is a soup that I love. = I love my grandmother's soup.
He walked in a slow manner towards the door. = He walked slowly to the door.
I am writing this letter in order to ask for your advice. = I am writing to ask for your advice.
""",
    "polite": """
Open the window. = Could you please open the window?
Give me the salt. = Would you pass me the salt, please?
Be quiet. = Would you mind lowering your voice a little?
You are wrong. = I see this a little differently.
Move your car. = Would you be so kind as to move your car?
Your music is too loud. = Would you mind turning the music down a little?
Call me back. = I would be happy if you could call me back.
I don't like this colour. = I think another colour might suit it better.
Wait here. = Would you mind waiting here for a moment?
Sit down. = Please have a seat.
Stop interrupting me. = May I just finish my thought?
Tell me your name. = May I ask your name?
I need a chair. = Might I have a chair, please?
Hurry up. = I would be glad if we could go a little faster.
Get off the lawn. = Would you kindly keep off the lawn?
That's a silly plan. = Perhaps we could think of another plan.
Turn off your phone. = Could I ask you to switch off your phone?
Carry my bag. = Would you be kind enough to carry my bag?
""",
    "plain": """
Please refrain from consuming beverages in this facility. = Please do not drink here.
The physician administered the medication. = The doctor gave the medicine.
We endeavour to commence the project forthwith. = We will try to start the project at once.
Passengers are requested to disembark from the vehicle. = Please get off the bus.
The committee terminated the agreement. = The committee ended the agreement.
He purchased a residence in the vicinity. = He bought a house nearby.
Utilise the handrail when descending. = Hold the rail on your way down.
The precipitation will diminish towards evening. = There will be less rain in the evening.
She possesses considerable expertise in horticulture. = She knows a lot about gardening.
Kindly furnish us with your contact particulars. = Please give us your address and phone number.
The majority of participants concurred. = Most people agreed.
The aircraft departed subsequent to a delay. = The plane left late.
Remuneration will be disbursed monthly. = You will be paid every month.
His conduct was detrimental to the team. = What he did harmed the team.
The apparatus is inoperative. = The machine does not work.
We anticipate inclement weather. = We expect bad weather.
The edifice was constructed of timber. = The house was built of wood.
They consumed their evening repast in silence. = They ate dinner without talking.
""",
}
"""Sentences and one good way to rewrite each."""

CLAUSES = """
the cook|prepare|prepares|prepared|prepared|the soup
the postman|deliver|delivers|delivered|delivered|the parcel
the gardener|water|waters|watered|watered|the roses
the teacher|explain|explains|explained|explained|the rule
the company|sell|sells|sold|sold|old maps
the pianist|play|plays|played|played|a sonata
the nurse|change|changes|changed|changed|the bandage
the farmer|milk|milks|milked|milked|the goats
the mechanic|repair|repairs|repaired|repaired|the engine
the committee|choose|chooses|chose|chosen|a new chair
the painter|draw|draws|drew|drawn|the harbour
the council|build|builds|built|built|a playground
the thief|steal|steals|stole|stolen|the necklace
the editor|write|writes|wrote|written|the preface
the tailor|sew|sews|sewed|sewn|the curtains
the guard|lock|locks|locked|locked|the gate
the choir|sing|sings|sang|sung|an old carol
the student|borrow|borrows|borrowed|borrowed|two books
the wind|break|breaks|broke|broken|the branch
the waiter|bring|brings|brought|brought|the bill
the judge|accept|accepts|accepted|accepted|the proof
the fox|catch|catches|caught|caught|a mouse
the museum|show|shows|showed|shown|his last works
the captain|take|takes|took|taken|the decision
the baker|throw away|throws away|threw away|thrown away|the burnt rolls
the dog|bury|buries|buried|buried|the bone
the club|hold|holds|held|held|a summer party
the scientist|find|finds|found|found|a new beetle
the neighbour|feed|feeds|fed|fed|our cats
the actor|forget|forgets|forgot|forgotten|his lines
the firm|win|wins|won|won|the contract
the river|carry|carries|carried|carried|the logs
the inspector|check|checks|checked|checked|the brakes
the archive|keep|keeps|kept|kept|the letters
the pupils|know|know|knew|known|the answer
"""
"""Subject, verb as base form, present, past and participle, and object."""

PLURAL_OBJECTS = {
    "old maps", "the roses", "the goats", "the curtains", "two books", "his last works", "the burnt rolls",
    "our cats", "his lines", "the logs", "the brakes", "the letters",
}  # fmt: skip


def forms(clause: str) -> dict[str, str]:
    """The clause in each computed form; the present tense is the source."""
    subject, base, present, past, participle, thing = clause.split("|")
    do = "do" if present == base else "does"
    are = "are" if thing in PLURAL_OBJECTS else "is"
    texts = {
        "source": f"{subject} {present} {thing}.",
        "past": f"{subject} {past} {thing}.",
        "future": f"{subject} will {base} {thing}.",
        "negative": f"{subject} {do} not {base} {thing}.",
        "question": f"{do} {subject} {base} {thing}?",
        "passive": f"{thing} {are} {participle} by {subject}.",
    }
    return {name: text[0].upper() + text[1:] for name, text in texts.items()}


def documents(rng: Random) -> list[Document]:
    """One document a free rewriting; five a clause."""
    frames, layouts, found = Deck(rng, FRAMES), Deck(rng, LAYOUTS), []
    stems = {kind: Deck(rng, wordings) for kind, wordings in STEMS.items()}

    def add(kind: str, text: str, answer: str) -> None:
        user = with_input(asked(stems[kind].deal(), frames.deal()), text, layouts.deal())
        found.append(Document(user=user, answer=answer, group=f"rewriting: {text}"))

    for kind, table in FREE.items():
        for line in lines(table):
            text, answer = line.split(" = ")
            add(kind, text, answer)
    for clause in lines(CLAUSES):
        source, *rest = forms(clause).items()
        for kind, answer in rest:
            add(kind, source[1], answer)
    return found
