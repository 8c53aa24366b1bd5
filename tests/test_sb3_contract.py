"""
Notices when Stable-Baselines3 changes code that this package overrides, extends or must be equal to.

A fingerprint that differs is no bug yet. Compare the named function with the version of SB3 for which the
fingerprint was recorded, carry over to the named place what concerns it, see that the tests of exactness and of
saving pass, and put the new fingerprint into the table.
"""

import hashlib
import inspect
import io
import textwrap
import tokenize

import pytest
import stable_baselines3
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

RECORDED_FOR = "2.9.2"

# function of SB3, where we rely on it, fingerprint
CONTRACT = [
    (PPO.train, "KLipUpdate.train, ppo_loss and UpdateLog, which do the same in the same order", "f2c53eaf83b1ec36"),
    (PPO._setup_model, "KLipUpdate._setup_model, which extends it", "53c990790fedf3ee"),
    (OnPolicyAlgorithm.collect_rollouts, "KLipUpdate.collect_rollouts, which extends it", "a324ebc5e83033a5"),
    (OnPolicyAlgorithm.learn, "KLipUpdate.train, which it calls and whose progress it keeps", "9f2a192ecded43c1"),
    (RolloutBuffer.get, "positions.minibatches_with_indices, which listens to the call of _get_samples", "9a32f34325e2fad1"),
    (BaseAlgorithm.save, "KLipUpdate.save, which puts JSON in the penalty's place", "724c320c2b50ff12"),
    (BaseAlgorithm.load, "KLipUpdate._setup_model, which finds there what was stored", "d79ac2b1b30bf857"),
]

LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER)
BLOCKS = {tokenize.INDENT: "{", tokenize.DEDENT: "}", tokenize.NEWLINE: ";"}


def fingerprint(source):
    """
    The same for code that differs in comments, docstrings and line breaks only, on every version of Python.

    :param source: source of a function
    :return: hexadecimal number
    """
    text, statement_begins = "", True
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline):
        if token.type in LAYOUT:
            continue
        docstring = statement_begins and token.type == tokenize.STRING
        statement_begins = token.type in BLOCKS
        if not docstring:
            text += BLOCKS.get(token.type, token.string)
    # Newer versions of Python cut an f-string into tokens; without spaces it reads the same
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]


@pytest.mark.parametrize(["function", "place", "expected"], CONTRACT, ids=[row[0].__qualname__ for row in CONTRACT])
def test_sb3_code_that_we_rely_on_is_the_one_we_know(function, place, expected):
    found = fingerprint(inspect.getsource(function))
    assert found == expected, (
        f"{function.__qualname__} of stable-baselines3 {stable_baselines3.__version__} is not the one of {RECORDED_FOR}. "
        f"Compare the two (git diff v{RECORDED_FOR} v{stable_baselines3.__version__} in SB3's repository), carry over what "
        f"concerns {place}, and when tests/test_exactness.py and tests/test_save_load.py pass, "
        f'write "{found}" in the place of "{expected}" in {__name__}.CONTRACT, and RECORDED_FOR'
    )


EXAMPLE = '''
    def update(self, x):
        """Doubles."""
        for _ in range(2):
            x += 1  # twice
            self.log(f"{x:.2f} now", x)
        return x
'''


@pytest.mark.parametrize(
    ["before", "after", "same"],
    [
        ('"""Doubles."""', '"""Doubles what\n        it is given."""', True),
        ("  # twice", "", True),
        ("x += 1", "x += 1\n\n            # why", True),
        ('self.log(f"{x:.2f} now", x)', 'self.log(\n                f"{x:.2f} now", x)', True),
        ("\n    ", "\n", True),
        ("x += 1", "x += 2", False),
        ("        return x", "            return x", False),
        ("now", "then", False),
    ],
)
def test_fingerprint_sees_code_and_nothing_else(before, after, same):
    assert before in EXAMPLE
    assert (fingerprint(EXAMPLE) == fingerprint(EXAMPLE.replace(before, after))) == same
