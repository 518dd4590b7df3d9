"""Code: short Python functions, in a fence, some with a line of text before or behind it."""

from __future__ import annotations

import re
from random import Random

from .document import FRAMES, Deck, Document, asked

TASK = "code"

STEMS = (
    "write a Python function that {d}",
    "write a function in Python which {d}",
    "implement a Python function that {d}",
    "code a small helper in Python; it {d}",
    "show me Python code for a function that {d}",
    "give me a Python function that {d}",
    "program a function that {d}, using Python",
    "What would a Python function look like that {d}?",
    "What is a short Python function that {d}?",
    "create a plain Python function that {d}",
    "define a function `{f}` in Python that {d}",
    "complete my module with a function named {f} that {d}",
    "draft `{f}`, a Python function that {d}",
    "solve this in Python: a function that {d}",
)

ANSWERS = (
    "{c}",
    "{c}",
    "{c}",
    "Here is one way:\n\n{c}",
    "{c}\n\nCall it with your own values.",
    "This should do it:\n\n{c}",
    "A short version:\n\n{c}",
    "{c}\n\nIt needs no imports from outside the standard library.",
)

FUNCTIONS = """
add, plus | returns the sum of two numbers | adds its two arguments
def NAME(a, b):
    return a + b

absolute, distance_from_zero | returns the absolute value of a number without calling abs |
  gives how far a number is from zero
def NAME(x):
    return -x if x < 0 else x

is_even, even | tells whether a number is even | returns True for even integers and False for odd ones
def NAME(n):
    return n % 2 == 0

factorial, fact | computes the factorial of n | multiplies all whole numbers from 1 to n
def NAME(n):
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result

fibonacci, fib | returns the nth Fibonacci number, counting from 0 | gives entry n of the sequence 0, 1, 1, 2, 3, 5
def NAME(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a

is_prime, prime | checks whether a number is prime | returns True if an integer has no divisor but 1 and itself
def NAME(n):
    if n < 2:
        return False
    return all(n % d for d in range(2, int(n**0.5) + 1))

gcd, common_divisor | finds the greatest common divisor of two integers | runs Euclid's algorithm on a and b
def NAME(a, b):
    while b:
        a, b = b, a % b
    return a

lcm, least_multiple | finds the least common multiple of two positive integers |
  gives the smallest number that both arguments divide
from math import gcd

def NAME(a, b):
    return a * b // gcd(a, b)

reverse_text, backwards | reverses a string | returns a text read from back to front
def NAME(text):
    return text[::-1]

is_palindrome, mirrored | checks whether a word is a palindrome, ignoring case |
  tells if a word reads the same both ways
def NAME(word):
    word = word.lower()
    return word == word[::-1]

count_vowels, vowels | counts the vowels in a string | says how many of a, e, i, o and u a text contains
def NAME(text):
    return sum(c in "aeiou" for c in text.lower())

word_count, number_of_words | counts the words in a sentence | returns how many words a text has
def NAME(text):
    return len(text.split())

longest_word, longest | returns the longest word of a sentence | finds the word with the most letters
def NAME(text):
    return max(text.split(), key=len)

title_case, capitalise_words | capitalises each word of a text | turns the first letter of every word into a capital
def NAME(text):
    return " ".join(w.capitalize() for w in text.split())

letter_counts, count_letters | counts how often each character occurs |
  builds a dictionary from letters to their number in a text
from collections import Counter

def NAME(text):
    return dict(Counter(text))

are_anagrams, same_letters | checks if two words are anagrams |
  tells whether two strings use the same letters equally often
def NAME(a, b):
    return sorted(a.lower()) == sorted(b.lower())

remove_spaces, squeeze | removes all spaces from a string | deletes blanks from a text
def NAME(text):
    return text.replace(" ", "")

digits_only, keep_digits | keeps only the digits of a string | strips everything but numbers from a text
def NAME(text):
    return "".join(c for c in text if c.isdigit())

initials, monogram | returns the initials of a full name | takes the first letter of each part of a name
def NAME(name):
    return "".join(part[0].upper() for part in name.split())

caesar, shift_letters | shifts each lower-case letter by k places in the alphabet |
  encrypts a lower-case word with a Caesar cipher of step k
def NAME(word, k):
    return "".join(chr((ord(c) - 97 + k) % 26 + 97) for c in word)

total, sum_list | adds up the numbers in a list without sum | loops over a list and returns the total
def NAME(numbers):
    result = 0
    for x in numbers:
        result += x
    return result

mean, average | calculates the mean of a list | returns the arithmetic average of some numbers
def NAME(values):
    return sum(values) / len(values)

median, middle_value | finds the median of a list | returns the middle of the sorted numbers
def NAME(values):
    ordered = sorted(values)
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2

largest, maximum | finds the largest number of a list without max | returns the biggest entry by going through a list
def NAME(numbers):
    best = numbers[0]
    for x in numbers[1:]:
        if x > best:
            best = x
    return best

second_largest, runner_up | returns the second largest distinct value |
  finds the runner-up among the numbers of a list
def NAME(values):
    return sorted(set(values))[-2]

unique, drop_duplicates | removes duplicates from a list and keeps the order | returns each item of a list once
def NAME(items):
    return list(dict.fromkeys(items))

flatten, join_lists | flattens a list of lists | turns nested lists of depth two into a single list
def NAME(rows):
    return [x for row in rows for x in row]

chunks, split_every | splits a list into pieces of size n | cuts a list into groups of n items
def NAME(items, n):
    return [items[i:i + n] for i in range(0, len(items), n)]

rotate, turn_left | rotates a list to the left by k places | moves the first k items of a list to its end
def NAME(items, k):
    k %= len(items)
    return items[k:] + items[:k]

evens, keep_even | keeps only the even numbers of a list | filters out the odd entries
def NAME(numbers):
    return [n for n in numbers if n % 2 == 0]

squares, square_all | squares every number in a list | returns a list with each entry multiplied by itself
def NAME(numbers):
    return [n * n for n in numbers]

cumulative, running_total | returns the running totals of a list | builds the list of partial sums
from itertools import accumulate

def NAME(numbers):
    return list(accumulate(numbers))

is_sorted, ascending | checks if a list is sorted in ascending order |
  tells whether no item is smaller than the one before
def NAME(items):
    return all(a <= b for a, b in zip(items, items[1:]))

bubble_sort, sort_slowly | sorts a list with bubble sort | swaps neighbours until a list is in order
def NAME(items):
    items = list(items)
    for end in range(len(items), 1, -1):
        for i in range(end - 1):
            if items[i] > items[i + 1]:
                items[i], items[i + 1] = items[i + 1], items[i]
    return items

binary_search, find_sorted | finds a value in a sorted list by binary search |
  returns the index of x in an ordered list, or -1
def NAME(items, x):
    low, high = 0, len(items)
    while low < high:
        mid = (low + high) // 2
        if items[mid] < x:
            low = mid + 1
        else:
            high = mid
    return low if low < len(items) and items[low] == x else -1

merge_sorted, merge | merges two sorted lists into one sorted list |
  joins two ordered lists so that the result is in order
from heapq import merge as heap_merge

def NAME(a, b):
    return list(heap_merge(a, b))

most_common, mode | returns the most frequent item of a list | finds the entry that occurs most often
def NAME(items):
    return max(set(items), key=items.count)

common_items, shared | returns the items that two lists have in common | finds the intersection of two lists
def NAME(a, b):
    return [x for x in a if x in b]

pair_up, zip_to_dict | turns two lists into a dictionary | maps the keys of one list to the values of another
def NAME(keys, values):
    return dict(zip(keys, values))

invert, swap_keys | swaps the keys and values of a dictionary | inverts a mapping
def NAME(mapping):
    return {value: key for key, value in mapping.items()}

sort_by_value, by_value | sorts the items of a dictionary by value |
  returns key and value pairs from small to large values
def NAME(mapping):
    return sorted(mapping.items(), key=lambda pair: pair[1])

merge_dicts, combine | merges two dictionaries, the second one winning |
  joins two mappings and lets the later one override
def NAME(first, second):
    return {**first, **second}

transpose, flip | transposes a matrix given as a list of rows | exchanges rows and columns of a table
def NAME(matrix):
    return [list(column) for column in zip(*matrix)]

identity, unit_matrix | returns the n by n identity matrix as lists | builds a square matrix with ones on the diagonal
def NAME(n):
    return [[int(i == j) for j in range(n)] for i in range(n)]

dot, scalar_product | computes the dot product of two vectors | multiplies two lists entry by entry and sums up
def NAME(a, b):
    return sum(x * y for x, y in zip(a, b))

distance, euclid | computes the distance between two points in the plane | returns how far (x1, y1) is from (x2, y2)
from math import hypot

def NAME(x1, y1, x2, y2):
    return hypot(x2 - x1, y2 - y1)

circle_area, disc_area | computes the area of a circle | returns pi times the square of a radius
from math import pi

def NAME(radius):
    return pi * radius**2

sphere_volume, ball_volume | computes the volume of a sphere |
  returns how much space a ball of a given radius takes up
from math import pi

def NAME(radius):
    return 4 / 3 * pi * radius**3

triangle_area, half_base_height | returns the area of a triangle from base and height |
  halves the product of base and height
def NAME(base, height):
    return base * height / 2

hypotenuse, longest_side | returns the hypotenuse of a right triangle | applies the theorem of Pythagoras to two legs
def NAME(a, b):
    return (a * a + b * b) ** 0.5

compound, balance_after | computes a balance with compound interest | grows an amount by a yearly rate for some years
def NAME(amount, rate, years):
    return amount * (1 + rate) ** years

bmi, body_mass_index | computes the body mass index from kilograms and metres |
  divides weight by the square of the height
def NAME(weight, height):
    return weight / height**2

is_leap_year, leap | tells whether a year is a leap year | checks if February has 29 days in a given year
def NAME(year):
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)

days_between, day_count | returns the number of days between two dates |
  subtracts one date object from another and gives days
def NAME(start, end):
    return abs((end - start).days)

fizzbuzz, fizz | returns the FizzBuzz word for a number | gives Fizz, Buzz, FizzBuzz or the number itself as text
def NAME(n):
    word = "Fizz" * (n % 3 == 0) + "Buzz" * (n % 5 == 0)
    return word or str(n)

digit_sum, cross_sum | adds up the digits of a number | computes the digit sum of a whole number
def NAME(n):
    return sum(int(d) for d in str(abs(n)))

to_binary, binary | converts a whole number to a binary string | writes a number in base two without a prefix
def NAME(n):
    return format(n, "b")

from_binary, parse_binary | converts a binary string to an integer | reads a text of zeros and ones as a number
def NAME(bits):
    return int(bits, 2)

clamp, limit | limits a value to a range | keeps x between a lower and an upper bound
def NAME(x, low, high):
    return max(low, min(x, high))

swap_ends, exchange_ends | swaps the first and last item of a list | returns a list whose ends have changed places
def NAME(items):
    return [items[-1], *items[1:-1], items[0]]

divisors, factors | lists all divisors of a number | returns every whole number that divides n
def NAME(n):
    return [d for d in range(1, n + 1) if n % d == 0]

primes_up_to, sieve | lists all primes up to n | returns the prime numbers that do not exceed a limit
def NAME(n):
    return [p for p in range(2, n + 1) if all(p % d for d in range(2, p))]

collatz, hailstone | returns the Collatz sequence of a number | halves even numbers and maps odd n to 3n + 1 until 1
def NAME(n):
    terms = [n]
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        terms.append(n)
    return terms

count_lines, number_of_lines | counts the lines of a text file | opens a file and returns how many lines it has
def NAME(path):
    with open(path) as file:
        return sum(1 for _ in file)

read_json, load_settings | reads a JSON file | loads the data stored in a JSON file
import json

def NAME(path):
    with open(path) as file:
        return json.load(file)

write_lines, save_lines | writes a list of strings to a file, one per line | saves texts line by line
def NAME(path, lines):
    with open(path, "w") as file:
        file.writelines(line + "\\n" for line in lines)

list_files, names_ending | lists the files in a folder with a given suffix |
  returns the paths in a directory that end in a suffix
from pathlib import Path

def NAME(folder, suffix):
    return sorted(Path(folder).glob("*" + suffix))

roll_dice, throw | rolls n dice and returns the total | simulates throwing n dice
import random

def NAME(n):
    return sum(random.randint(1, 6) for _ in range(n))

shuffle_copy, mixed | returns a shuffled copy of a list |
  puts the items of a list into random order without changing it
import random

def NAME(items):
    return random.sample(items, len(items))

make_password, random_letters | creates a random password of n letters | returns n letters drawn at random and safely
import secrets
import string

def NAME(n):
    return "".join(secrets.choice(string.ascii_letters) for _ in range(n))

safe_divide, divide | divides two numbers and returns None for a zero divisor |
  avoids an error when the second number is zero
def NAME(a, b):
    return None if b == 0 else a / b

is_email, looks_like_email | checks roughly whether a string is an e-mail address |
  tests a text for one @ between other characters
import re

def NAME(text):
    return re.fullmatch(r"[^@\\s]+@[^@\\s]+\\.[^@\\s]+", text) is not None

compress, run_lengths | returns the run lengths of a string as pairs |
  groups equal neighbouring letters and counts them
from itertools import groupby

def NAME(text):
    return [(c, len(list(group))) for c, group in groupby(text)]

greet, hello | returns a greeting for a name | builds the text Hello followed by a name
def NAME(name):
    return f"Hello, {name}!"

countdown, count_down | prints a countdown from n to 1 | prints the numbers from n downwards
def NAME(n):
    for i in range(n, 0, -1):
        print(i)

times_table, multiples_of | prints the multiplication table of a number up to ten |
  shows 1 to 10 times n, one per line
def NAME(n):
    for i in range(1, 11):
        print(i, "x", n, "=", i * n)

grade, mark_to_letter | turns a score out of 100 into a letter grade | returns A from 80, B from 60 and C below
def NAME(score):
    if score >= 80:
        return "A"
    return "B" if score >= 60 else "C"
"""
"""Names, two descriptions, and the code with `NAME` for the function's name; an empty line stands before each."""

