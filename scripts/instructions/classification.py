"""Classification: short texts to be sorted by mood, topic, product, spam, emotion, sentence type or language."""

from __future__ import annotations

from random import Random

from .document import FRAMES, LAYOUTS, Deck, Document, asked, capitalised, lines, with_input

TASK = "classification"

STEMS = {
    "sentiment": (
        "classify this review as positive or negative",
        "decide whether the mood of this review is positive or negative",
        "label the sentiment: positive or negative",
        "Is this review positive or negative?",
        "sort this customer comment into positive or negative",
        "What sentiment does this comment express, positive or negative?",
        "tell me the polarity of this opinion (positive / negative)",
        "mark this feedback as positive or negative",
        "judge whether this is a positive or a negative opinion",
    ),
    "product": (
        "name the kind of thing under review: electronics, food, clothing, travel or entertainment",
        "assign this comment to electronics, food, clothing, travel or entertainment",
        "Which department does this comment belong to: electronics, food, clothing, travel or entertainment?",
        "put this review into one category (electronics, food, clothing, travel, entertainment)",
        "choose the product group: electronics, food, clothing, travel or entertainment",
        "file this opinion under electronics, food, clothing, travel or entertainment",
        "Is this about electronics, food, clothing, travel or entertainment?",
        "tag the review with one of electronics, food, clothing, travel, entertainment",
    ),
    "topic": (
        "classify this headline as sport, business, science, politics or culture",
        "choose the section of the newspaper: sport, business, science, politics or culture",
        "What is this news item about: sport, business, science, politics or culture?",
        "give the topic (sport, business, science, politics, culture)",
        "assign one of the labels sport, business, science, politics and culture",
        "sort this headline into sport, business, science, politics or culture",
        "Which section should print this: sport, business, science, politics or culture?",
        "tag this headline with its topic (sport, business, science, politics or culture)",
    ),
    "spam": (
        "classify this message as spam or not spam",
        "decide if this e-mail is spam or not spam",
        "Would you file this under spam or not spam?",
        "act as a mail filter and label this spam or not spam",
        "label the message: spam / not spam",
        "sort this into spam or not spam",
        "Spam or not spam?",
        "judge whether this is spam or not spam",
    ),
    "emotion": (
        "name the main emotion: joy, anger, fear, sadness or surprise",
        "Which feeling comes through: joy, anger, fear, sadness or surprise?",
        "label the emotion of the speaker with joy, anger, fear, sadness or surprise",
        "pick one emotion for this line (joy, anger, fear, sadness, surprise)",
        "classify the feeling as joy, anger, fear, sadness or surprise",
        "What does the writer feel most: joy, anger, fear, sadness or surprise?",
        "sort this by emotion, choosing from joy, anger, fear, sadness and surprise",
        "tag this line with one feeling out of joy, anger, fear, sadness and surprise",
    ),
    "sentence type": (
        "say what this is: a statement, a question, a command or an exclamation",
        "classify the sentence type as statement, question, command or exclamation",
        "Is this a statement, a question, a command or an exclamation?",
        "label this as statement, question, command or exclamation",
        "name the type of sentence (statement, question, command, exclamation)",
        "choose the right label out of statement, question, command and exclamation",
        "What kind of sentence is this: statement, question, command or exclamation?",
        "sort this by form into statement, question, command or exclamation",
    ),
    "language": (
        "identify the language",
        "What language is this?",
        "name the language this is written in",
        "Which language do you recognise here?",
        "tell me which language this sentence belongs to",
        "label this text with its language",
        "detect the language of this text",
        "In what language did someone write this?",
    ),
}

