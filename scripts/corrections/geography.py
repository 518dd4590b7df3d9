"""Geography: countries, their money, languages and places."""

from .table import Concept, table

FAMILY = "geography"

CAPITALS = """
France=Paris; Germany=Berlin; Italy=Rome; Spain=Madrid; Portugal=Lisbon; Austria=Vienna; Belgium=Brussels;
Denmark=Copenhagen; Norway=Oslo; Sweden=Stockholm; Finland=Helsinki; Iceland=Reykjavik; Ireland=Dublin; Poland=Warsaw;
Hungary=Budapest; Romania=Bucharest; Bulgaria=Sofia; Greece=Athens; Croatia=Zagreb; Serbia=Belgrade; Slovenia=Ljubljana;
Slovakia=Bratislava; Estonia=Tallinn; Latvia=Riga; Lithuania=Vilnius; Russia=Moscow; Turkey=Ankara; Egypt=Cairo;
Morocco=Rabat; Tunisia=Tunis; Kenya=Nairobi; Ethiopia=Addis Ababa; Ghana=Accra; Senegal=Dakar; Uganda=Kampala;
Zambia=Lusaka; Zimbabwe=Harare; Iran=Tehran; Iraq=Baghdad; Afghanistan=Kabul; Pakistan=Islamabad; India=New Delhi;
Nepal=Kathmandu; Bangladesh=Dhaka; Thailand=Bangkok; Vietnam=Hanoi; Cambodia=Phnom Penh; Japan=Tokyo;
Mongolia=Ulaanbaatar; the Philippines=Manila; Canada=Ottawa; Cuba=Havana; Jamaica=Kingston; Argentina=Buenos Aires;
Peru=Lima; Colombia=Bogotá; Uruguay=Montevideo; Australia=Canberra
"""

CURRENCIES = """
Japan=yen; South Korea=won; China=yuan/renminbi; India=rupee; Thailand=baht; Vietnam=dong; Malaysia=ringgit;
Indonesia=rupiah; Mexico=peso; Brazil=real; South Africa=rand; Nigeria=naira; Ghana=cedi; Kenya=shilling; Ethiopia=birr;
Morocco=dirham; Saudi Arabia=riyal; Israel=shekel; Turkey=lira; Russia=ruble; Ukraine=hryvnia; Poland=zloty;
Hungary=forint; the Czech Republic=koruna/krona/krone; Denmark=krone/krona/koruna; Sweden=krona/krone/koruna;
Switzerland=franc; Australia=dollar; Egypt=pound; Germany=euro; Albania=lek; Serbia=dinar/denar; Kazakhstan=tenge;
Mongolia=tugrik; Myanmar=kyat; Laos=kip; Cambodia=riel/dollar; Bangladesh=taka; Afghanistan=afghani; Georgia=lari;
Armenia=dram; Azerbaijan=manat; Moldova=leu; North Macedonia=denar/dinar; Angola=kwanza; Botswana=pula; Zambia=kwacha;
Mozambique=metical; Honduras=lempira; Guatemala=quetzal; Peru=sol; Paraguay=guarani; Haiti=gourde; Costa Rica=colón;
Madagascar=ariary; Bhutan=ngultrum/rupee
"""

ADJECTIVES = """
France=French; Germany=German; Italy=Italian; Spain=Spanish; Portugal=Portuguese; Denmark=Danish; Norway=Norwegian;
Sweden=Swedish; Finland=Finnish; Ireland=Irish; Poland=Polish; Hungary=Hungarian; Greece=Greek; Turkey=Turkish;
Russia=Russian; Ukraine=Ukrainian; Switzerland=Swiss; Belgium=Belgian; the Netherlands=Dutch; Egypt=Egyptian;
Morocco=Moroccan; Kenya=Kenyan; Nigeria=Nigerian; Ghana=Ghanaian; Ethiopia=Ethiopian; Israel=Israeli; Iraq=Iraqi;
Iran=Iranian/Persian; Pakistan=Pakistani; India=Indian; Nepal=Nepalese/Nepali; China=Chinese; Japan=Japanese;
Vietnam=Vietnamese; Thailand=Thai; the Philippines=Filipino/Philippine; Indonesia=Indonesian; Canada=Canadian;
Mexico=Mexican; Cuba=Cuban; Brazil=Brazilian; Argentina=Argentine/Argentinian; Peru=Peruvian; Chile=Chilean;
Iceland=Icelandic; Cyprus=Cypriot; Malta=Maltese; Monaco=Monégasque; Madagascar=Malagasy; Austria=Austrian;
Bulgaria=Bulgarian; Jamaica=Jamaican
"""

LANGUAGES = """
France=French; Germany=German; Italy=Italian; Brazil=Portuguese; Argentina=Spanish; Japan=Japanese; Poland=Polish;
the Czech Republic=Czech/Slovak; Slovakia=Slovak/Czech/Hungarian; Hungary=Hungarian; Romania=Romanian;
Bulgaria=Bulgarian; Greece=Greek; Turkey=Turkish; Russia=Russian; Ukraine=Ukrainian/Russian; Latvia=Latvian/Russian;
Lithuania=Lithuanian/Russian; Estonia=Estonian/Russian; Iceland=Icelandic; Denmark=Danish; Sweden=Swedish;
Norway=Norwegian; the Netherlands=Dutch; Albania=Albanian; Croatia=Croatian/Serbian; Serbia=Serbian/Croatian;
Slovenia=Slovene; North Macedonia=Macedonian/Albanian; Georgia=Georgian/Russian; Armenia=Armenian/Russian;
Azerbaijan=Azerbaijani/Russian/Turkish; Iran=Persian/Farsi; Bangladesh=Bengali; Thailand=Thai; Vietnam=Vietnamese;
Laos=Lao; Cambodia=Khmer; Myanmar=Burmese; Indonesia=Indonesian/Malay; Malaysia=Malay/Indonesian; Mongolia=Mongolian;
South Korea=Korean; Israel=Hebrew/Arabic/Russian; Egypt=Arabic; Nepal=Nepali; Uzbekistan=Uzbek/Russian;
Turkmenistan=Turkmen/Russian; Somalia=Somali/Arabic; Austria=German; Cuba=Spanish
"""