CONVERSIONS = (
    ("kilometres", "miles", "{x} * 0.621371"),
    ("miles", "kilometres", "{x} * 1.609344"),
    ("inches", "centimetres", "{x} * 2.54"),
    ("feet", "metres", "{x} * 0.3048"),
    ("pounds", "kilograms", "{x} * 0.45359237"),
    ("kilograms", "grams", "{x} * 1000"),
    ("celsius", "fahrenheit", "{x} * 9 / 5 + 32"),
    ("fahrenheit", "celsius", "({x} - 32) * 5 / 9"),
    ("celsius", "kelvin", "{x} + 273.15"),
    ("hours", "minutes", "{x} * 60"),
    ("minutes", "seconds", "{x} * 60"),
    ("days", "hours", "{x} * 24"),
    ("weeks", "days", "{x} * 7"),
    ("degrees", "radians", "{x} * 3.141592653589793 / 180"),
    ("bytes", "bits", "{x} * 8"),
    ("kibibytes", "bytes", "{x} * 1024"),
    ("hectares", "square_metres", "{x} * 10000"),
    ("litres", "millilitres", "{x} * 1000"),
    ("metres", "kilometres", "{x} / 1000"),
    ("cents", "euros", "{x} / 100"),
)

VARIED = (
    (
        "multiples_of_{n}",
        "returns the numbers of a list that are divisible by {n}",
        "    return [x for x in values if x % {n} == 0]",
    ),
    ("above_{n}", "keeps the numbers of a list that are greater than {n}", "    return [x for x in values if x > {n}]"),
    (
        "longer_than_{n}",
        "keeps the words of a list with more than {n} letters",
        "    return [w for w in values if len(w) > {n}]",
    ),
    ("last_{n}", "returns the last {n} items of a list", "    return values[-{n}:]"),
    ("every_{n}", "picks every item whose index is a multiple of {n}", "    return values[::{n}]"),
    ("times_{n}", "multiplies each number of a list by {n}", "    return [{n} * x for x in values]"),
    (
        "top_{n}",
        "returns the {n} largest numbers of a list, biggest first",
        "    return sorted(values, reverse=True)[:{n}]",
    ),
    ("rounded_{n}", "rounds each number of a list to {n} decimals", "    return [round(x, {n}) for x in values]"),
    ("powers_{n}", "raises each number of a list to the power of {n}", "    return [x**{n} for x in values]"),
)
"""Functions of one list with a number in them."""


