"""WordPiece: against plain references, by hand, through files, and against Hugging Face's if that is installed."""

import json
import math
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.text import WordPieceTokenizer, default_corpus, load_tokenizer
from tinyllm.text.wordpiece import SPECIAL_TOKENS, words
from tinyllm.text.wordpiece_train import SCORES, alphabet, learn_pieces, spell

PAD, UNK, CLS, SEP, MASK = range(5)
SAMPLE = "the cat, the hat; it's 42 cats' hats. 你好，世界！ naïve CAFÉ lower lowest " * 3
BY_HAND = [*SPECIAL_TOKENS, "un", "aff", "##aff", "##able", "##a", "!", "low", "##e", "##est", "lo", "[", "]", "mask"]
few_letters = st.lists(st.text("abc", min_size=1, max_size=6), max_size=8)


@pytest.fixture(scope="module")
def sample_tokenizer():
    return WordPieceTokenizer.train(SAMPLE, 120)


@pytest.fixture
def by_hand():
    return WordPieceTokenizer(BY_HAND)


@pytest.mark.parametrize(("text", "lowercase", "expected"), [
    ("He's 42.", True, ["he", "'", "s", "42", "."]),
    ("He's 42.", False, ["He", "'", "s", "42", "."]),
    ("a\tb\nc\rd\u00a0e\u3000f\u2028g", True, list("abcdefg")),
    ("a\0b\x0bc\u200bd\ufeffe\ufffdf\ue000g\u00adh", True, ["abcdefgh"]),
    ("Ça été naïve, Ångström", True, ["ca", "ete", "naive", ",", "angstrom"]),
    ("e\u0301a", False, ["e\u0301a"]),
    ("ΟΔΟΣ Straße İ", True, ["οδοσ", "straße", "i"]),
    ("ab你好cd，世界", True, ["ab", "你", "好", "cd", "，", "世", "界"]),
    ("カナ 한", True, ["カナ", "\u1112\u1161\u11ab"]),
    ("$5+3=8^2 a_b~`<c>|", True, [*"$", "5", "+", "3", "=", "8", "^", "2", "a", "_", "b", *"~`<", "c", *">|"]),
    ("€5 ©x “q” ¿no?", True, ["€5", "©x", "“", "q", "”", "¿", "no", "?"]),
    ("🤣👩\u200d🚀", True, ["🤣👩🚀"]),
    ("a\u061fb\u061dc\u2e52d", True, ["a", "\u061f", "b\u061dc\u2e52d"]),     # two signs younger than Unicode 8
    ("", True, []),
    (" \n ", True, []),
])
def test_words(text, lowercase, expected):
    assert words(text, lowercase) == expected


@pytest.mark.parametrize(("text", "tokens"), [
    ("unaffable", ["un", "##aff", "##able"]),
    ("unaffa", ["un", "##aff", "##a"]),
    ("affable!", ["aff", "##able", "!"]),
    ("lowest", ["low", "##est"]),           # "lo" would leave "west": the longest first
    ("lowe", ["low", "##e"]),
    ("loe", ["lo", "##e"]),
    ("able", ["[UNK]"]),                    # known as a continuation only
    ("unaffed", ["[UNK]"]),                 # un ##aff ##e, and no ##d: the whole word is unknown
    ("loest low", ["lo", "##est", "low"]),
    ("lowun", ["[UNK]"]),                   # known as a first piece only
])
def test_by_hand(by_hand, text, tokens):
    assert by_hand.tokenize(text) == tokens
    assert by_hand.encode(text) == [BY_HAND.index(token) for token in tokens]


def test_words_that_are_too_long(by_hand):
    assert by_hand.tokenize("un" + "a" * 98) == ["un"] + ["##a"] * 98
    assert by_hand.tokenize("un" + "a" * 99 + " un") == ["[UNK]", "un"]


@given(few_letters, st.text("abcd ", max_size=40))
def test_encoding_equals_the_longest_alternative_of_a_pattern(training_words, text):
    tokenizer = WordPieceTokenizer.train(" ".join(training_words), 40)
    known = sorted(tokenizer.vocabulary[5:], key=len, reverse=True)
    first = regex.compile("|".join(p for p in known if p[0] != "#") or "(?!)")
    other = regex.compile("|".join(p[2:] for p in known if p[0] == "#") or "(?!)")
    expected = []
    for word in text.split():
        found, rest = [], word
        while rest and (match := (other if found else first).match(rest)):
            found.append("##" * bool(found) + match[0])
            rest = rest[match.end():]
        expected += ["[UNK]"] if rest else found
    assert tokenizer.tokenize(text) == expected


