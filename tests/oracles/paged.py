"""Attention over pages, token by token."""

import math

Cache = list[list[list[list[float]]]]  # page, head, place in the page, number


def attend(
    query: list[list[list[float]]], keys: Cache, values: Cache, table: list[list[int]], used: list[int], scale: float
) -> list[list[list[float]]]:
    out = []
    for heads, pages, tokens in zip(query, table, used, strict=True):
        size, group = len(keys[0][0]), len(heads) // len(keys[0])
        places = [(pages[token // size], token % size) for token in range(tokens)]
        rows = []
        for number, head in enumerate(heads):
            shared = number // group
            scores = [
                scale * math.fsum(a * b for a, b in zip(head, keys[page][shared][place], strict=True))
                for page, place in places
            ]
            weights = [math.exp(score - max(scores)) for score in scores]
            mean = [
                math.fsum(w * values[page][shared][place][i] for w, (page, place) in zip(weights, places, strict=True))
                / math.fsum(weights)
                for i in range(len(head))
            ]
            rows.append(mean)
        out.append(rows)
    return out