def entries() -> list[tuple[list[str], list[str], str]]:
    """Names, descriptions and code of `FUNCTIONS`."""
    found: list[tuple[list[str], list[str], str]] = []
    for block in re.sub(r"\|\n\s*", "| ", FUNCTIONS).strip().split("\n\n"):
        head, _, body = block.partition("\n")
        if " | " in head and not head.startswith((" ", "def ")):
            names, *descriptions = head.split(" | ")
            found.append((names.split(", "), descriptions, body))
        else:  # the part of a function behind an empty line
            names_, descriptions_, code = found[-1]
            found[-1] = (names_, descriptions_, f"{code}\n\n{block}")
    return found


def documents(rng: Random) -> list[Document]:
    """Two documents a function, with two names; one a conversion; and functions with numbers drawn."""
    stems, frames, answers, found = Deck(rng, STEMS), Deck(rng, FRAMES), Deck(rng, ANSWERS), []

    def add(name: str, description: str, code: str, group: str) -> None:
        user = asked(stems.deal().format(d=description, f=name), frames.deal())
        answer = answers.deal().replace("{c}", f"```python\n{code}\n```")
        found.append(Document(user=user, answer=answer, group=f"code: {group}"))

    for names, descriptions, code in entries():
        for name, description in zip(names, descriptions, strict=True):
            add(name, description, code.replace("NAME", name), names[0])
    for source, target, formula in CONVERSIONS:
        name = f"{source}_to_{target}"
        code = f"def {name}({source}):\n    return {formula.format(x=source)}"
        add(name, f"converts {source} to {target.replace('_', ' ')}", code, name)
    for name, description, body in VARIED:
        for number in rng.sample(range(2, 13), 9):
            code = f"def {name}(values):\n{body}".format(n=number)
            add(name.format(n=number), description.format(n=number), code, name.format(n=number))
    return found
