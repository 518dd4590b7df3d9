"""Translation of short sentences and words into French, Spanish or German."""

from __future__ import annotations

from random import Random

from .document import FRAMES, LAYOUTS, Deck, Document, asked, lines, with_input

TASK = "translation"

LANGUAGES = ("French", "Spanish", "German")

STEMS = (
    "translate this into {l}",
    "put this into {l}",
    "say this in {l}",
    "give me the {l} for this",
    "turn this into {l}",
    "write this in {l}",
    "How do you say this in {l}?",
    "What is this in {l}?",
    "How would someone from {c} say this?",
    "provide a {l} translation",
    "render this in {l}",
    "What would the {l} version be?",
)

WORD_QUESTIONS = (
    "What is the {l} word for {w}?",
    "How do you say {w} in {l}?",
    "Translate the word {w} into {l}.",
    "Give me the {l} for '{w}'.",
    "I need the {l} word for {w}.",
    "In {l}, what is {w} called?",
    "{l} vocabulary: {w}",
    "My {l} homework: what is {w}?",
    "Please tell me the {l} translation of {w}.",
    "{w} in {l}, please.",
)

COUNTRIES = {"French": "France", "Spanish": "Spain", "German": "Germany"}

SENTENCES = """
Good morning, how are you? | Bonjour, comment allez-vous ? | Buenos días, ¿cómo está usted? |
  Guten Morgen, wie geht es Ihnen?
Thank you very much for your help. | Merci beaucoup pour votre aide. | Muchas gracias por su ayuda. |
  Vielen Dank für Ihre Hilfe.
Where is the railway station? | Où est la gare ? | ¿Dónde está la estación de tren? | Wo ist der Bahnhof?
I am hungry. | J'ai faim. | Tengo hambre. | Ich habe Hunger.
The house is very old. | La maison est très vieille. | La casa es muy vieja. | Das Haus ist sehr alt.
My sister lives in London. | Ma sœur habite à Londres. | Mi hermana vive en Londres. |
  Meine Schwester wohnt in London.
We are going to the beach tomorrow. | Nous allons à la plage demain. | Mañana vamos a la playa. |
  Wir gehen morgen an den Strand.
The cat is sleeping under the table. | Le chat dort sous la table. | El gato duerme debajo de la mesa. |
  Die Katze schläft unter dem Tisch.
It is raining today. | Il pleut aujourd'hui. | Hoy llueve. | Heute regnet es.
How much does this book cost? | Combien coûte ce livre ? | ¿Cuánto cuesta este libro? | Wie viel kostet dieses Buch?
I would like a cup of coffee. | Je voudrais une tasse de café. | Quisiera una taza de café. |
  Ich hätte gern eine Tasse Kaffee.
He is reading the newspaper. | Il lit le journal. | Él lee el periódico. | Er liest die Zeitung.
The children are playing in the garden. | Les enfants jouent dans le jardin. | Los niños juegan en el jardín. |
  Die Kinder spielen im Garten.
What time is it? | Quelle heure est-il ? | ¿Qué hora es? | Wie spät ist es?
The water is cold. | L'eau est froide. | El agua está fría. | Das Wasser ist kalt.
I have two brothers. | J'ai deux frères. | Tengo dos hermanos. | Ich habe zwei Brüder.
She works in a hospital. | Elle travaille dans un hôpital. | Ella trabaja en un hospital. |
  Sie arbeitet in einem Krankenhaus.
Can you repeat that, please? | Pouvez-vous répéter, s'il vous plaît ? | ¿Puede repetirlo, por favor? |
  Können Sie das bitte wiederholen?
The door is open. | La porte est ouverte. | La puerta está abierta. | Die Tür ist offen.
Today is Monday. | Aujourd'hui, c'est lundi. | Hoy es lunes. | Heute ist Montag.
I do not understand. | Je ne comprends pas. | No entiendo. | Ich verstehe nicht.
My father is a teacher. | Mon père est professeur. | Mi padre es profesor. | Mein Vater ist Lehrer.
The soup is too hot. | La soupe est trop chaude. | La sopa está demasiado caliente. | Die Suppe ist zu heiß.
We need more time. | Nous avons besoin de plus de temps. | Necesitamos más tiempo. | Wir brauchen mehr Zeit.
Do you speak English? | Parlez-vous anglais ? | ¿Habla usted inglés? | Sprechen Sie Englisch?
The train leaves at eight o'clock. | Le train part à huit heures. | El tren sale a las ocho. |
  Der Zug fährt um acht Uhr ab.
I am looking for a pharmacy. | Je cherche une pharmacie. | Busco una farmacia. | Ich suche eine Apotheke.
The flowers are red and white. | Les fleurs sont rouges et blanches. | Las flores son rojas y blancas. |
  Die Blumen sind rot und weiß.
They live in a small village. | Ils habitent dans un petit village. | Viven en un pueblo pequeño. |
  Sie wohnen in einem kleinen Dorf.
He drinks milk every morning. | Il boit du lait tous les matins. | Él bebe leche todas las mañanas. |
  Er trinkt jeden Morgen Milch.
The window is broken. | La fenêtre est cassée. | La ventana está rota. | Das Fenster ist kaputt.
I like this music. | J'aime cette musique. | Me gusta esta música. | Ich mag diese Musik.
See you tomorrow! | À demain ! | ¡Hasta mañana! | Bis morgen!
Happy birthday! | Joyeux anniversaire ! | ¡Feliz cumpleaños! | Alles Gute zum Geburtstag!
The museum is closed on Tuesdays. | Le musée est fermé le mardi. | El museo cierra los martes. |
  Das Museum ist dienstags geschlossen.
She is buying bread and cheese. | Elle achète du pain et du fromage. | Ella compra pan y queso. |
  Sie kauft Brot und Käse.
My shoes are wet. | Mes chaussures sont mouillées. | Mis zapatos están mojados. | Meine Schuhe sind nass.
The moon is bright tonight. | La lune brille ce soir. | La luna brilla esta noche. |
  Der Mond scheint heute Nacht hell.
I have lost my key. | J'ai perdu ma clé. | He perdido mi llave. | Ich habe meinen Schlüssel verloren.
Our dog is three years old. | Notre chien a trois ans. | Nuestro perro tiene tres años. |
  Unser Hund ist drei Jahre alt.
The exam was difficult. | L'examen était difficile. | El examen fue difícil. | Die Prüfung war schwierig.
We ate fish yesterday. | Nous avons mangé du poisson hier. | Ayer comimos pescado. | Wir haben gestern Fisch gegessen.
Please close the door. | Fermez la porte, s'il vous plaît. | Cierre la puerta, por favor. |
  Schließen Sie bitte die Tür.
The bridge is very long. | Le pont est très long. | El puente es muy largo. | Die Brücke ist sehr lang.
I will call you later. | Je t'appellerai plus tard. | Te llamaré más tarde. | Ich rufe dich später an.
She has blue eyes. | Elle a les yeux bleus. | Ella tiene los ojos azules. | Sie hat blaue Augen.
The sun rises in the east. | Le soleil se lève à l'est. | El sol sale por el este. | Die Sonne geht im Osten auf.
Is this seat free? | Cette place est-elle libre ? | ¿Está libre este asiento? | Ist dieser Platz frei?
I am learning to swim. | J'apprends à nager. | Estoy aprendiendo a nadar. | Ich lerne schwimmen.
The doctor will come at noon. | Le médecin viendra à midi. | El médico vendrá al mediodía. |
  Der Arzt kommt am Mittag.
My name is Anna. | Je m'appelle Anna. | Me llamo Anna. | Ich heiße Anna.
The bag is under the chair. | Le sac est sous la chaise. | La bolsa está debajo de la silla. |
  Die Tasche ist unter dem Stuhl.
"""

