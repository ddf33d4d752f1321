"""Near copies and decontamination of long documents: ours beside rensa and datatrove, in turns, in one process.

    python bench/clean.py [--documents 20000] [--length 10000] [--rounds 3] [--peers 200]

Documents are token ids with the frequencies of language; 5 % are near copies of an earlier one, edited to a Jaccard
similarity of five-id runs around 0.8. Times are processor seconds of one core, medians of the rounds; peers get the
first `--peers` documents in each round. A row is printed as a table line and as JSON. What is not installed is skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from algorist.data.leaks import Index, hits, quotes
from algorist.numerics import minhash, runs, shingles, words
from algorist.records import Problem

RUN, NEAR, NGRAM = 5, 0.8, 13


def corpus(documents: int, length: int, draw: np.random.Generator) -> tuple[shingles.Rows, list[tuple[int, int]]]:
    """Documents of token ids and the planted pairs (earlier, later)."""
    values = (draw.zipf(1.3, documents * length) % 100_000).astype(np.int32)
    rows = values.reshape(documents, length)
    pairs = []
    for later in range(1, documents, 20):
        earlier = int(draw.integers(0, later))
        rows[later] = rows[earlier]
        # One changed id takes up to RUN runs away on each side: this many edits leave a similarity about 0.8.
        edits = int(length * draw.uniform(0.6, 1.3) * (1 - NEAR) / (1 + NEAR) / RUN)
        rows[later, draw.choice(length, edits, replace=False)] = draw.integers(100_000, 200_000, edits)
        pairs.append((earlier, later))
    return shingles.Rows(values, np.arange(documents + 1, dtype=np.int64) * length), pairs


def near_pairs(documents: shingles.Rows) -> set[tuple[int, int]]:
    """Signatures, bands, and every candidate compared in full."""
    shape = minhash.layout(NEAR)
    keys = minhash.bands(minhash.signatures(documents, RUN), shape)
    groups = [minhash.buckets(band) for band in keys]
    met = {
        (int(one), int(other))
        for found in groups
        for at in range(len(found))
        for place, other in enumerate(found[at])
        for one in found[at][:place]
    }
    some = sorted({place for pair in met for place in pair})
    of = shingles.sets(shingles.rows([documents[place] for place in some]), RUN)
    where = {place: at for at, place in enumerate(some)}
    return {(a, b) for a, b in met if minhash.jaccard(of[where[a]], of[where[b]]) >= NEAR}


def exact(documents: shingles.Rows, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """The similarity that each planted pair really has."""
    found = {}
    for pair in pairs:
        of = shingles.sets(shingles.rows([documents[place] for place in pair]), RUN)
        found[pair] = minhash.jaccard(of[0], of[1])
    return found


def rensa(documents: shingles.Rows) -> Callable[[], Any] | None:
    """R-MinHash, 128 hashes, over hashes of the same runs that we make for it, as its fastest entrance takes them."""
    try:
        from rensa import RMinHash
    except ImportError:
        return None

    def sign() -> Any:
        found = shingles.grams(documents, RUN)
        return RMinHash.digest_matrix_from_flat_token_hashes(found.values, found.starts.astype(np.uint64), 128, 1)

    return sign


def rensa_of_text(texts: list[str]) -> Callable[[], Any] | None:
    """R-MinHash over shingles of words as Python strings: how its own examples use it."""
    try:
        from rensa import RMinHash
    except ImportError:
        return None

    def sign() -> None:
        for text in texts:
            said = text.split()
            RMinHash(128, 1).update([" ".join(said[at : at + RUN]) for at in range(len(said) - RUN + 1)])

    return sign


def datatrove(texts: list[str]) -> Callable[[], Any] | None:
    """Its MinHash signature of each text: 14 x 8 hashes over word 5-grams, cut by its own tokeniser."""
    try:
        from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
        from datatrove.utils.hashing import HashConfig

        config = MinhashConfig(n_grams=RUN, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))
        signer = MinhashDedupSignature("/nowhere", config=config, language="en")
        signer.get_signature(signer.get_shingles(texts[0][:1000]))
    except (ImportError, OSError, AttributeError, TypeError) as error:
        print(f"datatrove is skipped: {error}")
        return None

    def sign() -> None:
        for text in texts:
            signer.get_signature(signer.get_shingles(text))

    return sign


def datatrove_ngrams(texts: list[str], asked: list[str]) -> Callable[[], Any] | None:
    """Its decontamination's way to the n-grams of a text, met with a set of the benchmarks' hashes."""
    try:
        from datatrove.utils.hashing import HashConfig, create_hash_func
        from datatrove.utils.text import TextNormConfig, ngrams, simplify_text
        from datatrove.utils.word_tokenizers import load_word_tokenizer

        cut, hashed = load_word_tokenizer("en").word_tokenize, create_hash_func(HashConfig())
    except (ImportError, OSError) as error:
        print(f"datatrove is skipped: {error}")
        return None

    def found(text: str) -> set[int]:
        return {hashed(" ".join(gram)) for gram in ngrams(cut(simplify_text(text, TextNormConfig())), NGRAM)}

    known = set().union(*(found(text) for text in asked[:50]))

    def look() -> None:
        for text in texts:
            known.isdisjoint(found(text))

    return look


def rates(rounds: int, work: dict[str, tuple[int, Callable[[], Any] | None]]) -> dict[str, float]:
    """Documents a second of one core: each piece of work once to warm up, then all in turns."""
    taken: dict[str, list[float]] = {name: [] for name, (_, call) in work.items() if call}
    for turn in range(rounds + 1):
        for name, (_, call) in work.items():
            if call:
                start = time.process_time()
                call()
                if turn:
                    taken[name].append(time.process_time() - start)
    return {name: work[name][0] / statistics.median(spent) for name, spent in taken.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--length", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=int, default=200)
    args = parser.parse_args()
    draw = np.random.default_rng(1)
    documents, pairs = corpus(args.documents, args.length, draw)
    ids = len(documents.values)
    asked = (draw.zipf(1.3, 806 * 74) % 100_000).astype(np.uint64).reshape(806, 74)  # 50,000 13-grams
    leaked = draw.choice(args.documents, args.documents // 100, replace=False)
    for place in leaked:
        start = int(draw.integers(0, args.length - NGRAM))
        documents[place][start : start + NGRAM] = asked[place % 806][20 : 20 + NGRAM]
    similar = exact(documents, pairs)
    few = shingles.Rows(documents.values[: args.peers * args.length], documents.starts[: args.peers + 1])
    texts = [" ".join(f"w{one}" for one in few[at].tolist()) for at in range(len(few))]
    questions = [" ".join(f"w{one}" for one in row.tolist()) for row in asked]
    sought = runs.sought(shingles.rows(asked, np.uint64), NGRAM)
    index = Index.of({"asked": [Problem.of(text, "1") for text in questions]})
    statements = [Problem.of(" ".join(text.split()[:60]), "1") for text in texts] * 20
    done: dict[str, Any] = {}

    def keep(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            done[name] = call()

        return run

    work: dict[str, tuple[int, Callable[[], Any] | None]] = {
        "near: ours, ids to pairs": (args.documents, keep("near", lambda: near_pairs(documents))),
        "near: ours, signatures alone": (args.documents, lambda: minhash.signatures(documents, RUN)),
        "near: ours, text to signatures": (args.peers, lambda: minhash.signatures(words.words(texts), RUN)),
        "near: rensa, our hashes to signatures": (args.peers, rensa(few)),
        "near: rensa, text to signatures": (args.peers, rensa_of_text(texts)),
        "near: datatrove, text to signatures": (min(20, args.peers), datatrove(texts[:20])),
        "decontaminate: ours, ids": (args.documents, keep("runs", lambda: runs.shared(sought, documents, first=True))),
        "decontaminate: ours, text (quotes)": (args.peers, lambda: quotes(index, texts)),
        "decontaminate: ours, statements of 60 words": (len(statements), lambda: hits(index, statements)),
        "decontaminate: datatrove, text": (min(20, args.peers), datatrove_ngrams(texts[:20], questions)),
    }
    found = rates(args.rounds, work)
    wanted = {pair for pair, similarity in similar.items() if similarity >= NEAR}
    limit = {pair for pair in wanted if similar[pair] < NEAR + 0.02}
    told = {row for row, *_ in done["runs"].tolist()}
    extra = {
        "near: ours, ids to pairs": {
            "planted at 0.8 or more": len(wanted),
            "recall": len(wanted & done["near"]) / max(1, len(wanted)),
            "planted at 0.80-0.82": len(limit),
            "recall there": len(limit & done["near"]) / max(1, len(limit)),
            "pairs found": len(done["near"]),
            "false": len([pair for pair in done["near"] if exact(documents, [pair])[pair] < NEAR]),
        },
        "decontaminate: ours, ids": {
            "leaks planted": len(leaked),
            "missed": len(set(leaked.tolist()) - told),
            "others told of": len(told - set(leaked.tolist())),
        },
    }
    print(f"{args.documents} documents of {args.length} ids ({ids / 1e6:.0f} M), one core, processor time")
    for name, rate in found.items():
        print(f"{name:45} {rate:12,.0f} docs/s   {json.dumps(extra.get(name, {})) if name in extra else ''}")
    for name, rate in found.items():
        print(json.dumps({"bench": name, "docs_per_second_per_core": round(rate, 1), **extra.get(name, {})}))


if __name__ == "__main__":
    main()
