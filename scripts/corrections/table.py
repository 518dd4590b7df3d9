"""The source form of a concept: templates, and facts written as a small text table."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A subject, its answer, and further answers that are also right and so must never be the foil."""

    subject: str
    """One part, or two parts joined by `|`; templates name them `{0}` and `{1}`."""
    target: str
    also: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        return self.subject.split("|")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Facts of one kind and the sentences that ask for them."""

    family: str
    name: str
    templates: tuple[str, ...]
    """`{0}` subject · `{C}` subject with a capital · `{a}` with a or an · `{A}` with A or An · `{1}` second part."""
    facts: tuple[Fact, ...]


def table(text: str) -> tuple[Fact, ...]:
    """Read `subject=answer/also right/also right; …`; line breaks after a semicolon do not matter."""
    facts = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        subject, answers = entry.split("=", 1)
        target, *also = answers.split("/")
        facts.append(Fact(subject=" ".join(subject.split()), target=target, also=tuple(also)))
    return tuple(facts)


def words(text: str) -> tuple[str, ...]:
    """Read a list of words separated by white space."""
    return tuple(text.split())


def with_article(noun: str) -> str:
    """Put the indefinite article in front of a noun whose first letter tells its first sound (not `hour`, `unit`)."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def capitalised(text: str) -> str:
    """Raise the first letter only."""
    return text[0].upper() + text[1:]


def fill(template: str, fact: Fact) -> str:
    """Write a fact's prompt in one wording."""
    noun = with_article(fact.parts[0])
    return template.format(*fact.parts, C=capitalised(fact.parts[0]), a=noun, A=capitalised(noun))