WORDS = """
butterfly papillon mariposa Schmetterling;
squirrel écureuil ardilla Eichhörnchen; umbrella parapluie paraguas Regenschirm;
hospital hôpital hospital Krankenhaus; bicycle vélo bicicleta Fahrrad; potato pomme_de_terre patata Kartoffel;
strawberry fraise fresa Erdbeere; carrot carotte zanahoria Karotte; onion oignon cebolla Zwiebel;
pencil crayon lápiz Bleistift; scissors ciseaux tijeras Schere; mirror miroir espejo Spiegel;
kitchen cuisine cocina Küche;
bathroom salle_de_bains cuarto_de_baño Badezimmer; bedroom chambre dormitorio Schlafzimmer;
shirt chemise camisa Hemd; hat chapeau sombrero Hut; shoe chaussure zapato Schuh; mountain montagne montaña Berg;
river rivière río Fluss; lake lac lago See; forest forêt bosque Wald; island île isla Insel; cloud nuage nube Wolke;
summer été verano Sommer; autumn automne otoño Herbst; rabbit lapin conejo Kaninchen;
sheep mouton oveja Schaf; pig cochon cerdo Schwein; spider araignée araña Spinne; frog grenouille rana Frosch;
bookshop librairie librería Buchhandlung; newspaper journal periódico Zeitung; shoulder épaule hombro Schulter
"""


def documents(rng: Random) -> list[Document]:
    """Each sentence and each word into each language, where the translation differs from the English."""
    frames, layouts, found = Deck(rng, FRAMES), Deck(rng, LAYOUTS), []
    stems, questions = Deck(rng, STEMS), Deck(rng, WORD_QUESTIONS)
    for english, *translations in (line.split(" | ") for line in lines(SENTENCES)):
        for language, translation in zip(LANGUAGES, translations, strict=True):
            stem = stems.deal().format(l=language, c=COUNTRIES[language])
            user = with_input(asked(stem, frames.deal()), english, layouts.deal())
            found.append(Document(user=user, answer=translation, group=f"translation: {english}"))
    for english, *translations in (entry.split() for entry in WORDS.split(";")):
        for language, translation in zip(LANGUAGES, translations, strict=True):
            if translation.lower() == english:
                continue
            user = questions.deal().format(l=language, w=english)
            answer = translation.replace("_", " ")
            found.append(Document(user=user[0].upper() + user[1:], answer=answer, group=f"translation: {english}"))
    return found
