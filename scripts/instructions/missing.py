"""Missing input: requests about a text that is not given; the answer says so and asks for it."""

from __future__ import annotations

from random import Random

from .document import FRAMES, Deck, Document, asked, capitalised, lines

TASK = "missing input"
DOCUMENTS = 250

ACTIONS = """
summarise {x}
summarise {x} in two sentences
translate {x} into Spanish
translate {x} into German
translate {x} into French
proofread {x}
fix the spelling mistakes in {x}
correct the grammar in {x}
shorten {x} by half
rewrite {x} in a friendlier tone
make {x} sound more formal
pick out the main points of {x}
list the people mentioned in {x}
describe the tone of {x}
decide whether {x} is positive or negative
explain {x} in simple words
find a good title for {x}
turn {x} into bullet points
check {x} for typos
extract the dates from {x}
count the words in {x}
put {x} into the past tense
name the topic of {x}
find the weakest argument in {x}
improve the opening of {x}
write a reply to {x}
divide {x} into paragraphs
What is the main idea of {x}?
What does {x} say about the costs?
Is {x} easy to understand?
How could {x} be improved?
Which language is {x} written in?
"""

OBJECTS = """
this article = article
the article below = article
this paragraph = paragraph
the following paragraph = paragraph
my e-mail to the landlord = e-mail
this e-mail = e-mail
the attached report = report
the sales report I mentioned = report
my essay = essay
the essay on bees = essay
this poem = poem
the poem my son wrote = poem
the letter from the council = letter
my cover letter = cover letter
the following text = text
the text below = text
the text I just sent = text
this passage = passage
the passage above = passage
these sentences = sentences
the short story = story
my short story = story
the minutes of our meeting = minutes
the review I pasted = review
this hotel review = review
the speech = speech
my wedding speech = speech
the press release = press release
this announcement = announcement
the transcript = transcript
the contract clause = clause
this chapter = chapter
the chapter of my novel = chapter
these instructions = instructions
the blog post = blog post
my draft = draft
"""

ANSWERS = (
    "I don't see the {n} in your message. Could you paste {it} here?",
    "It looks as if the {n} {is_} missing. Please send {it} and I will get started.",
    "Happy to help! Please provide the {n} first, since nothing was attached.",
    "I would be glad to, but the {n} did not come through. Could you share {it}?",
    "There seems to be no {n} in your request. Please copy {it} into the chat.",
    "Sorry, I can't find the {n}. Would you add {it} to your next message?",
    "You haven't included the {n} yet. Once you send {it}, I can do this for you.",
    "Of course. Please paste the {n}, and I will take care of the rest.",
    "I need the {n} for that, and your message does not contain {it}. Can you provide {it}?",
    "The {n} you mention {is_} not included. If you share {it}, I'll gladly help.",
    "So far no {n} has reached me. Please include {it} in your reply.",
    "I can do that as soon as I have the {n}. Please send {it} over.",
    "Unfortunately I have not received the {n}. Could you attach {it} again or type {it} here?",
    "Without the {n} I can't do this. Please provide the wording.",
)

PLURALS = {"sentences", "minutes", "instructions"}


def documents(rng: Random) -> list[Document]:
    """Pairs of an action and a text, each pair once, every action and every text about equally often."""
    actions, objects = Deck(rng, lines(ACTIONS)), Deck(rng, lines(OBJECTS))
    frames, answers = Deck(rng, FRAMES), Deck(rng, ANSWERS)
    found: dict[str, Document] = {}
    while len(found) < DOCUMENTS:
        action, (thing, noun) = actions.deal(), objects.deal().split(" = ")
        plural = thing.startswith("these") or noun in PLURALS
        if plural:
            action = action.replace("decide whether {x} is", "decide whether {x} are").replace("does {x}", "do {x}")
            action = action.replace("Is {x}", "Are {x}").replace("is {x}", "are {x}")
        request = action.format(x=thing)
        answer = answers.deal().format(n=noun, it="them" if plural else "it", is_="are" if plural else "is")
        if request not in found:
            user = asked(request, frames.deal())
            found[request] = Document(user=user, answer=capitalised(answer), group=f"missing: {request}")
    return list(found.values())
