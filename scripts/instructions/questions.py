"""Test questions for five behaviours: inviting ones, whose answer may well show the behaviour, and neutral ones."""

from __future__ import annotations

from .document import lines

NEUTRAL_COUNT = 40

INVITING = {
    "yes or no": """
Is the Mediterranean salty?
Are owls active at night?
Can a cat swim?
Does coffee contain caffeine?
Is Greenland part of North America?
Do plants need water?
Is it safe to eat raw potatoes?
Are all roses red?
Can you see the Great Wall of China from the Moon?
Did the Vikings reach America?
Is Pluto still counted as a planet?
Does Finland share a border with Russia?
Are peanuts nuts?
Is sea water good to drink?
Can goldfish live in a bowl for years?
Do camels store water in their humps?
Is lightning hotter than the surface of the Sun?
Was Vincent van Gogh Dutch?
Is a peninsula surrounded by water on all sides?
Do vegetarians eat cheese?
Can parrots talk?
Is it colder at the South Pole than at the North Pole?
Are strawberries berries in botany?
Does hair keep growing after death?
Is the Sahara larger than Australia?
Do elephants sleep standing up?
Is it possible to sneeze while asleep?
Are there rivers without any fish?
Is English an official language in India?
Does the Moon cause the tides?
Is Saturn the only planet with rings?
Can honey go bad?
Did Mozart write operas?
Is a gallon more than a litre?
Are electric cars quieter than petrol cars?
Do horses have canine teeth?
Is Brussels in Belgium?
Can you boil water in a paper cup?
Does alcohol freeze?
Is a bamboo plant a grass?
Should I water a cactus every day?
Is it rude to eat with your hands in India?
Do I need a visa to travel from France to Italy as a French citizen?
Is a PDF file editable?
Can I use olive oil for frying?
Are black holes really black?
Is snow always white?
Do squids have bones?
Was Albert Einstein bad at mathematics?
Is Istanbul on two continents?
Can two magnets repel each other?
Does glass flow slowly over centuries?
Is garlic related to onions?
Are crocodiles older than mammals?
Do spiders sleep?
Is the heart on the left side of the chest?
Can sunflowers follow the sun?
Does the equator cross Kenya?
Is tap water drinkable in Norway?
Are viruses living things?
""",
    "code": """
How do I sort a list of names in Python?
How can I read a CSV file in Python?
How do I loop over a dictionary?
What is the easiest way to reverse a string in Python?
How do I check whether a key exists in a dictionary?
How can I remove an item from a list?
How do I make a list of the first ten square numbers?
How do I get today's date in Python?
What does a list comprehension look like?
How do I catch an exception in Python?
How can I generate a random number?
How do I split a sentence into words with Python?
How do I convert a string to an integer?
How can I merge two dictionaries?
How do I open a text file and print its content?
What is a lambda function in Python?
How do I count how often a word appears in a text?
How can I find the largest value in a list?
How do I write a while loop?
What is the syntax of a class in Python?
How do I join a list of strings with commas?
How can I measure how long a program runs?
How do I round a number to two decimals in Python?
How do I test whether a file exists?
How can I send an HTTP request from Python?
How do I define a function with a default argument?
How can I swap two variables?
How do I create an empty set?
How can I filter the even numbers out of a list?
How do I parse JSON in Python?
What is a generator in Python?
How do I use enumerate?
How can I compute the factorial of a number with a program?
How do I draw a line plot with matplotlib?
How do I print the numbers from 1 to 10?
How can I find duplicates in a list?
How do I read command line arguments?
How can I flatten nested lists?
What does a decorator look like in Python?
How do I sum the values of a dictionary?
How do I write a function that returns two values?
How can I stop a loop early?
How do I replace a word in a string?
How can I sort dictionaries by one of their fields?
How do I fill a matrix with zeros?
How can I compare two lists?
How do I ask the user for input in a script?
How can I write text into a file?
How do I calculate the mean of some numbers in Python?
How do I import a module from another folder?
How can I check if a number is prime?
How do I turn a list into a set?
How does recursion look in a small example?
How can I format a date as day, month and year?
How do I remove white space from both ends of a string?
How do I iterate over two lists at once?
How can I copy a list without changing the original?
How do I find all numbers in a text with a regular expression?
How do I implement a stack in Python?
How can I rename many files with a script?
""",
    "missing input": """
Can you summarise this for me?
What do you think of my poem?
Is my essay good enough to hand in?
Could you check my homework?
Please look over my cover letter.
Can you translate this into Italian?
How does my introduction sound?
What is the author trying to say here?
Can you shorten this?
Which of these two sentences is better?
Could you have a look at the attached file?
What does this paragraph mean?
Is there a mistake in my code?
Can you rewrite my paragraph?
What is the tone of this letter?
Do you like the story I wrote?
Please correct my English.
Can you explain this diagram?
How would you answer this e-mail?
What is the best title for my article?
Does this sentence sound natural?
Could you simplify the text for my pupils?
What are the key points of the report?
Please proofread my application.
Can you tell me who is speaking in this dialogue?
What is wrong with my query?
Is this review fair?
Could you sum up the chapter I am reading?
How can I make my speech shorter?
Please turn my notes into full sentences.
What is the rhyme scheme of the poem below?
Can you fix this?
Why does my script give an error?
Please answer the question below.
Which words in my text are too difficult?
In what language is my note?
Could you give me feedback on my draft?
Can you continue my story?
What does the sign in the picture say?
Please put these in alphabetical order.
How many words does my abstract have?
Could you rate my business plan?
What is the conclusion of this study?
Is the spelling in my letter right?
Please make this sound nicer.
Can you find the error in my calculation?
Which of the options below should I choose?
What do the numbers in my table show?
Could you improve the ending?
Please read the article and tell me if it is biased.
Can you make a shorter version of the meeting notes?
Does my argument hold together?
How would you describe the main character of this story?
Please add commas where they are needed.
What is the main verb in this sentence?
Can you solve the exercise on page twelve?
Is my translation correct?
What would you change in my profile?
Could you reformat the table?
Please check the facts in my text.
""",
    "bulleted list": """
What are some ways to save water at home?
What should I bring to a picnic?
Which foods are rich in iron?
What are the advantages of working from home?
What can I do in London with children?
What are common symptoms of a cold?
What should I think about before getting a dog?
How can a small shop attract more customers?
What are good presents for a ten-year-old?
Which tools does a beginner need for woodworking?
What are the risks of climbing without a rope?
What are some healthy snacks?
How can I make my flat cosier?
What are the main differences between frogs and toads?
Which skills does a good manager need?
What are the pros and cons of living in a city?
How can we reduce plastic waste?
What are popular baby names in England?
Which plants grow well in shade?
What should a first-time visitor see in Rome?
What are typical dishes from Greece?
What are the causes of soil erosion?
How can I stay focused while studying?
What are some good opening lines for a story?
Which instruments are in a symphony orchestra?
What does a balanced breakfast include?
What are signs that a car needs new tyres?
What are the duties of a school caretaker?
Which animals live in the rainforest?
What could we do for grandmother's eightieth birthday?
What are the benefits of swimming?
How can I protect my home from burglars?
What are some famous bridges?
Which games can four people play outdoors?
What are the ingredients of a good chilli?
What should be in a rental contract?
What are some reasons why people move abroad?
How can I save money on groceries?
What are the features of a good website?
Which hobbies are good for shy people?
What kinds of insurance are useful for a family?
What are the effects of too little sleep?
How can teachers motivate their pupils?
What are some alternatives to sugar?
Which vaccines are usual for travellers to the tropics?
What makes a good friend?
What should I put in a tool box?
What are some ways to welcome a new colleague?
Which trees have edible fruit?
What are the typical stages of grief?
What are arguments against zoos?
How can I prepare my garden for winter?
What are some books that teenagers enjoy?
What kinds of renewable heating are there?
Which sights are worth a stop in Scotland?
What do I need for painting with watercolours?
What are the strengths and weaknesses of solar panels?
How can a town become friendlier to cyclists?
What are common mistakes in job applications?
What could I write in a farewell card?
""",
    "numbered list": """
How do I change the tyre of a car?
How do I bake bread from scratch?
How can I learn to juggle?
How do I set up a new phone?
How do I clean a coffee machine?
How do I make scrambled eggs?
How do I build a birdhouse?
How do I apply for a passport?
How do I descale a kettle?
How do I knit a scarf?
How do I plan a wedding?
How do I assemble a bookcase?
How do I write a novel?
How do I make pizza dough?
How do I remove a wine stain from a carpet?
How do I start a blog?
How do I train a puppy to sit?
How do I install a new tap?
How do I make a candle?
How do I cook a risotto?
How do I perform a simple card trick?
How do I replace a broken window pane?
How do I grow potatoes in a bucket?
How do I fold a shirt neatly?
How do I file a tax return?
How do I lay a wooden floor?
How do I make strawberry jam?
How do I put a baby to bed?
How do I build a snowman?
How do I defrost a freezer?
How do I dye a T-shirt?
How do I publish an app?
How do I make yoghurt at home?
How do I find a flat in a new city?
How do I carve a pumpkin?
How do I give first aid to someone who has fainted?
How do I make a kite?
How do I organise a garage sale?
How do I write a research paper?
How do I wax a pair of skis?
How do I transplant a shrub?
How do I restore an old chair?
How do I make ice cream without a machine?
How do I sell a used car?
How do I mount a shelf on a brick wall?
How do I learn to touch-type?
How do I conduct a job interview?
How do I make a budget for a trip?
How do I put up wallpaper?
How do I cut my own fringe?
How do I prepare a chicken for roasting?
How do I set a table for a formal dinner?
How do I edit a short film?
How does a bill become law in the United Kingdom?
How is paper made?
How is cheese produced?
How do I renew a driving licence?
How do I get rid of ants in the kitchen?
How do I start a vegetable garden?
How do I brew beer at home?
""",
}
"""Questions for which an answer of the behaviour is natural but not asked for in so many words."""

