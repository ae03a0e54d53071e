"""Watching byte-pair encoding at work, one piece of text at a time.

After ``BPETokenizer.train("low low low lower", vocab_size=259)``, the second piece of "low lower" prints as

    piece ' lower', bytes 20 6c 6f 77 65 72
      merge 0: 'l' + 'o'      ' ' 'lo' 'w' 'e' 'r'
      merge 1: 'lo' + 'w'     ' ' 'low' 'e' 'r'
      merge 2: ' ' + 'low'    ' low' 'e' 'r'
      ids 258 101 114
"""

from dataclasses import dataclass

from .bpe_merge import Pairs, merge_steps
from .pretokenize import to_bytes
from .tokenizer_file import readable


@dataclass(frozen=True)
class MergeStep:
    """One merge: its rank (0 was learned first), the two tokens it joins, and all tokens of the piece after it."""

    rank: int
    left: bytes
    right: bytes
    tokens: list[bytes]

    def __str__(self) -> str:
        pair = f"{readable(self.left)} + {readable(self.right)}"
        return f"  merge {self.rank}: {pair:<16}  {' '.join(map(readable, self.tokens))}"


@dataclass(frozen=True)
class PieceWork:
    """How one piece was encoded: its text, its bytes, the merges in the order of application, and the ids."""

    piece: str
    data: bytes
    steps: list[MergeStep]
    ids: list[int]

    def __str__(self) -> str:
        lines = [f"piece {self.piece!r}, bytes {self.data.hex(' ')}", *map(str, self.steps)]
        return "\n".join([*lines, "  ids " + " ".join(map(str, self.ids))])


def piece_work(piece: str, byte_ids: list[int], merges: Pairs, ranks: Pairs, vocabulary: list[bytes]) -> PieceWork:
    """Encode one piece the plain way, and keep every step.

    Args:
        piece: a piece of text.
        byte_ids: the id of each byte.
        merges, ranks: see ``merge_steps``.
        vocabulary: the bytes of each id.
    """
    data = to_bytes(piece)
    ids = [byte_ids[byte] for byte in data]
    steps = []
    for pair, merged in merge_steps(ids, merges, ranks):
        ids = merged
        left, right = (vocabulary[i] for i in pair)
        steps.append(MergeStep(ranks[pair], left, right, [vocabulary[i] for i in ids]))
    return PieceWork(piece, data, steps, ids)
