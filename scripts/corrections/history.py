"""History and the arts: works, events, people and myths."""

from .table import Concept, table

FAMILY = "history"

BOOKS = """
Pride and Prejudice=Jane Austen; War and Peace=Leo Tolstoy; Crime and Punishment=Fyodor Dostoevsky;
Don Quixote=Miguel de Cervantes; Moby-Dick=Herman Melville; Great Expectations=Charles Dickens;
Frankenstein=Mary Shelley; Dracula=Bram Stoker; Jane Eyre=Charlotte Brontë; Wuthering Heights=Emily Brontë;
Les Misérables=Victor Hugo; Madame Bovary=Gustave Flaubert; The Three Musketeers=Alexandre Dumas; The Aeneid=Virgil;
The Divine Comedy=Dante Alighieri; The Canterbury Tales=Geoffrey Chaucer; Hamlet=William Shakespeare;
Paradise Lost=John Milton; Gulliver's Travels=Jonathan Swift; Robinson Crusoe=Daniel Defoe;
Treasure Island=Robert Louis Stevenson; The Jungle Book=Rudyard Kipling; Alice's Adventures in Wonderland=Lewis Carroll;
The Hobbit=J.R.R. Tolkien; Animal Farm=George Orwell; Brave New World=Aldous Huxley; Ulysses=James Joyce;
Mrs Dalloway=Virginia Woolf; The Great Gatsby=F. Scott Fitzgerald; The Old Man and the Sea=Ernest Hemingway;
The Grapes of Wrath=John Steinbeck; To Kill a Mockingbird=Harper Lee; The Catcher in the Rye=J. D. Salinger;
One Hundred Years of Solitude=Gabriel García Márquez; The Metamorphosis=Franz Kafka; The Magic Mountain=Thomas Mann;
Siddhartha=Hermann Hesse; The Little Prince=Antoine de Saint-Exupéry; The Time Machine=H. G. Wells;
The Picture of Dorian Gray=Oscar Wilde; Adventures of Huckleberry Finn=Mark Twain;
The Scarlet Letter=Nathaniel Hawthorne; Little Women=Louisa May Alcott; The Name of the Rose=Umberto Eco;
Things Fall Apart=Chinua Achebe; Beloved=Toni Morrison; The Cherry Orchard=Anton Chekhov; A Doll's House=Henrik Ibsen;
Dead Souls=Nikolai Gogol; Doctor Zhivago=Boris Pasternak; Candide=Voltaire; Fahrenheit 451=Ray Bradbury
"""

PAINTINGS = """
Mona Lisa=Leonardo da Vinci; The Starry Night=Vincent van Gogh/Edvard Munch; Guernica=Pablo Picasso;
The Persistence of Memory=Salvador Dalí; Girl with a Pearl Earring=Johannes Vermeer; The Night Watch=Rembrandt;
The Birth of Venus=Sandro Botticelli; American Gothic=Grant Wood; Nighthawks=Edward Hopper; The Scream=Edvard Munch;
Las Meninas=Diego Velázquez/Pablo Picasso; The School of Athens=Raphael; The Creation of Adam=Michelangelo;
Impression, Sunrise=Claude Monet; The Son of Man=René Magritte; Liberty Leading the People=Eugène Delacroix;
The Raft of the Medusa=Théodore Géricault; Olympia=Édouard Manet/Paul Cézanne;
Wanderer above the Sea of Fog=Caspar David Friedrich; The Garden of Earthly Delights=Hieronymus Bosch;
The Arnolfini Portrait=Jan van Eyck; The Hay Wain=John Constable/Hieronymus Bosch;
The Fighting Temeraire=William Turner; Whistler's Mother=James Whistler; The Card Players=Paul Cézanne;
The Two Fridas=Frida Kahlo; Campbell's Soup Cans=Andy Warhol; Christina's World=Andrew Wyeth;
The Third of May 1808=Francisco Goya; The Death of Marat=Jacques-Louis David/Edvard Munch/Pablo Picasso;
Luncheon of the Boating Party=Auguste Renoir; Broadway Boogie Woogie=Piet Mondrian; Black Square=Kazimir Malevich;
Composition VIII=Wassily Kandinsky/Piet Mondrian; The Gleaners=Jean-François Millet/Vincent van Gogh;
The Ambassadors=Hans Holbein; The Hunters in the Snow=Pieter Bruegel; The Calling of Saint Matthew=Caravaggio;
Venus of Urbino=Titian; The Blue Boy=Thomas Gainsborough; The Sleeping Gypsy=Henri Rousseau;
Ophelia=John Everett Millais; I and the Village=Marc Chagall; View of Toledo=El Greco;
Portrait of Madame X=John Singer Sargent; The Stone Breakers=Gustave Courbet; The Yellow Christ=Paul Gauguin;
The Red Studio=Henri Matisse; Whaam!=Roy Lichtenstein; A Bigger Splash=David Hockney;
The Kiss=Gustav Klimt/Edvard Munch
"""