REVIEWS = """
The battery died after two hours and support never replied. = negative, electronics
These headphones sound clear and sit comfortably all day. = positive, electronics
The screen cracked in the first week without being dropped. = negative, electronics
Setting up the printer took three minutes and it works well. = positive, electronics
The keyboard misses every fifth letter I type. = negative, electronics
A quiet vacuum cleaner that picks up everything. I would buy it again. = positive, electronics
The charger gets so hot that I am afraid to use it. = negative, electronics
My new camera takes sharp pictures even at dusk. = positive, electronics
The tablet freezes whenever I open the mail. = negative, electronics
The speaker is small but fills the whole room with lovely sound. = positive, electronics
The soup was cold and far too salty. = negative, food
The best apple tart I have had in years. = positive, food
The bread was stale on the day I bought it. = negative, food
Fresh fish, crisp vegetables and friendly service. = positive, food
This coffee tastes like wet cardboard. = negative, food
The cheese is creamy and keeps well. We loved it. = positive, food
Half the strawberries in the box were mouldy. = negative, food
Wonderful dumplings, and the portions are generous. = positive, food
We waited an hour for pizza that was burnt underneath. = negative, food
The chocolate is rich without being too sweet. A treat. = positive, food
The seams of the jacket came apart after one wash. = negative, clothing
These boots kept my feet dry all winter. = positive, clothing
The jumper itches and the sleeves are uneven. = negative, clothing
A soft shirt that fits just right. = positive, clothing
The zip broke the second time I wore these trousers. = negative, clothing
Lovely colour, solid stitching: my favourite scarf. = positive, clothing
The socks had holes within a fortnight. = negative, clothing
The raincoat is light and really waterproof. = positive, clothing
The dress looks nothing like the picture and feels cheap. = negative, clothing
Comfortable gloves that still let me use my phone. Great. = positive, clothing
Our hotel room smelled of smoke and the shower leaked. = negative, travel
The guide was funny and showed us places we would have missed. = positive, travel
The airline lost our bags and blamed us. = negative, travel
A spotless cabin with a view of the whole valley. = positive, travel
The tour bus was two hours late and had no heating. = negative, travel
Check-in was quick and the beds were very comfortable. = positive, travel
The beach in the brochure turned out to be a building site. = negative, travel
The night train was on time and I slept beautifully. = positive, travel
The boat trip was cancelled and nobody refunded us. = negative, travel
A charming inn with hosts who could not do enough for us. = positive, travel
The plot makes no sense and the jokes fall flat. = negative, entertainment
I laughed from the first scene to the last. = positive, entertainment
The novel drags on for 600 pages and goes nowhere. = negative, entertainment
The concert was magical, and the pianist played two encores. = positive, entertainment
The video game crashes so often that I gave up. = negative, entertainment
A moving play with a superb cast. = positive, entertainment
The series started well, but the ending ruined it for me. = negative, entertainment
This board game delights adults and children alike. = positive, entertainment
The singer was out of tune all evening. = negative, entertainment
The documentary is calm, clever and beautifully filmed. = positive, entertainment
"""