def naive_learn(word_counts, num_pieces, score):
    """Count everything again for each join."""
    spelled, pieces = [(spell(word), n) for word, n in word_counts.items()], alphabet(word_counts)
    size = len(pieces) + num_pieces
    while len(pieces) < size:
        pairs, single = Counter(), Counter()
        for word, n in spelled:
            single.update({piece: n * k for piece, k in Counter(word).items()})
            pairs.update({pair: n * k for pair, k in Counter(pairwise(word)).items()})
        if not pairs:
            break
        value = lambda pair: score(pairs[pair], single[pair[0]], single[pair[1]], single.total())
        pair = max(pairs, key=lambda pair: (value(pair), -pieces.index(pair[0]), -pieces.index(pair[1])))
        joined = pair[0] + pair[1][2:]
        pieces += [joined] if joined not in pieces else []
        for word, _ in spelled:
            for i in range(len(word) - 1):
                if tuple(word[i : i + 2]) == pair:
                    word[i : i + 2] = [joined]
    return pieces[len(alphabet(word_counts)):]


@pytest.mark.parametrize("score", ["ratio", "count"])
@given(few_letters, st.integers(0, 15))
def test_training_equals_naive_training(score, training_words, num_pieces):
    counts = Counter(training_words)
    assert learn_pieces(counts, num_pieces, score) == naive_learn(counts, num_pieces, SCORES[score])
    assert learn_pieces(dict(sorted(counts.items())), num_pieces, score) == learn_pieces(counts, num_pieces, score)


@given(few_letters)
def test_the_first_piece_gains_the_most_likelihood(training_words):
    """In the logarithm of the likelihood, with the probabilities before: c(ab) occurrences of ab instead of a and b."""
    counts = Counter(training_words)
    single = Counter(piece for word in counts.elements() for piece in spell(word))
    pairs = Counter(pair for word in counts.elements() for pair in pairwise(spell(word)))
    p = lambda count: count / single.total()
    gain = {a + b[2:]: n * (math.log(p(n)) - math.log(p(single[a])) - math.log(p(single[b])))
            for (a, b), n in pairs.items()}
    for learned in learn_pieces(counts, 1):
        assert gain[learned] >= max(gain.values()) - 1e-9
    assert len(learn_pieces(counts, 1)) == min(1, len(gain))


def test_scores_differ():
    """Most often: t ##h. Rarest and never apart: q ##x. By likelihood z ##b, 4 times and 4 pieces each, goes before
    t ##h, 5 times of 6 and 7 pieces: of N = 25, 4 ln(4 N / 16) = 7.3 and 5 ln(5 N / 42) = 5.5.
    """
    counts = Counter({"th": 5, "t": 1, "uh": 2, "zb": 4, "qx": 1})
    first = {score: learn_pieces(counts, 1, score) for score in SCORES}
    assert first == {"likelihood": ["zb"], "ratio": ["qx"], "count": ["th"]}


def test_training():
    """By hand. Of l ##o and ##o ##w, which gain the same, the older left piece goes first; ##e ##r, before ##e ##st."""
    tokenizer = WordPieceTokenizer.train("Low low low lower lówest", 19)
    assert tokenizer.vocabulary == [*SPECIAL_TOKENS, "l", "##e", "##o", "##r", "##s", "##t", "##w",
                                    "lo", "low", "##st", "##er", "##est", "lower", "lowest"]
    assert WordPieceTokenizer.train("", 10).vocabulary == list(SPECIAL_TOKENS)
    assert WordPieceTokenizer.train("low", 1000).vocab_size == 5 + 3 + 2           # out of pairs
    assert "É" in "".join(WordPieceTokenizer.train("ÉTÉ", 20, lowercase=False).vocabulary)
    assert WordPieceTokenizer.train("a" * 101 + " b", 20).vocabulary[5:] == ["b"]


def test_likelihood_and_count_need_fewer_tokens_than_ratio():
    corpus = default_corpus()
    cut = len(corpus) * 9 // 10
    per_word = {}
    for score in SCORES:
        tokenizer = WordPieceTokenizer.train(corpus[:cut], 1000, score=score)
        per_word[score] = len(tokenizer.encode(corpus[cut:])) / len(words(corpus[cut:]))
    assert per_word["likelihood"] < 1.3 and per_word["count"] < 1.3 and per_word["ratio"] > 1.8


@given(st.text())
def test_decoding_gives_back_the_words(sample_tokenizer, text):
    decoded = sample_tokenizer.decode(sample_tokenizer.encode(text)).split(" ")
    if words(text):
        for word, back in zip(words(text), decoded, strict=True):
            assert back in (word, "[UNK]")
    assert sample_tokenizer.encode(" ".join(words(text))) == sample_tokenizer.encode(text)


def test_known_words_come_back(sample_tokenizer):
    text = "the lowest cat, lower café"
    assert sample_tokenizer.decode(sample_tokenizer.encode(text)) == "the lowest cat, lower cafe"


def test_special_tokens(by_hand):
    un, mask = BY_HAND.index("un"), BY_HAND.index("mask")
    assert by_hand.special_tokens == dict(zip(SPECIAL_TOKENS, range(5)))
    assert by_hand.encode("un", add_special_tokens=True) == [CLS, un, SEP]
    ordinary = [BY_HAND.index("["), mask, BY_HAND.index("]")]
    assert by_hand.encode("[MASK]") == ordinary
    for allowed in ("all", "[MASK]", ["[MASK]", "[CLS]"]):
        assert by_hand.encode("un[MASK]un", allowed_special=allowed) == [un, MASK, un]
    assert by_hand.encode("[MASK]", allowed_special="[SEP]") == ordinary
    assert by_hand.decode([CLS, un, PAD]) == "[CLS] un [PAD]"
    assert by_hand.decode([BY_HAND.index("##e"), un]) == "##e un"            # a continuation of nothing
    assert by_hand.decode([CLS, un, PAD], skip_special_tokens=True) == "un"
    with pytest.raises(ValueError, match="'un' is not a special token"):
        by_hand.encode("un", allowed_special="un")