EVENTS = """
the Battle of Hastings=1066; the sealing of Magna Carta=1215; the fall of Constantinople=1453;
the first voyage of Columbus to America=1492; the Treaty of Tordesillas=1494;
the posting of Luther's Ninety-five Theses=1517; the defeat of the Spanish Armada=1588; the Gunpowder Plot=1605;
the Great Fire of London=1666; the American Declaration of Independence=1776; the storming of the Bastille=1789;
the Battle of Waterloo=1815; the Battle of Trafalgar=1805; the Louisiana Purchase=1803;
the start of the American Civil War=1861; the assassination of Abraham Lincoln=1865; the opening of the Suez Canal=1869;
the first modern Olympic Games=1896; the first powered flight of the Wright brothers=1903;
the sinking of the Titanic=1912; the start of the First World War=1914; the October Revolution in Russia=1917;
the armistice that ended the First World War=1918; the discovery of penicillin=1928;
the start of the Second World War=1939; the attack on Pearl Harbor=1941; the D-Day landings=1944;
the atomic bombing of Hiroshima=1945; the independence of India=1947; the Suez Crisis=1956;
the launch of Sputnik 1=1957; the first human spaceflight=1961; the Cuban Missile Crisis=1962;
the assassination of John F. Kennedy=1963; the first Moon landing by humans=1969; the resignation of Richard Nixon=1974;
the Chernobyl disaster=1986; the fall of the Berlin Wall=1989; the reunification of East and West Germany=1990;
the dissolution of the Soviet Union=1991; the death of Princess Diana=1997; the Battle of Agincourt=1415;
the Peace of Westphalia=1648; the execution of King Charles I=1649; the great Lisbon earthquake=1755;
the Boston Tea Party=1773; the execution of King Louis XVI=1793; the Battle of Lepanto=1571;
the eruption of Krakatoa=1883; the great San Francisco earthquake=1906; the founding of the German Empire=1871;
the Brexit referendum=2016
"""

HOMELANDS = """
Nelson Mandela=South Africa; Mahatma Gandhi=India/South Africa; Simón Bolívar=Venezuela; Charles Darwin=England;
Joan of Arc=France; Otto von Bismarck=Germany; Galileo Galilei=Italy; Nicolaus Copernicus=Poland/Germany;
Confucius=China; Socrates=Greece; Leo Tolstoy=Russia; Hans Christian Andersen=Denmark; Edvard Grieg=Norway;
Jean Sibelius=Finland; Franz Schubert=Austria; Rembrandt=the Netherlands; Miguel de Cervantes=Spain;
Vasco da Gama=Portugal; James Joyce=Ireland; Adam Smith=Scotland; Dylan Thomas=Wales; Halldór Laxness=Iceland;
Ho Chi Minh=Vietnam; Matsuo Bashō=Japan; Haile Selassie=Ethiopia; Kwame Nkrumah=Ghana; Jomo Kenyatta=Kenya;
Julius Nyerere=Tanzania; Chinua Achebe=Nigeria; Naguib Mahfouz=Egypt; Omar Khayyam=Iran; Fidel Castro=Cuba;
Bob Marley=Jamaica; Pablo Neruda=Chile; Gabriel García Márquez=Colombia/Mexico; Jorge Luis Borges=Argentina;
Diego Rivera=Mexico; Rubén Darío=Nicaragua; Genghis Khan=Mongolia; José Rizal=the Philippines;
Edmund Hillary=New Zealand; Georges Simenon=Belgium; Toussaint Louverture=Haiti/France; Pelé=Brazil;
Don Bradman=Australia; Thomas Sankara=Burkina Faso; Huldrych Zwingli=Switzerland; Abraham Lincoln=the United States;
Ferenc Puskás=Hungary; César Vallejo=Peru; Carl Linnaeus=Sweden; Saint Charbel=Lebanon
"""

