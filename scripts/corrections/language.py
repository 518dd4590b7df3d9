"""English words and their forms."""

from .table import Concept, table

FAMILY = "language"

PAST = """
go=went; come=came; see=saw; take=took; give=gave; write=wrote; drive=drove; eat=ate; drink=drank; sing=sang; swim=swam;
run=ran; begin=began; break=broke; speak=spoke; steal=stole; freeze=froze; choose=chose; fly=flew; grow=grew; know=knew;
throw=threw; draw=drew; blow=blew; wear=wore; tear=tore; swear=swore; bring=brought; buy=bought; think=thought;
teach=taught; catch=caught; fight=fought; seek=sought; keep=kept; sleep=slept; feel=felt; leave=left; lose=lost;
build=built; send=sent; spend=spent; tell=told; sell=sold; hold=held; stand=stood; understand=understood; sit=sat;
win=won; find=found; rise=rose; shake=shook
"""

PLURALS = """
child=children; mouse=mice; foot=feet; tooth=teeth; goose=geese; man=men; woman=women; ox=oxen; leaf=leaves;
knife=knives; wife=wives; life=lives; wolf=wolves; half=halves; loaf=loaves; thief=thieves; shelf=shelves; city=cities;
baby=babies; lady=ladies; story=stories; country=countries; box=boxes; church=churches; bus=buses; glass=glasses;
dish=dishes; potato=potatoes; tomato=tomatoes; hero=heroes; crisis=crises; analysis=analyses; thesis=theses;
phenomenon=phenomena; criterion=criteria; bacterium=bacteria; alumnus=alumni; stimulus=stimuli; day=days; key=keys;
monkey=monkeys; piano=pianos; photo=photos; roof=roofs; chief=chiefs; book=books; tree=trees; house=houses; dog=dogs;
window=windows; larva=larvae; passer-by=passers-by
"""

COMPARATIVES = """
good=better; bad=worse; big=bigger; small=smaller; tall=taller; short=shorter; long=longer; old=older/elder;
young=younger; hot=hotter; cold=colder; warm=warmer; cool=cooler; fast=faster; slow=slower; happy=happier; sad=sadder;
easy=easier; heavy=heavier; light=lighter; dark=darker; bright=brighter; strong=stronger; weak=weaker; rich=richer;
poor=poorer; cheap=cheaper; clean=cleaner; dirty=dirtier; dry=drier; wet=wetter; loud=louder; thin=thinner;
thick=thicker; fat=fatter; wide=wider; narrow=narrower; deep=deeper; high=higher; low=lower; near=nearer; soft=softer;
hard=harder; sweet=sweeter; safe=safer; large=larger; busy=busier; funny=funnier; ugly=uglier; pretty=prettier;
brave=braver; simple=simpler
"""

ANTONYMS = """
hot=cold/cool; tall=short/low; open=closed/shut; day=night; up=down/below; left=right; rich=poor; strong=weak/poor/soft;
young=old/ancient; love=hate; heavy=light/easy; full=empty; wet=dry; early=late/last; first=last/late/end; always=never;
push=pull; win=lose; buy=sell; true=false/negative; inside=outside; above=below/down; before=after/late; begin=end/last;
birth=death/end; black=white; clean=dirty; deep=shallow; difficult=easy; east=west; north=south; friend=enemy;
guilty=innocent; hard=soft/easy; high=low/short/shallow; loud=quiet/soft/silent; male=female; maximum=minimum;
modern=ancient/old; noisy=silent/quiet; positive=negative/false; question=answer; sharp=blunt/soft; sweet=sour;
thick=thin/narrow; victory=defeat; wide=narrow/thin; war=peace; alive=dead; ascend=descend/down; sink=float;
cheap=expensive
"""

QUALITY_NOUNS = """
long=length; wide=width/breadth; deep=depth; strong=strength/ability; warm=warmth/heat; high=height;
true=truth/accuracy/honesty; young=youth; wise=wisdom/intelligence; free=freedom; bored=boredom; happy=happiness;
sad=sadness; kind=kindness/generosity; dark=darkness; weak=weakness/illness; ill=illness/weakness; lazy=laziness;
beautiful=beauty; honest=honesty/truth; cruel=cruelty/violence; loyal=loyalty; safe=safety; poor=poverty;
able=ability/possibility/strength; possible=possibility/ability; curious=curiosity; generous=generosity/kindness;
popular=popularity; similar=similarity; stupid=stupidity; pure=purity; silent=silence; patient=patience;
intelligent=intelligence/wisdom; important=importance; distant=distance/length; absent=absence;
violent=violence/cruelty; different=difference; confident=confidence; brave=bravery; angry=anger/violence; proud=pride;
hungry=hunger; thirsty=thirst; hot=heat/warmth; jealous=jealousy; difficult=difficulty; accurate=accuracy/truth;
private=privacy; broad=breadth/width
"""

AGENTS = """
teach=teacher/educator; write=writer/narrator/editor/creator; sing=singer/performer; dance=dancer/performer;
paint=painter/creator; bake=baker; drive=driver/navigator; swim=swimmer; run=runner; win=winner; lose=loser;
build=builder/creator; farm=farmer; hunt=hunter; read=reader; speak=speaker/narrator; listen=listener;
lead=leader/governor/director/manager/conductor; follow=follower; own=owner; buy=buyer/investor/collector; sell=seller;
act=actor/performer; direct=director/manager/leader/governor/conductor; invent=inventor/creator; visit=visitor;
edit=editor/publisher; sail=sailor/navigator/explorer; conduct=conductor/leader/director; translate=translator/writer;
create=creator/producer/builder/inventor/painter/writer; govern=governor/leader/director/manager;
compete=competitor/runner/swimmer/wrestler; collect=collector; inspect=inspector;
perform=performer/actor/singer/dancer/juggler; invest=investor; survive=survivor; navigate=navigator/sailor/driver;
narrate=narrator/writer/speaker/reader; educate=educator/teacher; beg=beggar; lie=liar; rob=robber; murder=murderer;
juggle=juggler/performer; wrestle=wrestler; skate=skater; explore=explorer/navigator; publish=publisher/editor;
produce=producer/creator/builder; manage=manager/director/leader/governor
"""