def test_pairs(by_hand):
    un, low = BY_HAND.index("un"), BY_HAND.index("low")
    assert by_hand.encode_pair("un", "low low") == ([CLS, un, SEP, low, low, SEP], [0, 0, 0, 1, 1, 1])
    assert by_hand.encode_pair("", "[MASK]", "all") == ([CLS, SEP, MASK, SEP], [0, 0, 1, 1])


def test_save_and_load(sample_tokenizer, tmp_path):
    for tokenizer in (sample_tokenizer, WordPieceTokenizer(BY_HAND, lowercase=False)):
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert {**vars(loaded), "_cache": 0} == {**vars(tokenizer), "_cache": 0}
        assert (tmp_path / "vocab.txt").read_bytes() == "".join(t + "\n" for t in tokenizer.vocabulary).encode()
        from_vocab = WordPieceTokenizer.from_vocab(tmp_path / "vocab.txt", tokenizer.lowercase)
        assert {**vars(from_vocab), "_cache": 0} == {**vars(tokenizer), "_cache": 0}


def test_wrong_arguments(tmp_path):
    for vocabulary, message in (
        (SPECIAL_TOKENS[:3], r"\[SEP\], \[MASK\] is missing"),
        ([*SPECIAL_TOKENS, "a", "a"], "distinct"),
        ([*SPECIAL_TOKENS, " "], "none of them blank"),
    ):
        with pytest.raises(ValueError, match=message):
            WordPieceTokenizer(vocabulary)
    with pytest.raises(ValueError, match="vocab_size: 8 is too small .* make 4; ask for at least 9"):
        WordPieceTokenizer.train("ab ba", 8)
    assert WordPieceTokenizer.train("ab ba", 9).vocab_size == 9
    with pytest.raises(ValueError, match="there is no 'bpe'; choose one of likelihood, ratio, count"):
        WordPieceTokenizer.train("ab", 20, score="bpe")
    with pytest.raises(ValueError, match=r"'\\ud800' at position 1 is half a character"):
        WordPieceTokenizer(BY_HAND).encode("a\ud800")
    with pytest.raises(ValueError, match="99 at position 0 is outside"):
        WordPieceTokenizer(BY_HAND).decode([99])
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        WordPieceTokenizer.from_vocab(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(ValueError, match="this is not a vocabulary of BERT's"):
        WordPieceTokenizer.from_vocab(tmp_path / "vocab.txt")


@pytest.mark.parametrize("contents", [
    {"type": "wordpiece"}, {"type": "wordpiece", "vocabulary": ["a"], "lowercase": True},
    {"type": "wordpiece", "vocabulary": 5, "lowercase": True},
])
def test_damaged_files(contents, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents), encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        load_tokenizer(tmp_path)


def differing(lowercase, tokenizers):
    """Characters that Hugging Face's library cuts, drops or folds otherwise: it knows the small letters and the
    decompositions of a newer Unicode than Python's, which are all of them.
    """
    clean = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    cut = tokenizers.pre_tokenizers.BertPreTokenizer()
    theirs = lambda text: [word for word, _ in cut.pre_tokenize_str(clean.normalize_str(text))]
    characters = map(chr, [*range(0xD800), *range(0xE000, 0x110000)])
    return {c for c in characters if theirs(f"a{c}b") != words(f"a{c}b", lowercase)}


@pytest.mark.parametrize("lowercase", [True, False])
def test_equals_hugging_face(lowercase, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="compares with Hugging Face's tokenizers; pip install it")
    ours = WordPieceTokenizer.train(default_corpus()[:100_000] + SAMPLE, 800, lowercase)
    ours.save(tmp_path)
    theirs = tokenizers.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lowercase)
    other = differing(lowercase, tokenizers)
    assert all(lowercase and (unicodedata.category(c) == "Cn" or c == "\U00011938") for c in other)

    @given(st.text(), st.text(st.characters(max_codepoint=0x2FF)), st.sampled_from(["", "[MASK]", "[SEP]", "un"]))
    def check(first, second, between):
        first, second = ("".join(c for c in text if c not in other) for text in (first, second))
        encoded = theirs.encode(first + between + second, second)
        assert ours.encode_pair(first + between + second, second, "all") == (encoded.ids, encoded.type_ids)
        assert ours.encode(second) == theirs.encode(second, add_special_tokens=False).ids

    check()
    for start in range(0, 100_000, 500):
        text = default_corpus()[start : start + 500]
        assert ours.encode(text, add_special_tokens=True) == theirs.encode(text).ids