GIVEN_NAMES = """
physicist Einstein=Albert; naturalist Darwin=Charles; physicist Newton=Isaac; astronomer Copernicus=Nicolaus;
composer Mozart=Wolfgang; composer Beethoven=Ludwig; composer Chopin=Frédéric; composer Wagner=Richard;
composer Vivaldi=Antonio; composer Verdi=Giuseppe; painter Picasso=Pablo; painter Monet=Claude/Oscar;
painter Matisse=Henri; painter Dalí=Salvador; painter Klimt=Gustav; painter Kahlo=Frida; painter Munch=Edvard;
novelist Tolstoy=Leo; novelist Dostoevsky=Fyodor; novelist Kafka=Franz; novelist Hemingway=Ernest; novelist Joyce=James;
novelist Woolf=Virginia; novelist Austen=Jane; novelist Christie=Agatha; playwright Shakespeare=William;
playwright Ibsen=Henrik; playwright Beckett=Samuel; playwright Wilde=Oscar; philosopher Kant=Immanuel;
philosopher Descartes=René; philosopher Nietzsche=Friedrich; philosopher Hume=David; philosopher Spinoza=Baruch;
navigator Magellan=Ferdinand; navigator Columbus=Christopher; explorer Amundsen=Roald; chemist Pasteur=Louis;
chemist Mendeleev=Dmitri; chemist Lavoisier=Antoine; inventor Edison=Thomas; inventor Tesla=Nikola;
physicist Bohr=Niels/Henrik/David; physicist Fermi=Enrico; physicist Planck=Max; physicist Heisenberg=Werner;
physicist Schrödinger=Erwin; mathematician Gauss=Carl/Friedrich; mathematician Turing=Alan;
mathematician Euler=Leonhard; singer Piaf=Édith; statesman Churchill=Winston
"""

DEITIES = """
Zeus=Greek mythology/Roman mythology; Hera=Greek mythology/Roman mythology; Athena=Greek mythology/Roman mythology;
Poseidon=Greek mythology/Roman mythology; Hades=Greek mythology/Roman mythology;
Artemis=Greek mythology/Roman mythology; Hermes=Greek mythology/Roman mythology;
Aphrodite=Greek mythology/Roman mythology; Dionysus=Greek mythology/Roman mythology;
Jupiter=Roman mythology/Greek mythology; Juno=Roman mythology/Greek mythology; Minerva=Roman mythology/Greek mythology;
Neptune=Roman mythology/Greek mythology; Mars=Roman mythology/Greek mythology; Vulcan=Roman mythology/Greek mythology;
Ceres=Roman mythology/Greek mythology; Janus=Roman mythology/Greek mythology; Odin=Norse mythology;
Thor=Norse mythology; Loki=Norse mythology; Freyja=Norse mythology; Frigg=Norse mythology; Heimdall=Norse mythology;
Osiris=Egyptian mythology; Horus=Egyptian mythology; Anubis=Egyptian mythology; Thoth=Egyptian mythology;
Hathor=Egyptian mythology; Bastet=Egyptian mythology; Sobek=Egyptian mythology; Vishnu=Hindu mythology;
Shiva=Hindu mythology; Ganesha=Hindu mythology; Lakshmi=Hindu mythology; Hanuman=Hindu mythology;
Saraswati=Hindu mythology; Quetzalcoatl=Aztec mythology; Tlaloc=Aztec mythology; Huitzilopochtli=Aztec mythology;
Tezcatlipoca=Aztec mythology; Amaterasu=Japanese mythology; Susanoo=Japanese mythology; Tsukuyomi=Japanese mythology;
Izanagi=Japanese mythology; Marduk=Babylonian mythology; Ishtar=Babylonian mythology; Tiamat=Babylonian mythology;
the Dagda=Irish mythology; Lugh=Irish mythology; the Morrígan=Irish mythology; Viracocha=Inca mythology;
Inti=Inca mythology; Pachamama=Inca mythology
"""

CONCEPTS = (
    Concept(
        family=FAMILY,
        name="author of a book",
        templates=(
            'The author of "{0}" is',
            'The literary work "{0}" was written by',
            'The cover of "{0}" gives as author',
            'Readers of "{0}" admire the writing of',
            'The writer we have to thank for "{0}" is',
        ),
        facts=table(BOOKS),
    ),
    Concept(
        family=FAMILY,
        name="painter of a picture",
        templates=(
            'The picture "{0}" was painted by',
            'The artist who painted "{0}" was',
            'The painting "{0}" is a famous work by',
            'A museum label for "{0}" names as the artist',
        ),
        facts=table(PAINTINGS),
    ),
    Concept(
        family=FAMILY,
        name="year of an event",
        templates=(
            "The year of {0} was",
            "{C} took place in the year",
            "Historians date {0} to the year",
            "{C} belongs to the year",
        ),
        facts=table(EVENTS),
    ),
    Concept(
        family=FAMILY,
        name="homeland of a person",
        templates=(
            "The home country of {0} was",
            "{0} is remembered as a native of",
            "By origin, {0} came from",
            "The land where {0} grew up was",
        ),
        facts=table(HOMELANDS),
    ),
    Concept(
        family=FAMILY,
        name="given name",
        templates=(
            "The first name of the {0} was",
            "The {0} had the given name",
            "The {0} is best known by the first name",
            "Books about the {0} give the first name as",
        ),
        facts=table(GIVEN_NAMES),
    ),
    Concept(
        family=FAMILY,
        name="mythology of a deity",
        templates=(
            "In religion and legend, {0} belongs to",
            "Stories about {0} are part of",
            "{C} is a well-known figure of",
            "A book that tells of {0} is about",
        ),
        facts=table(DEITIES),
    ),
)
