"""Names for containers that were given none: an adjective and a scientist, as Docker's users expect."""

from __future__ import annotations

import random
from collections.abc import Callable

_LEFT = (
    "able agile amber ample apt ardent astute avid awake bold brave breezy bright brisk calm candid careful "
    "cheerful clever cool cosmic crisp curious daring dazzling deft eager earnest easy elated elegant epic fair "
    "fearless festive fierce flying focused fond frank free fresh friendly gentle gifted glad golden good "
    "gracious grand happy hardy hearty helpful honest hopeful humble ideal jolly jovial joyful keen kind lively "
    "loving loyal lucid lucky mellow merry mighty modest musing neat nice nimble noble optimistic patient "
    "peaceful placid playful polite proud quick quiet quirky relaxed reliable rested serene sharp shiny silent "
    "sincere sleek smart snug solid steady stoic strong subtle sunny sweet swift tender thirsty tidy trusting "
    "upbeat useful vibrant vigilant vivid warm wise witty wonderful zealous zen"
).split()
_RIGHT = (
    "abel agnesi albattani almeida archimedes babbage banach bardeen bassi bell bernoulli bhabha bohr boltzmann "
    "bohm booth borg bose boyd brahmagupta brown carson cartwright cerf chandrasekhar chaplygin chatelet "
    "chebyshev clarke cohen colden cori cray curie curran darwin dewdney dijkstra dirac driscoll easley edison "
    "einstein elgamal elion ellis engelbart euclid euler faraday feistel fermat fermi feynman franklin gagarin "
    "galileo galois ganguly gates gauss germain goldberg goldwasser goodall gould haibt hamilton haslett hawking "
    "heisenberg hermann herschel hertz heyrovsky hodgkin hoover hopper hugle hypatia jackson jang jemison johnson "
    "joliot jones kalam kapitsa kare keldysh keller kepler khayyam khorana kilby kirch knuth kowalevski lalande "
    "lamarr lamport leakey leavitt lederberg lehmann lewin lichterman liskov lovelace lumiere mahavira mayer "
    "mccarthy mcclintock mclean mcnulty meitner mendel mendeleev meninsky merkle mestorf mirzakhani montalcini "
    "moore morse moser murdock napier nash neumann newton nightingale nobel noether noyce pare pascal pasteur "
    "payne perlman pike poincare poitras proskuriakova ptolemy raman ramanujan rhodes ride ritchie robinson "
    "roentgen rosalind rubin saha sammet sanderson satoshi shamir shannon shaw shirley shockley sinoussi snyder "
    "solomon spence stonebraker sutherland swanson swartz swirles taussig tesla tharp thompson torvalds turing "
    "varahamihira vaughan villani visvesvaraya volhard wescoff wilbur wiles williams wilson wing wozniak wright "
    "wu yalow yonath zhukovsky"
).split()


def random_name(taken: Callable[[str], bool]) -> str:
    """Return a name that `taken` denies; a digit is appended once luck runs out."""
    for attempt in range(1000):
        name = f"{random.choice(_LEFT)}_{random.choice(_RIGHT)}"  # noqa: S311 - a name is no secret
        if attempt >= 5:
            name += str(random.randrange(10 ** (attempt // 5)))  # noqa: S311
        if not taken(name):
            return name
    raise AssertionError("no free name in a thousand draws")