CONTINENTS = """
France=Europe; Poland=Europe; Sweden=Europe; Greece=Europe; Hungary=Europe; Ireland=Europe; Slovakia=Europe;
Belgium=Europe; Bulgaria=Europe; Latvia=Europe; Japan=Asia; India=Asia; Thailand=Asia; Mongolia=Asia; Nepal=Asia;
Vietnam=Asia; Pakistan=Asia; Laos=Asia; Cambodia=Asia; Bangladesh=Asia; Kenya=Africa; Nigeria=Africa; Ghana=Africa;
Uganda=Africa; Angola=Africa; Mali=Africa; Zambia=Africa; Botswana=Africa; Senegal=Africa; Algeria=Africa;
Canada=North America; Mexico=North America; Cuba=North America; Jamaica=North America; Guatemala=North America;
Honduras=North America; Costa Rica=North America; Haiti=North America; Brazil=South America; Argentina=South America;
Peru=South America; Bolivia=South America; Uruguay=South America; Paraguay=South America; Ecuador=South America;
Chile=South America; New Zealand=Oceania; Fiji=Oceania; Samoa=Oceania; Tonga=Oceania; Vanuatu=Oceania; Tuvalu=Oceania
"""

LANDMARKS = """
the Eiffel Tower=Paris; the Colosseum=Rome; the Acropolis=Athens; the Kremlin=Moscow; Big Ben=London;
the Brandenburg Gate=Berlin; the Sagrada Família=Barcelona; the Prado=Madrid; the Rijksmuseum=Amsterdam;
the Manneken Pis=Brussels; the Little Mermaid statue=Copenhagen; the Vasa Museum=Stockholm; Charles Bridge=Prague;
Schönbrunn Palace=Vienna; Hagia Sophia=Istanbul; the Western Wall=Jerusalem; Al-Azhar Mosque=Cairo;
the Burj Khalifa=Dubai; the Kaaba=Mecca; the Taj Mahal=Agra; the Gateway of India=Mumbai; the Red Fort=Delhi;
the Forbidden City=Beijing; the Oriental Pearl Tower=Shanghai; the Petronas Towers=Kuala Lumpur; Wat Pho=Bangkok;
Merlion Park=Singapore; Bondi Beach=Sydney; the Statue of Liberty=New York/Paris/Tokyo;
the Golden Gate Bridge=San Francisco; the Space Needle=Seattle; the White House=Washington; the Alamo=San Antonio;
Fenway Park=Boston; Independence Hall=Philadelphia; the Hollywood Sign=Los Angeles; the Gateway Arch=St. Louis;
the CN Tower=Toronto; the Christ the Redeemer statue=Rio de Janeiro; Table Mountain=Cape Town; the Rialto Bridge=Venice;
the Uffizi Gallery=Florence; the La Scala opera house=Milan; the Alhambra=Granada; the Mezquita cathedral=Córdoba;
the Guinness Storehouse=Dublin; the Hermitage Museum=Saint Petersburg; Wawel Castle=Kraków;
the Frauenkirche with two onion domes=Munich; the Golden Pavilion temple=Kyoto; the Meiji Shrine=Tokyo;
Holyrood Palace=Edinburgh
"""

CONCEPTS = (
    Concept(
        family=FAMILY,
        name="capital city",
        templates=(
            "The capital of {0} is",
            "The capital city of {0} is called",
            "If you visit the capital of {0}, you are in",
            "{C} has its capital in",
            "On a map of {0}, the capital is labelled",
        ),
        facts=table(CAPITALS),
    ),
    Concept(
        family=FAMILY,
        name="currency",
        templates=(
            "The currency of {0} is the",
            "The official money used in {0} is the",
            "A bank in {0} keeps its accounts in a currency called the",
            "Before a trip to {0}, travellers change their money into the",
            "Shops in {0} set their prices in the local currency, the",
        ),
        facts=table(CURRENCIES),
    ),
    Concept(
        family=FAMILY,
        name="national adjective",
        templates=(
            "The adjective for things from {0} is",
            "Someone who comes from {0} is",
            "A passport issued by {0} is",
            "A company with its roots in {0} is",
        ),
        facts=table(ADJECTIVES),
    ),
    Concept(
        family=FAMILY,
        name="main language",
        templates=(
            "The main language spoken in {0} is",
            "Most people in {0} speak",
            "The language most used in the schools of {0} is",
            "Official letters in {0} are usually written in",
            "A visitor to {0} will mostly hear people speak",
        ),
        facts=table(LANGUAGES),
    ),
    Concept(
        family=FAMILY,
        name="continent",
        templates=(
            "{C} is a country in",
            "On the world map, {0} belongs to",
            "The continent that {0} belongs to is",
            "Geographers count {0} among the countries of",
            "A journey that ends in {0} ends in",
        ),
        facts=table(CONTINENTS),
    ),
    Concept(
        family=FAMILY,
        name="landmark city",
        templates=(
            "{C} can be visited in the city of",
            "The city where you find {0} is",
            "Tourists who want to see {0} travel to",
            "To stand in front of {0}, you must go to",
        ),
        facts=table(LANDMARKS),
    ),
)
