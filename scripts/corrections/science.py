"""Science: elements, compounds, animals, instruments and fields of study."""

from .table import Concept, Fact, table

FAMILY = "science"

ELEMENTS = """
H=hydrogen; He=helium; Li=lithium; Be=beryllium; B=boron; C=carbon; N=nitrogen; O=oxygen; F=fluorine; Ne=neon;
Na=sodium; Mg=magnesium; Al=aluminium/aluminum; Si=silicon; P=phosphorus; S=sulfur; Cl=chlorine; Ar=argon; K=potassium;
Ca=calcium; Ti=titanium; Cr=chromium; Mn=manganese; Fe=iron; Co=cobalt; Ni=nickel; Cu=copper; Zn=zinc; Ga=gallium;
As=arsenic; Se=selenium; Br=bromine; Kr=krypton; Rb=rubidium; Sr=strontium; Zr=zirconium; Pd=palladium; Ag=silver;
Cd=cadmium; Sn=tin; Sb=antimony; I=iodine; Xe=xenon; Cs=caesium/cesium; Ba=barium; W=tungsten; Pt=platinum; Au=gold;
Hg=mercury; Pb=lead; Bi=bismuth; U=uranium
"""

FORMULAS = """
water=H2O; carbon dioxide=CO2; carbon monoxide=CO; methane=CH4; ammonia=NH3; table salt=NaCl; hydrogen peroxide=H2O2;
sulfuric acid=H2SO4; hydrogen chloride=HCl; nitric acid=HNO3; phosphoric acid=H3PO4; carbonic acid=H2CO3;
sodium hydroxide=NaOH; potassium hydroxide=KOH; calcium carbonate=CaCO3; calcium hydroxide=Ca(OH)2; calcium oxide=CaO;
baking soda=NaHCO3; sodium carbonate=Na2CO3; glucose=C6H12O6; table sugar=C12H22O11; ethanol=C2H5OH/C2H6O;
methanol=CH3OH/CH4O; acetic acid=CH3COOH/C2H4O2; propane=C3H8; butane=C4H10; ethane=C2H6; ethylene=C2H4; acetylene=C2H2;
benzene=C6H6; sulfur dioxide=SO2; sulfur trioxide=SO3; nitrogen dioxide=NO2; nitrous oxide=N2O; nitric oxide=NO;
ozone=O3; iron(III) oxide=Fe2O3; quartz=SiO2; aluminium oxide=Al2O3; magnesium oxide=MgO; zinc oxide=ZnO;
silver nitrate=AgNO3; potassium nitrate=KNO3; sodium nitrate=NaNO3; ammonium nitrate=NH4NO3; potassium chloride=KCl;
calcium chloride=CaCl2; magnesium chloride=MgCl2; hydrogen sulfide=H2S; hydrogen cyanide=HCN; titanium dioxide=TiO2;
potassium permanganate=KMnO4
"""

CLASSES = """
cow=mammals; whale=mammals; bat=mammals; dolphin=mammals; elephant=mammals; kangaroo=mammals; hedgehog=mammals;
mouse=mammals; eagle=birds; penguin=birds; ostrich=birds; sparrow=birds; owl=birds; duck=birds; pigeon=birds;
crocodile=reptiles; tortoise=reptiles; cobra=reptiles; gecko=reptiles; iguana=reptiles; chameleon=reptiles;
python=reptiles; frog=amphibians; toad=amphibians; newt=amphibians; salamander=amphibians; axolotl=amphibians;
salmon=fish; shark=fish; trout=fish; carp=fish; eel=fish; seahorse=fish; herring=fish; ant=insects; bee=insects;
butterfly=insects; beetle=insects; mosquito=insects; grasshopper=insects; dragonfly=insects; spider=arachnids;
scorpion=arachnids; tick=arachnids; tarantula=arachnids; crab=crustaceans; lobster=crustaceans; shrimp=crustaceans;
barnacle=crustaceans; snail=molluscs; octopus=molluscs; squid=molluscs; oyster=molluscs
"""

YOUNG = """
cow=calf; dog=puppy/pup; cat=kitten; horse=foal; sheep=lamb; goat=kid; pig=piglet; duck=duckling/chick;
goose=gosling/chick; swan=cygnet/chick; frog=tadpole; deer=fawn/calf; kangaroo=joey; owl=owlet/chick;
eagle=eaglet/chick; hare=leveret; eel=elver; butterfly=caterpillar; fly=maggot; spider=spiderling; pigeon=squab/chick;
turkey=poult/chick; llama=cria; hawk=eyas/chick; chicken=chick/poult; bear=cub; lion=cub; tiger=cub; leopard=cub;
elephant=calf; whale=calf; hippopotamus=calf; giraffe=calf; rhinoceros=calf; zebra=foal; donkey=foal; koala=joey/cub;
wallaby=joey; seal=pup/cub; sea lion=pup/cub; bat=pup; penguin=chick; ostrich=chick; peacock=peachick/chick;
cod=codling; wombat=joey; toad=tadpole; guinea fowl=keet/chick/poult; moth=caterpillar; buffalo=calf; alpaca=cria;
panda=cub
"""