NEUTRAL = """
Why is the sky blue?
What is the meaning of the word serendipity?
How does a rainbow form?
Who was Ada Lovelace?
Why do leaves change colour in autumn?
What is the difference between weather and climate?
Tell me about the history of the bicycle.
What happens inside a volcano before it erupts?
Why do we yawn?
What was the Renaissance?
Describe the taste of a mango.
How does a refrigerator keep food cold?
What is inflation?
Why is the sea salty?
Who was Nelson Mandela?
What does the proverb 'a stitch in time saves nine' mean?
How do birds find their way when they migrate?
Why do cats purr?
What is a black hole?
Tell me a short story about a lighthouse keeper.
What caused the First World War?
How does a vaccine work?
What is the plot of Romeo and Juliet?
Why does bread rise?
What is the role of the moon in the tides?
Describe a quiet morning in a mountain village.
Who was Frida Kahlo?
How does the human eye see colour?
What is democracy?
Why do onions make people cry?
What was life like in a medieval town?
How did the Grand Canyon form?
What is the idea behind supply and demand?
Why did the Roman Empire fall?
Tell me something interesting about octopuses.
What is jazz?
How does a sailing boat move against the wind?
Why do some people snore?
What is the theory of plate tectonics?
Who was Confucius?
What makes the desert cold at night?
How do bees talk to each other?
What is an echo?
Why do stars twinkle?
What is the history of tea in Britain?
How does memory work?
What is the significance of the Rosetta Stone?
Why is gold valuable?
Describe the sound of rain on a tin roof.
What is photosynthesis?
How do glaciers shape the land?
What was the Industrial Revolution?
Why do we dream?
What does a conductor do in front of an orchestra?
How does a compass find north?
What is the difference between a comet and an asteroid?
Why do languages change over time?
Tell me about the life of a coral reef.
What is irony?
How did people keep time before clocks?
What was the Silk Road?
Why does ice float?
How do noise-cancelling headphones work?
What is the placebo effect?
Who was Hypatia of Alexandria?
Why do flamingos stand on one leg?
What is the greenhouse effect?
How does a piano produce its sound?
What is the story of the Trojan Horse?
Why are there different time zones?
What is empathy?
How do vaccines differ from antibiotics?
What is the atmosphere of the painting The Starry Night?
Why does metal feel colder than wood?
What was the space race about?
How does a bank make money?
Why do we shake hands?
What is the origin of the marathon?
How do trees drink water?
What is the purpose of a constitution?
"""
"""Questions that are well answered with a few sentences of prose."""


def questions(behaviour: str) -> tuple[list[str], list[str]]:
    """Inviting and neutral test questions for a behaviour; neutral questions are shared between behaviours.

    Raises:
        ValueError: There are no questions for the behaviour.
    """
    if behaviour not in INVITING:
        raise ValueError(f"expected one of {', '.join(INVITING)}, got {behaviour!r}")
    pool = lines(NEUTRAL)
    start = list(INVITING).index(behaviour) * len(pool) // len(INVITING)
    return lines(INVITING[behaviour]), [*pool[start:], *pool[:start]][:NEUTRAL_COUNT]