HEADLINES = """
Striker scores twice as home side reach the final = sport
Rain stops play on the second day of the test match = sport
Young swimmer breaks national record over 200 metres = sport
Coach resigns after seventh defeat in a row = sport
Cyclist wins mountain stage by eleven seconds = sport
Rowing club celebrates gold at the regatta = sport
Goalkeeper out for six weeks with a knee injury = sport
Marathon draws forty thousand runners to the city = sport
Tennis champion survives five-set thriller = sport
Central bank leaves interest rates unchanged = business
Car maker to close plant and cut two thousand jobs = business
Shares fall as oil prices climb = business
Supermarket chain reports higher profits = business
Two airlines agree on a merger = business
Start-up raises ten million to sell electric scooters = business
Shipping costs push up the price of furniture = business
Exports of machinery grow for the third quarter = business
Bakery group opens its hundredth branch = business
Telescope finds water vapour on a distant planet = science
Researchers map the genes of an ancient wheat = science
New battery material charges in minutes, study shows = science
Fossil of feathered dinosaur found in a quarry = science
Probe sends back first pictures of the comet = science
Laboratory measures the heaviest antimatter nucleus yet = science
Coral reefs recover faster in shade, biologists report = science
Vaccine trial against malaria shows promise = science
Physicists cool atoms to a new low temperature = science
Parliament votes on the new housing bill = politics
Mayor announces she will not stand again = politics
Opposition calls for minister to step down = politics
Leaders meet for talks on the border dispute = politics
Early election set for the second Sunday in May = politics
Coalition parties argue over tax reform = politics
President vetoes the pensions law = politics
Council approves budget after a heated debate = politics
Ambassador recalled in row over fishing rights = politics
Museum shows lost drawings by a Dutch master = culture
Opera house reopens after four years of repairs = culture
Debut novel wins the national book prize = culture
Film festival honours a veteran director = culture
String quartet gives farewell concert = culture
Theatre stages comedy in an old tram depot = culture
Poet's letters published for the first time = culture
Sculptor turns scrap metal into giant birds = culture
Folk dance revival fills village halls = culture
Gymnast returns to training after two years away = sport
Coffee chain plans to open shops in small towns = business
Volcano study explains how ash clouds rise = science
Senate delays decision on the new voting law = politics
Gallery buys rare watercolour at auction = culture
Biographer wins award for life of a composer = culture
"""

MESSAGES = """
You have won a free cruise! Click here within 24 hours to claim your prize. = spam
Hi Tom, the meeting is moved to room 12. See you at ten. = not spam
Earn 5,000 a week from home, no experience needed!!! = spam
Your library book is due back on Friday. = not spam
Cheap pills without prescription, order now and save 80%. = spam
Mum, I will be home around seven. Shall I bring bread? = not spam
Your bank account is locked. Send your password to unlock it today. = spam
Attached are the minutes of Monday's committee meeting. = not spam
Congratulations! You are our millionth visitor. Reply with your card number. = spam
The plumber can come on Tuesday between eight and ten. = not spam
Lose 20 kilos in two weeks with this one secret trick! = spam
Thanks for the photos, the one by the lake is lovely. = not spam
Make money fast: our robot trades while you sleep. = spam
Your dentist appointment is confirmed for 4 March at 14:30. = not spam
Dear friend, I am a prince and need your help to move ten million dollars. = spam
Could you look over the draft before lunch tomorrow? = not spam
FINAL NOTICE: claim your inheritance by sending a small fee. = spam
The choir rehearsal starts half an hour later this week. = not spam
Hot deals! Luxury watches for 9.99, limited stock, buy buy buy! = spam
Your parcel was left with the neighbour at number 14. = not spam
You were selected for a secret loan with zero interest. Act now! = spam
Happy birthday, Grandpa! We will call you this evening. = not spam
Unlock hidden casino bonuses with this link, guaranteed win! = spam
The school trip needs a signed form by Wednesday. = not spam
Double your bitcoin in one hour, send coins to this address. = spam
I have pushed the fix and the tests pass again. = not spam
Free phone! Just pay postage and confirm your card details. = spam
Lunch at the usual place tomorrow? = not spam
"""

FEELINGS = """
At last we have the keys to our own house! = joy
Our baby took her first steps today, and we danced round the kitchen. = joy
I got the place at the music school and cannot stop smiling. = joy
The sun is out, my friends are here, life is good. = joy
What a lovely afternoon we had by the river. = joy
Who scratched my car and just drove off? This is outrageous! = anger
I have called five times and still nobody repairs it. I have had enough! = anger
How dare he read my letters! = anger
Stop lying to me, I am sick of it. = anger
They cheated us and I want my money back this minute! = anger
There are footsteps in the attic and I am alone in the house. = fear
My hands tremble when I think of the operation. = fear
Please do not let go of the rope, I cannot look down. = fear
I heard growling behind the tent and dared not breathe. = fear
What if the ice does not hold us? = fear
The house has been so empty since our dog died. = sadness
I miss my grandmother every single day. = sadness
She packed her things and left, and I cried all night. = sadness
All my old friends have moved away. = sadness
He looked at the faded photograph and wiped away a tear. = sadness
You are back already? I thought you were in Chile! = surprise
I opened the wardrobe and there sat a hedgehog. I never expected that! = surprise
Wait, the quiet boy from my class is now a rock star? = surprise
Nobody told me there would be a party! = surprise
Good heavens, it is snowing in June! = surprise
"""

