"""Style and format: dates, capitals, file endings, tags, codes and times."""

from .table import Concept, Fact, table, words

FAMILY = "style"

MONTHS = words("January February March April May June July August September October November December")

CAPITAL_WORDS = words(
    "river mountain garden window silver bottle kitchen pencil forest thunder market harbour castle lantern ribbon "
    "blanket feather island orange pepper planet rocket saddle tunnel violin walnut yellow zipper anchor basket candle "
    "desert engine falcon guitar hammer insect jacket kettle ladder magnet needle oyster parrot quiver rabbit signal "
    "ticket umbrella velvet whistle carpet"
)

EXTENSIONS = """
Python source code=.py; Rust source code=.rs; Ruby source code=.rb; Java source code=.java; Go source code=.go;
Swift source code=.swift; Kotlin source code=.kt; Scala source code=.scala; PHP scripts=.php; Perl scripts=.pl;
C source code=.c/.h; C++ source code=.cpp/.h; C# source code=.cs; JavaScript source code=.js;
TypeScript source code=.ts; Haskell source code=.hs; Lua scripts=.lua; Dart source code=.dart; Julia source code=.jl;
Jupyter notebooks=.ipynb/.json; HTML pages=.html; CSS style sheets=.css; JSON documents=.json; XML documents=.xml;
YAML documents=.yaml; TOML documents=.toml; Markdown documents=.md; PDF documents=.pdf; Word documents=.docx;
Excel workbooks=.xlsx; PowerPoint presentations=.pptx; comma separated values=.csv/.txt;
tab separated values=.tsv/.txt/.csv; JPEG images=.jpg; PNG images=.png; GIF images=.gif; SVG images=.svg/.xml;
WebP images=.webp; MP3 audio=.mp3; FLAC audio=.flac; WAV audio=.wav; ZIP archives=.zip; tar archives=.tar/.gz;
LaTeX documents=.tex; Bash scripts=.sh; SQL scripts=.sql; Windows programs=.exe; EPUB books=.epub;
log messages=.log/.txt; gzip data=.gz; plain text=.txt/.log/.md/.csv; C headers=.h
"""

TAGS = words(
    "a abbr address article aside audio b blockquote body button canvas caption cite code dd details dialog div dl dt "
    "em fieldset figure footer form h1 h2 head header html i iframe kbd label legend li main mark nav ol option p pre "
    "section select span strong style sub summary sup table tbody td textarea title tr ul video"
)

CODES = """
Germany=DE; France=FR; Spain=ES; Italy=IT; Portugal=PT; the United Kingdom=GB; Ireland=IE; the Netherlands=NL;
Belgium=BE; Switzerland=CH; Austria=AT; Poland=PL; Sweden=SE; Norway=NO; Denmark=DK; Finland=FI; Iceland=IS; Estonia=EE;
Latvia=LV; Lithuania=LT; Hungary=HU; Romania=RO; Bulgaria=BG; Greece=GR; Croatia=HR; Slovenia=SI; Slovakia=SK;
Serbia=RS; Ukraine=UA; Russia=RU; Turkey=TR; Israel=IL; Egypt=EG; Morocco=MA; Algeria=DZ; South Africa=ZA; Kenya=KE;
Nigeria=NG; India=IN; China=CN; Japan=JP; South Korea=KR; Thailand=TH; Vietnam=VN; Australia=AU; New Zealand=NZ;
Canada=CA; Mexico=MX; Brazil=BR; Argentina=AR; Chile=CL; Peru=PE; Colombia=CO; Cuba=CU
"""


def dates() -> tuple[Fact, ...]:
    """52 dates between 1900 and 2050 on a day from 1 to 28, so that day and month vary together."""
    facts = []
    for index in range(52):
        month, day, year = index * 5 % 12, index * 11 % 28 + 1, 1900 + index * 47 % 151
        facts.append(Fact(subject=f"{MONTHS[month]} {day}, {year}", target=f"{year}-{month + 1:02}-{day:02}"))
    return tuple(facts)


def times() -> tuple[Fact, ...]:
    """52 afternoon and evening times, whose hour changes between the two clocks."""
    return tuple(
        Fact(subject=f"{hour}:{minute:02} p.m.", target=f"{hour + 12}:{minute:02}")
        for hour, minute in ((index % 11 + 1, index * 25 % 60 + index % 5) for index in range(52))
    )


CONCEPTS = (
    Concept(
        family=FAMILY,
        name="ISO date",
        templates=(
            "In ISO format, {0} is written",
            "The ISO 8601 form of the date {0} is",
            "As year, month and day with hyphens, {0} becomes",
            "A database that follows the ISO standard stores {0} as",
        ),
        facts=dates(),
    ),
    Concept(
        family=FAMILY,
        name="capital letters",
        templates=(
            'In capital letters, the word "{0}" is written',
            'With the caps lock key on, typing "{0}" gives',
            'Converted to upper case, "{0}" becomes',
            'The all-caps form of the word "{0}" is',
        ),
        facts=tuple(Fact(subject=word, target=word.upper()) for word in CAPITAL_WORDS),
    ),
    Concept(
        family=FAMILY,
        name="file extension",
        templates=(
            "The usual file extension for {0} is",
            "The names of files with {0} end in",
            "To save {0}, give the file name the ending",
            "Computers recognise {0} by the file ending",
        ),
        facts=table(EXTENSIONS),
    ),
    Concept(
        family=FAMILY,
        name="closing tag",
        templates=(
            "In HTML, the tag <{0}> is closed by",
            "The closing tag that matches <{0}> is",
            "An HTML element opened with <{0}> ends with",
            "A web page that opens <{0}> later closes it with",
        ),
        facts=tuple(Fact(subject=tag, target=f"</{tag}>") for tag in TAGS),
    ),
    Concept(
        family=FAMILY,
        name="country code",
        templates=(
            "The two-letter ISO country code of {0} is",
            "In the ISO 3166 standard, {0} has the code",
            "A form with two-letter country codes lists {0} as",
            "As a two-letter ISO code, {0} is written",
        ),
        facts=table(CODES),
    ),
    Concept(
        family=FAMILY,
        name="24-hour time",
        templates=(
            "On a 24-hour clock, {0} is",
            "In 24-hour notation, the time {0} is written",
            "A railway timetable with 24-hour times prints {0} as",
            "A digital clock in 24-hour mode shows {0} as",
        ),
        facts=times(),
    ),
)
