"""Hand-written material for the synthetic conversations: small functions and small talk.

Each snippet is (wishes, code); a wish completes "Write a Python function that ...".
"""

from __future__ import annotations

SNIPPETS: list[tuple[tuple[str, ...], str]] = [
    (
        (
            "reads a file",
            "reads a text file and returns its contents",
            "opens a file and reads it",
            "returns the contents of a file",
        ),
        '''
def read_file(path):
    """Return the contents of the file as text."""
    with open(path, encoding="utf-8") as file:
        return file.read()
''',
    ),
    (
        ("writes text to a file", "writes a string to a file", "saves text in a file"),
        '''
def write_file(path, text):
    """Write text to the file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
''',
    ),
    (
        ("reads a file line by line", "returns the lines of a file"),
        '''
def read_lines(path):
    """Return a list of the lines of the file."""
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\\n") for line in file]
''',
    ),
    (
        ("counts the lines in a file", "returns the number of lines of a file"),
        '''
def count_lines(path):
    """Return the number of lines in the file."""
    with open(path, encoding="utf-8") as file:
        return sum(1 for line in file)
''',
    ),
    (
        ("counts the words in a file", "counts words"),
        '''
def count_words(path):
    """Return the number of words in the file."""
    with open(path, encoding="utf-8") as file:
        return len(file.read().split())
''',
    ),
    (
        ("copies a file", "copies a file to another place"),
        '''
import shutil

def copy_file(source, target):
    """Copy the file source to target."""
    shutil.copyfile(source, target)
''',
    ),
    (
        ("lists the files in a directory", "returns the files of a directory"),
        '''
import os

def list_files(path):
    """Return the names of the files in the directory."""
    return [name for name in os.listdir(path)
            if os.path.isfile(os.path.join(path, name))]
''',
    ),
    (
        ("checks whether a file exists", "tells whether a file exists"),
        '''
import os

def file_exists(path):
    """Return True if the file exists."""
    return os.path.exists(path)
''',
    ),
    (
        ("deletes a file", "removes a file"),
        '''
import os

def remove_file(path):
    """Remove the file."""
    os.remove(path)
''',
    ),
    (
        ("returns the size of a file",),
        '''
import os

def file_size(path):
    """Return the size of the file in bytes."""
    return os.path.getsize(path)
''',
    ),
    (
        ("adds two numbers", "returns the sum of two numbers"),
        '''
def add(a, b):
    """Return the sum of a and b."""
    return a + b
''',
    ),
    (
        ("multiplies two numbers",),
        '''
def multiply(a, b):
    """Return the product of a and b."""
    return a * b
''',
    ),
    (
        ("returns the sum of a list", "sums a list of numbers", "adds the numbers in a list"),
        '''
def total(numbers):
    """Return the sum of the numbers."""
    result = 0
    for number in numbers:
        result += number
    return result
''',
    ),
    (
        ("returns the largest number in a list", "finds the maximum of a list"),
        '''
def largest(numbers):
    """Return the largest of the numbers."""
    result = numbers[0]
    for number in numbers[1:]:
        if number > result:
            result = number
    return result
''',
    ),
    (
        ("returns the smallest number in a list", "finds the minimum of a list"),
        '''
def smallest(numbers):
    """Return the smallest of the numbers."""
    result = numbers[0]
    for number in numbers[1:]:
        if number < result:
            result = number
    return result
''',
    ),
    (
        ("returns the average of a list", "computes the mean of numbers"),
        '''
def mean(numbers):
    """Return the mean of the numbers."""
    return sum(numbers) / len(numbers)
''',
    ),
    (
        ("reverses a string", "returns a string reversed"),
        '''
def reverse(text):
    """Return the text reversed."""
    return text[::-1]
''',
    ),
    (
        ("checks whether a number is even",),
        '''
def is_even(number):
    """Return True if the number is even."""
    return number % 2 == 0
''',
    ),
    (
        ("checks whether a number is prime", "tests for prime numbers"),
        '''
def is_prime(n):
    """Return True if n is a prime number."""
    if n < 2:
        return False
    for i in range(2, int(n ** 0.5) + 1):
        if n % i == 0:
            return False
    return True
''',
    ),
    (
        ("computes the factorial of a number", "returns the factorial of n"),
        '''
def factorial(n):
    """Return the factorial of n."""
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result
''',
    ),
    (
        ("returns the nth Fibonacci number", "computes Fibonacci numbers"),
        '''
def fibonacci(n):
    """Return the nth Fibonacci number."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
''',
    ),
    (
        ("sorts a list", "returns a sorted list"),
        '''
def sort_list(items):
    """Return the items in order."""
    return sorted(items)
''',
    ),
    (
        ("removes duplicates from a list", "returns the unique items of a list"),
        '''
def unique(items):
    """Return the items without duplicates."""
    seen = set()
    result = []
    for item in items:
        if item not in seen:
            seen.add(item)
            result.append(item)
    return result
''',
    ),
    (
        ("counts how often each word occurs", "counts the words of a text"),
        '''
def word_count(text):
    """Return a dictionary of words and how often they occur."""
    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts
''',
    ),
    (
        ("runs a command", "runs a shell command and returns its output"),
        '''
import subprocess

def run(command):
    """Run the command and return its output."""
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout
''',
    ),
    (
        ("reads a JSON file", "loads JSON from a file"),
        '''
import json

def read_json(path):
    """Return the data in the JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)
''',
    ),
    (
        ("writes a JSON file", "saves data as JSON"),
        '''
import json

def write_json(path, data):
    """Write the data to the file as JSON."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
''',
    ),
    (
        ("prints hello world", "prints Hello, world"),
        '''
def hello():
    """Print a greeting."""
    print("Hello, world!")
''',
    ),
    (
        ("returns the current time", "returns the current date and time"),
        '''
from datetime import datetime

def now():
    """Return the current date and time."""
    return datetime.now()
''',
    ),
    (
        ("downloads a file", "fetches a URL"),
        '''
from urllib.request import urlopen

def fetch(url):
    """Return the contents of the URL."""
    with urlopen(url) as response:
        return response.read()
''',
    ),
]

ABOUT = (
    "I am tiny, a small language model trained by the meshd project on man pages, "
    "manuals and Python code. I can tell you what a command does."
)

GREETINGS: list[tuple[tuple[str, ...], str]] = [
    (
        ("Hello", "Hello!", "Hi", "Hi!", "hi", "hello", "Hello, how are you?", "Good morning"),
        "Hello! Ask me what a command does, or for a small Python function.",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "who are you",
            "Tell me about yourself.",
            "What can you do?",
        ),
        ABOUT,
    ),
    (("Thank you", "Thanks", "Thanks!", "Thank you!"), "You are welcome."),
    (
        ("What is meshd?", "What does meshd do?", "Tell me about meshd."),
        "meshd turns GPU boxes into one inference mesh. It runs llama.cpp on each node.",
    ),
    (
        ("What is Debian?", "Tell me about Debian."),
        "Debian is a free operating system. It consists of free software packages.",
    ),
    (
        ("What is Python?", "Tell me about Python."),
        "Python is an interpreted, object-oriented, high-level programming language.",
    ),
    (("What is Linux?", "Tell me about Linux."), "Linux is a free operating system kernel."),
]
