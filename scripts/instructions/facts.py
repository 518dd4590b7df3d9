"""Facts with one short answer, in categories whose answers exclude each other;
for short answers and for yes or no."""

from __future__ import annotations

from dataclasses import dataclass

from .document import pairs


@dataclass(frozen=True, kw_only=True)
class Category:
    """Facts of one kind: a subject, its answer, and answers that are also right and so never make a false claim."""

    name: str
    questions: tuple[str, ...]
    """Open questions; `{s}` is the subject."""
    claims: tuple[str, ...]
    """Yes-or-no questions; `{s}` is the subject and `{a}` an answer, right or wrong."""
    truth: str
    """The fact as a clause without a full stop."""
    table: str
    """`subject=answer/also right; …`"""

    def facts(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Subject, answer, and further right answers."""
        rows = []
        for subject, answers in pairs(self.table):
            answer, *also = answers.split("/")
            rows.append((subject, answer, tuple(also)))
        return rows


CATEGORIES = (
    Category(
        name="capital",
        questions=("What is the capital of {s}?", "Which city is the capital of {s}?", "Name the capital city of {s}."),
        claims=("Is {a} the capital of {s}?", "Does {s} have {a} as its capital?", "Is the capital of {s} called {a}?"),
        truth="the capital of {s} is {a}",
        table="""Portugal=Lisbon; Norway=Oslo; Kenya=Nairobi; Peru=Lima; Canada=Ottawa; Australia=Canberra;
        Vietnam=Hanoi;
        Hungary=Budapest; Morocco=Rabat; Cuba=Havana; Nepal=Kathmandu; Iceland=Reykjavik; Latvia=Riga; Ghana=Accra;
        Uruguay=Montevideo; Mongolia=Ulaanbaatar""",
    ),
    Category(
        name="author",
        questions=("Who wrote {s}?", "Who is the author of {s}?", "{s} is a book by which writer?"),
        claims=("Did {a} write {s}?", "Is {a} the author of {s}?", "Was {s} written by {a}?"),
        truth="{a} wrote {s}",
        table="""Emma=Jane Austen; Moby-Dick=Herman Melville; Middlemarch=George Eliot; Dracula=Bram Stoker;
        Frankenstein=Mary Shelley; Great Expectations=Charles Dickens; Jane Eyre=Charlotte Brontë;
        Ulysses=James Joyce;
        The Hobbit=J. R. R. Tolkien; Don Quixote=Miguel de Cervantes; Anna Karenina=Leo Tolstoy;
        The Trial=Franz Kafka;
        Animal Farm=George Orwell; Mrs Dalloway=Virginia Woolf; Beloved=Toni Morrison;
        Faust=Johann Wolfgang von Goethe
        """,
    ),
    Category(
        name="artist",
        questions=("Who made {s}?", "Which artist created {s}?", "{s} is the work of whom?"),
        claims=("Is {s} by {a}?", "Did {a} create {s}?"),
        truth="{s} is by {a}",
        table="""the painting Guernica=Pablo Picasso; the Mona Lisa=Leonardo da Vinci;
        the painting The Scream=Edvard Munch;
        the opera The Magic Flute=Wolfgang Amadeus Mozart; the Moonlight Sonata=Ludwig van Beethoven;
        the concerto cycle The Four Seasons=Antonio Vivaldi; the opera Carmen=Georges Bizet;
        the ballet Swan Lake=Pyotr Tchaikovsky; the painting The Night Watch=Rembrandt;
        the sculpture The Thinker=Auguste Rodin;
        the painting The Birth of Venus=Sandro Botticelli; the opera Aida=Giuseppe Verdi;
        the painting Girl with a Pearl Earring=Johannes Vermeer; the piano piece Clair de lune=Claude Debussy""",
    ),
    Category(
        name="symbol",
        questions=("What is the chemical symbol for {s}?", "How is {s} abbreviated in the periodic table?"),
        claims=("Is {a} the chemical symbol for {s}?", "In the periodic table, does {a} stand for {s}?"),
        truth="the symbol for {s} is {a}",
        table="""gold=Au; silver=Ag; iron=Fe; lead=Pb; tin=Sn; sodium=Na; potassium=K; tungsten=W; mercury=Hg;
        copper=Cu;
        helium=He; magnesium=Mg; chlorine=Cl; calcium=Ca""",
    ),
    Category(
        name="scientist",
        questions=("Who is known for {s}?", "Which scientist's name is linked with {s}?"),
        claims=("Is {a} known for {s}?", "Do we owe {s} to {a}?"),
        truth="{a} is known for {s}",
        table="""the three laws of motion=Isaac Newton; the general theory of relativity=Albert Einstein;
        the theory of evolution by natural selection=Charles Darwin; the discovery of polonium and radium=Marie Curie;
        the laws of inheritance found in pea plants=Gregor Mendel; the discovery of penicillin=Alexander Fleming;
        the first vaccine against smallpox=Edward Jenner; the uncertainty principle=Werner Heisenberg;
        the equations of electromagnetism=James Clerk Maxwell; the laws of planetary motion=Johannes Kepler;
        the first periodic table with gaps for unknown elements=Dmitri Mendeleev""",
    ),
    Category(
        name="currency",
        questions=(
            "What currency is used in {s}?",
            "Which money do people pay with in {s}?",
            "Name the currency of {s}.",
        ),
        claims=("Is the {a} the currency of {s}?", "Do people in {s} pay with the {a}?"),
        truth="the currency of {s} is the {a}",
        table="""Japan=yen; India=rupee; Thailand=baht; Poland=zloty; South Africa=rand; Brazil=real; Israel=shekel;
        Turkey=lira;
        Malaysia=ringgit; South Korea=won; Saudi Arabia=riyal; Ukraine=hryvnia""",
    ),
    Category(
        name="year",
        questions=("In which year did {s}?", "What year did {s}?", "When did {s}? The year is enough."),
        claims=("Did {s} in {a}?", "Did {s} in the year {a}?"),
        truth="that happened in {a}",
        table="""the Berlin Wall fall=1989; the Second World War end=1945; the First World War begin=1914;
        the Titanic sink=1912;
        humans first land on the Moon=1969; the French Revolution begin=1789; Columbus first reach the Americas=1492;
        the Great Fire of London break out=1666; the Battle of Waterloo take place=1815;
        the Chernobyl disaster happen=1986;
        the Suez Canal open=1869; the Normans win the Battle of Hastings=1066;
        the first modern Olympic Games take place=1896;
        the Soviet Union launch Sputnik 1=1957; Nelson Mandela leave prison=1990""",
    ),
    Category(
        name="river mouth",
        questions=(
            "Into which sea or ocean does the {s} flow?",
            "Which sea or ocean does the {s} river reach in the end?",
        ),
        claims=("Does the {s} flow into the {a}?", "Is the mouth of the {s} river on the {a}?"),
        truth="the {s} flows into the {a}",
        table="""Danube=Black Sea; Volga=Caspian Sea; Nile=Mediterranean Sea; Rhine=North Sea/Atlantic Ocean;
        Vistula=Baltic Sea;
        Yukon=Bering Sea/Pacific Ocean; Po=Adriatic Sea/Mediterranean Sea; Mekong=South China Sea/Pacific Ocean;
        Indus=Arabian Sea;
        Amazon=Atlantic Ocean; Columbia=Pacific Ocean""",
    ),
    Category(
        name="young animal",
        questions=(
            "What is a young {s} called?",
            "Give the word for a baby {s}.",
            "What do you call the young of a {s}?",
        ),
        claims=("Is a young {s} called {a}?", "Is {a} the word for a baby {s}?"),
        truth="a young {s} is called {a}",
        table="""kangaroo=a joey; swan=a cygnet; goose=a gosling; hare=a leveret; frog=a tadpole; deer=a fawn;
        horse=a foal;
        llama=a cria; pig=a piglet; sheep=a lamb; owl=an owlet; goat=a kid""",
    ),
    Category(
        name="highest mountain",
        questions=("What is the highest mountain in {s}?", "Which peak is the tallest in {s}?"),
        claims=("Is {a} the highest mountain in {s}?", "Does {s} have {a} as its highest peak?"),
        truth="the highest mountain in {s} is {a}",
        table="""Tanzania=Kilimanjaro; Austria=the Grossglockner; Greece=Mount Olympus; Japan=Mount Fuji;
        Argentina=Aconcagua;
        Turkey=Mount Ararat; Scotland=Ben Nevis; Ireland=Carrauntoohil; Germany=the Zugspitze;
        New Zealand=Aoraki/Mount Cook;
        Poland=Rysy; Slovenia=Triglav; Bulgaria=Musala""",
    ),
    Category(
        name="Greek deity",
        questions=("Who was the Greek deity of {s}?", "In Greek myth, who ruled over {s}?"),
        claims=("In Greek myth, was {a} the deity of {s}?", "Did the Greeks worship {a} as the deity of {s}?"),
        truth="the Greek deity of {s} was {a}",
        table="""the sea=Poseidon; the underworld=Hades; war=Ares/Athena; love=Aphrodite; wisdom=Athena;
        the hunt=Artemis;
        wine=Dionysus; the harvest=Demeter; the forge=Hephaestus; the hearth=Hestia; sleep=Hypnos;
        victory=Nike/Athena""",
    ),
    Category(
        name="SI unit",
        questions=("What is the SI unit of {s}?", "In which SI unit is {s} measured?"),
        claims=("Is the {a} the SI unit of {s}?", "Is {s} measured in SI units by the {a}?"),
        truth="the SI unit of {s} is the {a}",
        table="""force=newton; energy=joule; power=watt; pressure=pascal; frequency=hertz; electric charge=coulomb;
        electrical resistance=ohm; voltage=volt; electric current=ampere; temperature=kelvin; mass=kilogram;
        luminous intensity=candela""",
    ),
    Category(
        name="dish",
        questions=("Which country does {s} come from?", "Where is {s} a traditional dish?"),
        claims=("Is {s} a traditional dish of {a}?", "Does the dish {s} come from {a}?"),
        truth="{s} comes from {a}",
        table="""sushi=Japan; paella=Spain; goulash=Hungary/Germany; haggis=Scotland; pho=Vietnam;
        feijoada=Brazil/Portugal; kimchi=Korea;
        risotto=Italy; bratwurst=Germany; guacamole=Mexico; ratatouille=France; poutine=Canada""",
    ),
    Category(
        name="software pioneer",
        questions=("Who created {s}?", "Who is the original author of {s}?", "Name the person who started {s}."),
        claims=("Did {a} create {s}?", "Is {a} the original author of {s}?"),
        truth="{a} created {s}",
        table="""the Python language=Guido van Rossum; the Linux kernel=Linus Torvalds;
        the World Wide Web=Tim Berners-Lee;
        the C language=Dennis Ritchie; the C++ language=Bjarne Stroustrup; the Ruby language=Yukihiro Matsumoto;
        the Perl language=Larry Wall; the JavaScript language=Brendan Eich;
        the typesetting system TeX=Donald Knuth""",
    ),
    Category(
        name="organ",
        questions=("Which organ of the human body {s}?", "Name the organ that {s}."),
        claims=("Is the {a} the organ that {s}?", "Among the organs of the body, is it the {a} that {s}?"),
        truth="the organ that {s} is the {a}",
        table="""pumps blood=heart; makes bile=liver; produces insulin=pancreas; stores bile=gallbladder;
        takes up oxygen from the air=lung; stores urine=bladder; detects light=eye;
        makes urine by filtering blood=kidney""",
    ),
    Category(
        name="planet",
        questions=("Which planet of the Solar System {s}?", "What planet {s}?"),
        claims=(
            "Is {a} the planet of the Solar System that {s}?",
            "Among the planets, is {a} the one that {s}?",
        ),
        truth="the planet that {s} is {a}",
        table="""is the largest=Jupiter; is closest to the Sun=Mercury; has the hottest surface=Venus;
        has Phobos as a moon=Mars;
        has Titan as its largest moon=Saturn; is farthest from the Sun=Neptune;
        spins tipped over on its side=Uranus""",
    ),
)

SINGLE = """
How many sides does a hexagon have?=Six
How many legs does a spider have?=Eight
How many strings does a violin have?=Four
How many players of one football team are on the pitch?=Eleven
How many minutes are there in two hours?=120
How many squares are there on a chessboard?=64
How many hearts does an octopus have?=Three
How many chambers does the human heart have?=Four
How many bits make up a byte?=Eight
How many degrees do the angles of a triangle add up to?=180 degrees
How many cards are in a standard deck without jokers?=52
How many years make a century?=One hundred
How many lines does a sonnet have?=Fourteen
How many zeros does one million have?=Six
What gas do plants take in for photosynthesis?=Carbon dioxide
What is the hardest natural mineral?=Diamond
What is the largest living animal?=The blue whale
What is the fastest land animal?=The cheetah
What is the tallest living animal?=The giraffe
Which ocean is the largest?=The Pacific Ocean
Which continent is the smallest by area?=Australia
Which hot desert is the largest in the world?=The Sahara
What is the longest bone in the human body?=The thigh bone
What force pulls objects towards the Earth?=Gravity
At what temperature in Celsius does water boil at sea level?=100 °C
What is the main ingredient of hummus?=Chickpeas
Which spice gives paella its yellow colour?=Saffron
What fruit is dried to make raisins?=Grapes
What do bees collect from flowers to make honey?=Nectar
In which sport do players use a shuttlecock?=Badminton
Which sport is played at Wimbledon?=Tennis
What does CPU stand for?=Central processing unit
What does HTTP stand for?=Hypertext Transfer Protocol
Which number system uses only 0 and 1?=Binary
Who was the first person to walk on the Moon?=Neil Armstrong
Who was the first president of the United States?=George Washington
Which empire built Machu Picchu?=The Inca Empire
Which river runs through Paris?=The Seine
Which river runs through Vienna?=The Danube
Which city has the Brandenburg Gate?=Berlin
In which country is the Taj Mahal?=India
What is the opposite of nocturnal?=Diurnal
What is the plural of criterion?=Criteria
What is the past tense of swim?=Swam
What do you call a word that means the same as another?=A synonym
What colour do you get by mixing blue and yellow paint?=Green
Which instrument has 88 keys?=The piano
What is a group of wolves called?=A pack
What is a group of lions called?=A pride
What is frozen water called?=Ice
Which metal is liquid at room temperature?=Mercury
What is the square root of 144?=12
What is the name of Sherlock Holmes's companion?=Dr Watson
Which fictional detective lives at 221B Baker Street?=Sherlock Holmes
What is the study of weather called?=Meteorology
What is the study of stars and planets called?=Astronomy
Which vitamin does the skin make in sunlight?=Vitamin D
Which blood cells carry oxygen?=Red blood cells
What is the largest organ of the human body?=The skin
Which bird lays the largest eggs?=The ostrich
"""
"""Questions of no category, with their answers."""