FEMININE = """
king=queen/empress/tsarina; prince=princess; duke=duchess; emperor=empress/queen/tsarina; actor=actress;
waiter=waitress; host=hostess/landlady; hero=heroine; god=goddess; heir=heiress; count=countess; baron=baroness;
abbot=abbess/nun; priest=priestess/nun; steward=stewardess; uncle=aunt; nephew=niece; father=mother/stepmother;
son=daughter; brother=sister; husband=wife/woman; grandfather=grandmother; boy=girl/schoolgirl;
man=woman/lady/wife/girl; gentleman=lady/woman/madam; lord=lady/countess/duchess/baroness; sir=madam/lady; wizard=witch;
monk=nun/abbess; bridegroom=bride/wife; widower=widow; bull=cow; rooster=hen; stallion=mare/filly; ram=ewe; boar=sow;
stag=doe/hind; drake=duck; gander=goose; lion=lioness; tiger=tigress; fox=vixen; buck=doe/hind; colt=filly/mare;
landlord=landlady/lady; policeman=policewoman; stepfather=stepmother/mother; grandson=granddaughter;
schoolboy=schoolgirl/girl; tsar=tsarina/empress/queen; fiancé=fiancée/bride
"""

ABBREVIATIONS = """
UN=United Nations; EU=European Union; UK=United Kingdom; Dr.=Doctor; Prof.=Professor; Jr.=Junior; a.m.=ante meridiem;
p.m.=post meridiem; e.g.=exempli gratia; i.e.=id est; etc.=et cetera; RIP=rest in peace; FAQ=frequently asked questions;
ATM=automated teller machine; CEO=chief executive officer; CPU=central processing unit; GPU=graphics processing unit;
RAM=random access memory; USB=universal serial bus; URL=uniform resource locator; WWW=World Wide Web;
AI=artificial intelligence; DIY=do it yourself; VIP=very important person; IQ=intelligence quotient;
GDP=gross domestic product; UFO=unidentified flying object; DNA=deoxyribonucleic acid; RNA=ribonucleic acid;
LED=light emitting diode; km=kilometre; kg=kilogram; cm=centimetre; mph=miles per hour; fig.=figure; vol.=volume;
dept.=department; Feb.=February; Sept.=September; Mon.=Monday; vs.=versus; PDF=portable document format;
OS=operating system; HQ=headquarters; TV=television; approx.=approximately; max.=maximum; adj.=adjective;
misc.=miscellaneous; PhD=Doctor of Philosophy
"""

CONCEPTS = (
    Concept(
        family=FAMILY,
        name="past tense",
        templates=(
            'The past tense of the verb "{0}" is',
            'Put into the simple past, "{0}" becomes',
            'A story told in the past changes "{0}" to',
            "With the same verb: today they {0}, yesterday they",
            'The irregular verb "{0}" has the past form',
        ),
        facts=table(PAST),
    ),
    Concept(
        family=FAMILY,
        name="plural",
        templates=(
            'The plural of the noun "{0}" is',
            "If there is more than one {0}, we speak of",
            "One {0} and another {0} make two",
            'In the plural, "{0}" changes to',
        ),
        facts=table(PLURALS),
    ),
    Concept(
        family=FAMILY,
        name="comparative",
        templates=(
            'The comparative form of "{0}" is',
            'Between "{0}" and its superlative stands the form',
            'In its comparative form, "{0}" turns into',
            'Before the word "than", the adjective "{0}" becomes',
        ),
        facts=table(COMPARATIVES),
    ),
    Concept(
        family=FAMILY,
        name="antonym",
        templates=(
            'The opposite of "{0}" is',
            'A word that means the reverse of "{0}" is',
            'In a list of opposites, "{0}" stands across from',
            'As an antonym for "{0}", a dictionary gives',
        ),
        facts=table(ANTONYMS),
    ),
    Concept(
        family=FAMILY,
        name="noun from an adjective",
        templates=(
            'The noun formed from the adjective "{0}" is',
            "The quality or state of being {0} is called",
            'Turned into an abstract noun, "{0}" becomes',
            'A noun that belongs to the adjective "{0}" is',
        ),
        facts=table(QUALITY_NOUNS),
    ),
    Concept(
        family=FAMILY,
        name="agent noun",
        templates=(
            'Add the ending for a person to "{0}" and you get',
            'The verb "{0}" gives us the noun for a person,',
            'From the verb "{0}" comes the name of the doer,',
            "One word for a person known to {0} is",
        ),
        facts=table(AGENTS),
    ),
    Concept(
        family=FAMILY,
        name="feminine form",
        templates=(
            'The female counterpart of "{0}" is',
            'For a female, the word "{0}" is replaced by',
            'A traditional grammar pairs "{0}" with the feminine word',
            'The traditional feminine of the noun "{0}" is',
        ),
        facts=table(FEMININE),
    ),
    Concept(
        family=FAMILY,
        name="long form of an abbreviation",
        templates=(
            "The abbreviation {0} stands for",
            "Written out in full, {0} means",
            "The short form {0} is used for",
            "In a list of abbreviations, {0} is explained as",
        ),
        facts=table(ABBREVIATIONS),
    ),
)
