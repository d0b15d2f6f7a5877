"""What needles are made of: words, numbers and UUIDs, drawn from a stream of random numbers.

The lists are short enough to be read, so that no package of words decides what a seed means. Their
pairs are many: an adjective and a noun are the key of a needle, as in RULER ("amber-anvil"); two
nouns in one word ("anvilharp") are the words of a list. No compound is part of another, so that
finding one in an answer finds that one alone.
"""

import random
import uuid
from collections.abc import Callable

_ADJECTIVES = """
able agile alert amber ample angry avid aware azure bald basic bitter black bland blank blue
blunt bold bossy brave brief bright brisk broad bronze brown busy calm candid careful cheap
chief chilly civil clean clear clever close cloudy coarse cold cool coral cosy crisp cruel
curly curved daily damp dark dear deep dense direct dizzy dull dusty eager early easy elder
empty equal exact extra faint fair famous fancy fast fierce final firm fit flat fluffy fond
formal frank free fresh frosty full funny gentle giant glad golden good grand grateful gray
great green grumpy happy hard harsh hasty heavy hollow honest huge humble hungry icy ideal idle
ivory jolly keen kind large late lazy light little lively local lofty lone long loose loud
loyal lucky mellow merry mild modern modest muddy narrow nasty neat nervous new nice nimble
noble noisy normal odd old open orange pale patient plain polite proud pure purple quick quiet
rapid rare raw ready red rich ripe rough round royal rude rusty sad safe salty sandy shallow
sharp shiny short shy silent silky silver simple sleek slim slow small smart smooth soft solid
sour spare steep stern still strict strong sturdy sudden sunny sweet swift tall tame tender
thick thin tidy tiny tired tough upper urban vague vast vivid warm wary weak wealthy weird wet
white wide wild windy wise witty wooden yellow young
"""
_NOUNS = """
acorn album angle ankle anvil apple apron arch atlas badge bagel baker banjo barn basil
basket beach beaver bell bench berry bike birch bird blade blanket boat bolt bonnet book boot
bottle branch bread brick bridge broom brush bubble bucket bugle bullet butter cabin cable
cactus camel camera candle canoe canvas canyon carpet carrot castle cattle cave cedar cello
chair chalk cheese cherry chess cider circle cliff clock cloud clover coach cobra coffee comet
compass copper cotton couch crane crayon creek cricket crown curtain cushion daisy desert desk
diary doctor dolphin donkey dragon drawer drum eagle easel elbow engine fabric falcon farmer
fence ferry fiddle field finger flag flame flute forest fork fossil fox frog galaxy garden
garlic giraffe glacier glove goat grape guitar hammer harbor harp hazel helmet heron hill honey
horse hotel iceberg igloo island jacket jaguar jewel jigsaw jungle kettle kidney kitten kiwi
ladder lagoon lake lantern lemon lentil lettuce lizard lobster locket magnet mango maple marble
market meadow melon mirror mitten monkey moon moth mountain muffin museum napkin needle nickel
noodle nutmeg oasis ocean olive onion orchid otter oven oyster paddle palace panda paper parrot
pebble pencil pepper piano pickle pigeon pillow pine pirate planet plum pocket pond poppy
potato prairie pump puppet quail quartz quilt rabbit radar radio raven ribbon river robin
rocket saddle salmon sandal saturn scarf sheep shelf shirt shovel skirt spider spoon squid
statue stone stool storm sugar sunset table teapot temple thimble ticket tiger
timber tomato tractor train trumpet tulip tunnel turkey turtle valley vase velvet violin
volcano wagon wallet walnut walrus whale wheat willow window winter wizard wolf zebra
"""
ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
COMPOUNDS = len(NOUNS) ** 2


def draw_values(rng: random.Random, kind: str, count: int) -> list[str]:
    """`count` different keys or values of a kind, or all there are.

    Args:
      rng: the stream.
      kind: "words", "numbers" (of seven digits) or "uuids".
      count: how many.
    """
    return KINDS[kind](rng, count)


def draw_compounds(rng: random.Random, count: int) -> list[str]:
    """`count` different words of two nouns, of the COMPOUNDS there are."""
    return [
        NOUNS[index // len(NOUNS)] + NOUNS[index % len(NOUNS)]
        for index in rng.sample(range(COMPOUNDS), count)
    ]


def _words(rng: random.Random, count: int) -> list[str]:
    pairs = len(ADJECTIVES) * len(NOUNS)
    return [
        f"{ADJECTIVES[index // len(NOUNS)]}-{NOUNS[index % len(NOUNS)]}"
        for index in rng.sample(range(pairs), min(count, pairs))
    ]


def _numbers(rng: random.Random, count: int) -> list[str]:
    numbers = range(1_000_000, 10_000_000)
    return [str(number) for number in rng.sample(numbers, min(count, len(numbers)))]


def _uuids(rng: random.Random, count: int) -> list[str]:
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


KINDS: dict[str, Callable[[random.Random, int], list[str]]] = {
    "words": _words,
    "numbers": _numbers,
    "uuids": _uuids,
}