FORMS = """
The kettle is on the stove. = statement
Two herons live by our pond. = statement
My cousin repairs old radios. = statement
The bakery closes at six. = statement
Most of the leaves have fallen. = statement
He prefers tea to coffee. = statement
Where did you park the van? = question
Has anyone fed the cat? = question
How far is it to the station? = question
Why does the lamp flicker? = question
Shall we take the stairs? = question
Which of these keys fits? = question
Close the gate behind you. = command
Hand me the small spanner. = command
Turn left at the chapel. = command
Keep your dog on the lead. = command
Take off your shoes. = command
Bring the chairs in before it rains. = command
What a splendid garden! = exclamation
How tall you have grown! = exclamation
What a dreadful noise! = exclamation
How kind of them! = exclamation
"""

LANGUAGES = """
Das Wetter ist heute sehr schön. = German
Wo ist der nächste Bahnhof? = German
Wir essen um sieben Uhr. = German
Mein Bruder spielt gern Schach. = German
Le chat dort sur le canapé. = French
Où est la boulangerie ? = French
Nous partons demain matin. = French
J'aime beaucoup cette chanson. = French
Me gusta leer por la noche. = Spanish
¿Dónde está la biblioteca? = Spanish
Mañana vamos a la playa. = Spanish
El perro duerme en el jardín. = Spanish
Domani andiamo al mare. = Italian
Il gatto è sul tavolo. = Italian
Mi piace molto questa città. = Italian
Dove abita tua sorella? = Italian
Jag dricker kaffe varje morgon. = Swedish
Vi bor i ett litet hus. = Swedish
De kinderen spelen in de tuin. = Dutch
Ik wil graag een kopje koffie. = Dutch
Eu gosto de ler livros. = Portuguese
Onde fica a estação? = Portuguese
Minä asun Helsingissä. = Finnish
Hyvää huomenta kaikille. = Finnish
Lubię pić herbatę wieczorem. = Polish
Gdzie jest dworzec? = Polish
"""

ANSWERS = ("{L}", "{L}", "{l}", "{L}.")


def labelled(text: str) -> list[tuple[str, str]]:
    """Texts and their labels."""
    rows = []
    for line in lines(text):
        left, right = line.rsplit(" = ", 1)
        rows.append((left, right))
    return rows


def documents(rng: Random) -> list[Document]:
    """One document a text; reviews have two, for their mood and their subject."""
    frames, layouts, answers, found = Deck(rng, FRAMES), Deck(rng, LAYOUTS), Deck(rng, ANSWERS), []
    reviews = [(text, *labels.split(", ")) for text, labels in labelled(REVIEWS)]
    tables = {
        "sentiment": [(text, mood) for text, mood, _ in reviews],
        "product": [(text, product) for text, _, product in reviews],
        "topic": labelled(HEADLINES),
        "spam": labelled(MESSAGES),
        "emotion": labelled(FEELINGS),
        "sentence type": labelled(FORMS),
        "language": labelled(LANGUAGES),
    }
    for scheme, rows in tables.items():
        stems = Deck(rng, STEMS[scheme])
        for text, label in rows:
            user = with_input(asked(stems.deal(), frames.deal()), text, layouts.deal())
            answer = answers.deal().format(l=label, L=capitalised(label))
            found.append(Document(user=user, answer=answer, group=f"text: {text}"))
    return found