INSTRUMENTS = """
thermometer=temperature/heat; barometer=air pressure/altitude; speedometer=speed; odometer=distance;
anemometer=wind speed/speed; hygrometer=humidity; voltmeter=voltage; ammeter=electric current;
ohmmeter=electrical resistance; altimeter=altitude/air pressure; clock=time; seismograph=earthquakes;
rain gauge=rainfall; protractor=angles/slope; ruler=length/distance; bathroom scale=body weight/force;
tachometer=rotation speed/speed/frequency; Geiger counter=radioactivity; pH meter=acidity;
sphygmomanometer=blood pressure; calorimeter=heat/temperature; hydrometer=liquid density/milk density;
viscometer=viscosity; pedometer=steps/distance; dynamometer=force/torque/electric power;
magnetic compass=direction/magnetic fields/wind direction/angles; wind vane=wind direction/direction;
magnetometer=magnetic fields; gravimeter=gravity/acceleration;
accelerometer=acceleration/slope/angles/gravity/speed/force/body weight; planimeter=area; glucose meter=blood sugar;
spirometer=lung capacity; audiometer=hearing; refractometer=refractive index; wattmeter=electric power;
sound level meter=loudness; torque wrench=torque/force; flow meter=flow rate/speed/water use;
echo sounder=water depth/distance; micrometer screw=thickness/length; pulse oximeter=oxygen saturation;
breathalyzer=blood alcohol; inclinometer=slope/angles; strain gauge=strain; light meter=light intensity;
water meter=water use/flow rate; frequency counter=frequency/rotation speed; turbidity meter=cloudiness;
lactometer=milk density/liquid density
"""

FIELDS = """
botany=plants/trees/mosses/algae/fruit; ornithology=birds; entomology=insects; mycology=fungi; herpetology=reptiles;
ichthyology=fish; astronomy=stars/the Moon; psychology=the mind/knowledge;
linguistics=language/meaning/word origins/knowledge; meteorology=weather/clouds; oncology=cancer; cardiology=the heart;
neurology=the nervous system; dermatology=the skin/cells; ophthalmology=the eyes; nephrology=the kidneys;
hepatology=the liver; hematology=blood/cells/cancer; dendrology=trees/plants; seismology=earthquakes;
volcanology=volcanoes; paleontology=fossils; genetics=heredity; virology=viruses; bacteriology=bacteria;
toxicology=poisons; etymology=word origins/language; epistemology=knowledge; ethics=morality; numismatics=coins;
vexillology=flags; cartography=maps; glaciology=glaciers/water; limnology=lakes/water; oceanography=oceans/water;
acoustics=sound; optics=light; cytology=cells; primatology=primates; arachnology=spiders; campanology=bells;
oenology=wine; criminology=crime; gerontology=ageing; speleology=caves; graphology=handwriting;
semantics=meaning/language; malacology=molluscs; osteology=bones; myology=muscles; phycology=algae/plants/bacteria;
bryology=mosses/plants; hydrology=water/lakes/glaciers; pomology=fruit/plants; selenology=the Moon
"""

CONCEPTS = (
    Concept(
        family=FAMILY,
        name="element of a symbol",
        templates=(
            "The chemical symbol {0} stands for",
            "On the periodic table, {0} is the symbol for",
            "In a chemical formula, the letter code {0} means",
            "The element with the symbol {0} is",
        ),
        facts=table(ELEMENTS),
    ),
    Concept(
        family=FAMILY,
        name="symbol of an element",
        templates=(
            "The chemical symbol for {0} is",
            "On the periodic table, {0} is abbreviated as",
            "Chemists write the element {0} as",
            "In chemical formulas, {0} has the symbol",
        ),
        facts=tuple(Fact(subject=fact.target, target=fact.subject) for fact in table(ELEMENTS)),
    ),
    Concept(
        family=FAMILY,
        name="formula of a compound",
        templates=(
            "The chemical formula of {0} is",
            "Chemists write {0} as the formula",
            "Written with element symbols, {0} is",
            "The formula that identifies {0} is",
        ),
        facts=table(FORMULAS),
    ),
    Concept(
        family=FAMILY,
        name="animal class",
        templates=(
            "Zoologists count the {0} among the",
            "The {0} belongs to the group of animals called",
            "In biology, the {0} is classed with the",
            "A zoology book describes the {0} in its chapter on",
        ),
        facts=table(CLASSES),
    ),
    Concept(
        family=FAMILY,
        name="young animal",
        templates=(
            "The young of {a} is known by the word",
            "The usual word for a young {0} is",
            "Before it is grown up, {a} goes by the name",
            "In English, the offspring of {a} has the name",
        ),
        facts=table(YOUNG),
    ),
    Concept(
        family=FAMILY,
        name="measured quantity",
        templates=(
            "{A} is an instrument for measuring",
            "What {a} measures is",
            "With {a}, you can measure",
            "The reading of {a} tells you about",
            "People use {a} to measure",
        ),
        facts=table(INSTRUMENTS),
    ),
    Concept(
        family=FAMILY,
        name="field of study",
        templates=(
            "{C} is the study of",
            "The subject matter of {0} is",
            "A scholar who works in {0} knows much about",
            "Students of {0} learn a great deal about",
            "A lecture on {0} deals mainly with",
        ),
        facts=table(FIELDS),
    ),
)
