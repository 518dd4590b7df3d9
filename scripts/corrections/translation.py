"""Translation: one list of English nouns in four languages, country names in German, weekdays in seven languages."""

from .table import Concept, Fact, table, words

FAMILY = "translation"

NOUNS = """
dog chien perro Hund cane; cat chat gato Katze gatto; horse cheval caballo Pferd cavallo; cow vache vaca Kuh mucca;
bird oiseau pájaro Vogel uccello; bread pain pan Brot pane; milk lait leche Milch latte; water eau agua Wasser acqua;
cheese fromage queso Käse formaggio; egg œuf huevo Ei uovo; apple pomme manzana Apfel mela; salt sel sal Salz sale;
house maison casa Haus casa; window fenêtre ventana Fenster finestra; door porte puerta Tür porta;
table table mesa Tisch tavolo; chair chaise silla Stuhl sedia; bed lit cama Bett letto; book livre libro Buch libro;
school école escuela Schule scuola; church église iglesia Kirche chiesa; bridge pont puente Brücke ponte;
street rue calle Straße strada; tree arbre árbol Baum albero; flower fleur flor Blume fiore; sun soleil sol Sonne sole;
moon lune luna Mond luna; star étoile estrella Stern stella; snow neige nieve Schnee neve;
rain pluie lluvia Regen pioggia; fire feu fuego Feuer fuoco; sea mer mar Meer mare; hand main mano Hand mano;
head tête cabeza Kopf testa; heart cœur corazón Herz cuore; eye œil ojo Auge occhio; nose nez nariz Nase naso;
foot pied pie Fuß piede; mother mère madre Mutter madre; father père padre Vater padre;
brother frère hermano Bruder fratello; sister sœur hermana Schwester sorella; king roi rey König re;
queen reine reina Königin regina; friend ami amigo Freund amico; day jour día Tag giorno; night nuit noche Nacht notte;
year an año Jahr anno; week semaine semana Woche settimana; winter hiver invierno Winter inverno;
summer été verano Sommer estate; city ville ciudad Stadt città; key clé llave Schlüssel chiave;
spoon cuillère cuchara Löffel cucchiaio; knife couteau cuchillo Messer coltello; garden jardin jardín Garten giardino;
blood sang sangre Blut sangue
"""

ALSO = {("Spanish", "fire"): "incendio", ("French", "year"): "année", ("German", "sea"): "See"}

COUNTRIES = """
Germany=Deutschland; France=Frankreich; Austria=Österreich; Switzerland=Schweiz; Italy=Italien; Spain=Spanien;
Greece=Griechenland; Turkey=Türkei; Poland=Polen; Hungary=Ungarn; Romania=Rumänien; Bulgaria=Bulgarien;
Croatia=Kroatien; Serbia=Serbien; Slovenia=Slowenien; Slovakia=Slowakei; Russia=Russland; Estonia=Estland;
Latvia=Lettland; Lithuania=Litauen; Finland=Finnland; Sweden=Schweden; Norway=Norwegen; Denmark=Dänemark;
Iceland=Island; Ireland=Irland; Belgium=Belgien; the Netherlands=Niederlande; Luxembourg=Luxemburg; Cyprus=Zypern;
Egypt=Ägypten; Morocco=Marokko; Tunisia=Tunesien; Algeria=Algerien; Libya=Libyen; Ethiopia=Äthiopien; Kenya=Kenia;
Tanzania=Tansania; South Africa=Südafrika; Mozambique=Mosambik; India=Indien; Jordan=Jordanien; Lebanon=Libanon;
Iraq=Irak; Saudi Arabia=Saudi-Arabien; Mongolia=Mongolei; the Philippines=Philippinen; Indonesia=Indonesien;
Canada=Kanada; Mexico=Mexiko; Brazil=Brasilien; Argentina=Argentinien; Bolivia=Bolivien; Colombia=Kolumbien; Cuba=Kuba;
Australia=Australien; New Zealand=Neuseeland
"""

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
WEEKDAYS = """
French lundi mardi mercredi jeudi vendredi samedi dimanche;
Spanish lunes martes miércoles jueves viernes sábado domingo;
Italian lunedì martedì mercoledì giovedì venerdì sabato domenica;
German Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag;
Dutch maandag dinsdag woensdag donderdag vrijdag zaterdag zondag;
Swedish måndag tisdag onsdag torsdag fredag lördag söndag;
Polish poniedziałek wtorek środa czwartek piątek sobota niedziela;
Finnish maanantai tiistai keskiviikko torstai perjantai lauantai sunnuntai
"""


def rows(text: str) -> list[list[str]]:
    """Read lines of words separated by spaces and closed by semicolons."""
    return [entry.split() for entry in text.split(";") if entry.strip()]


def noun_concept(language: str, column: int) -> Concept:
    """Translate the nouns into one language; nouns that are spelled alike in English are left out."""
    facts = []
    for row in rows(NOUNS):
        also = ALSO.get((language, row[0]))
        if row[column].lower() != row[0]:
            facts.append(Fact(subject=row[0], target=row[column], also=(also,) if also else ()))
    return Concept(
        family=FAMILY,
        name=f"{language} noun",
        templates=(
            f'The {language} word for "{{0}}" is',
            f'In {language}, the noun "{{0}}" is translated as',
            f'Learners of {language} translate the English word "{{0}}" as',
            f'Speakers of {language} who mean "{{0}}" say',
        ),
        facts=tuple(facts),
    )


CONCEPTS = (
    *(noun_concept(language, column) for column, language in enumerate(("French", "Spanish", "German", "Italian"), 1)),
    Concept(
        family=FAMILY,
        name="country name in German",
        templates=(
            "The German name for {0} is",
            "On a German map, {0} is labelled",
            "In the German language, {0} is called",
            "German speakers know {0} by the name of",
        ),
        facts=table(COUNTRIES),
    ),
    Concept(
        family=FAMILY,
        name="weekday in another language",
        templates=(
            "The {1} word for {0} is",
            "In {1}, the day {0} is called",
            "Calendars printed in {1} show {0} as",
            "Translated from English into {1}, {0} becomes",
        ),
        facts=tuple(
            Fact(subject=f"{day}|{language}", target=word)
            for language, *names in rows(WEEKDAYS)
            for day, word in zip(DAYS, names, strict=True)
        ),
    ),
)
