"""Batches, and tokens on disk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.text import BPETokenizer, CharTokenizer, TokenDataset, open_token_file, read_text, split
from tinyllm.text import tokenize_file, write_token_file
from tinyllm.text import token_file
from tinyllm.text.added_tokens import AddedToken
from tinyllm.text.token_file import cut_between_pieces


def test_split():
    train, val = split(np.arange(105))
    assert train.tolist() == list(range(94)) and val.tolist() == list(range(94, 105))
    with pytest.raises(ValueError, match="val_fraction: 2"):
        split(np.arange(9), 2)


@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 5))
def test_windows_cover_every_target_once(n, context, batch_size):
    batches = list(TokenDataset(np.arange(n), context).windows(batch_size))
    assert np.concatenate([inputs.ravel() for inputs, _ in batches]).tolist() == list(range(n - 1))
    assert np.concatenate([targets.ravel() for _, targets in batches]).tolist() == list(range(1, n))
    for inputs, targets in batches:
        assert inputs.shape == targets.shape and inputs.dtype == targets.dtype == np.int64
        assert inputs.shape[0] <= batch_size and inputs.shape[1] <= context
        assert inputs.shape[1] == context or inputs.shape[0] == 1


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 9))
def test_batches_are_shifted_by_one(context, extra, seed):
    dataset = TokenDataset(np.arange(context + 1 + extra, dtype=np.uint16), context)
    inputs, targets = dataset.batch(4, np.random.default_rng(seed))
    assert inputs.shape == targets.shape == (4, context)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all() and (np.diff(inputs, axis=1) == 1).all()


def test_batches_reach_every_start_and_repeat_with_the_seed():
    dataset = TokenDataset(np.arange(8), 3)
    inputs, _ = dataset.batch(200, np.random.default_rng(0))
    assert set(inputs[:, 0]) == set(range(5))
    assert (inputs == dataset.batch(200, np.random.default_rng(0))[0]).all()


def test_dataset_errors():
    short = TokenDataset([1, 2, 3], 3)
    assert len(short) == 3 and len(list(short.windows(4))) == 1
    with pytest.raises(ValueError, match="3 tokens long, and a context of 3 needs at least 4"):
        short.batch(1, np.random.default_rng(0))
    for wrong in ([], [1], [[1, 2]], [1.0, 2.0]):
        with pytest.raises(ValueError, match="at least 2 integers"):
            TokenDataset(wrong, 3)
    with pytest.raises(ValueError, match="context: 0"):
        TokenDataset([1, 2], 0)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_token_file(tmp_path, monkeypatch, vocab_size, dtype):
    monkeypatch.setattr(token_file, "CHUNK", 7)
    path = tmp_path / "tokens.bin"
    tokens = np.random.default_rng(0).integers(0, vocab_size, 100)
    tokens[50] = vocab_size - 1
    for source in (tokens, tokens.tolist(), iter(tokens.tolist())):
        assert write_token_file(path, source, vocab_size) == 100
        stored = open_token_file(path, vocab_size)
        assert isinstance(stored, np.memmap) and stored.dtype == dtype and (stored == tokens).all()
    on_disk, in_memory = TokenDataset(stored, 8), TokenDataset(tokens, 8)
    for a, b in zip(on_disk.windows(2), in_memory.windows(2), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(on_disk.batch(5, np.random.default_rng(1)), in_memory.batch(5, np.random.default_rng(1)))


def test_token_file_layout(tmp_path):
    write_token_file(tmp_path / "t", [7, 8, 299], 300)
    data = (tmp_path / "t").read_bytes()
    assert data[:8] == b"tinyllm\0" and data[32:] == bytes([7, 0, 8, 0, 0x2B, 1])
    write_token_file(tmp_path / "t", [], 300)
    assert open_token_file(tmp_path / "t").shape == (0,)


@pytest.mark.parametrize("wrong", [[1, 300], [-1], [0.5], np.zeros((2, 2), int)])
def test_a_failed_write_leaves_the_old_file(tmp_path, wrong):
    path = tmp_path / "tokens.bin"
    write_token_file(path, [1, 2], 300)
    with pytest.raises(ValueError, match="not an id from 0 to 299"):
        write_token_file(path, wrong, 300)
    assert open_token_file(path).tolist() == [1, 2] and list(tmp_path.iterdir()) == [path]


def test_foreign_and_damaged_token_files(tmp_path):
    path = tmp_path / "tokens.bin"
    with pytest.raises(FileNotFoundError, match="tokens.bin: there is no such file"):
        open_token_file(path)
    for foreign in (b"", b"hello", b"\0" * 100):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match="not a token file"):
            open_token_file(path)
    write_token_file(path, range(10), 300)
    with pytest.raises(ValueError, match="vocabulary of 300 ids, not 301"):
        open_token_file(path, 301)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="51 bytes long instead of 52"):
        open_token_file(path)


@given(st.lists(st.text(alphabet="ab1'sl! \n\t你", min_size=1, max_size=6), min_size=1))
def test_tokens_do_not_depend_on_the_chunks(chunks):
    text = "".join(chunks)
    tokenizer = BPETokenizer.train(text, 300)
    parts = list(cut_between_pieces(chunks))
    assert "".join(parts) == text
    assert [i for part in parts for i in tokenizer.encode(part)] == tokenizer.encode(text)


def test_tokenize_file(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("It's  the first 文件。\n\n" * 50_000, encoding="utf-8")  # more than one chunk
    two.write_text("and the second", encoding="utf-8")
    whole = read_text(one, two)
    for tokenizer in (BPETokenizer.train(whole, 280), CharTokenizer.train(whole)):
        count = tokenize_file([one, two], tokenizer, tmp_path / "tokens.bin")
        tokens = open_token_file(tmp_path / "tokens.bin", tokenizer.vocab_size)
        assert count == len(tokens) and tokens.tolist() == tokenizer.encode(whole)
    assert tokenize_file(two, tokenizer, tmp_path / "tokens.bin") == 14


@pytest.mark.parametrize("token, text", [(AddedToken("the first", 256, special=False), "It's the first"),
                                         (AddedToken("first", 256, special=False, rstrip=True), "It's first  of")])
def test_tokenize_file_cuts_no_added_token(token, text, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    tokenizer = BPETokenizer.from_vocabulary({bytes([i]): i for i in range(256)}, [], [token])
    tokenize_file(path, tokenizer, tmp_path / "tokens.bin")
    tokens = open_token_file(tmp_path / "tokens.bin").tolist()
    assert tokens == tokenizer.encode(read_text(path)) and 256 in tokens
