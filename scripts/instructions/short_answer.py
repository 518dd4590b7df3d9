"""Short factual answers: a few words, no sentence."""

from __future__ import annotations

from random import Random

from .document import Deck, Document, capitalised, lines
from .facts import CATEGORIES, SINGLE

TASK = "short answer"

WITH_ARTICLE = {"SI unit", "currency", "river mouth", "organ"}

FRAMES = (
    "{q}",
    "{q}",
    "{q}",
    "{q} Answer in a few words.",
    "{q} Keep it short.",
    "{q} A short answer is enough.",
    "Quick question: {q}",
    "{q} No explanation needed.",
    "Quiz night. {q}",
    "Tell me briefly: {q}",
    "I forgot this one. {q}",
    "Give only the answer. {q}",
    "For a crossword: {q}",
    "My daughter asked me this for homework. {q}",
    "{q} Just the answer, please.",
)


def documents(rng: Random) -> list[Document]:
    """One document a fact."""
    frames = Deck(rng, FRAMES)
    found = []
    for category in CATEGORIES:
        questions = Deck(rng, category.questions)
        for subject, answer, _ in category.facts():
            question = capitalised(questions.deal().format(s=subject))
            reply = capitalised(f"the {answer}" if category.name in WITH_ARTICLE else answer)
            user = frames.deal().format(q=question)
            found.append(Document(user=user, answer=reply, group=f"{category.name}: {subject}"))
    for question, answer in (line.split("=") for line in lines(SINGLE)):
        found.append(Document(user=frames.deal().format(q=question), answer=answer, group=f"fact: {question}"))
    return found
