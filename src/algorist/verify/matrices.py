"""Matrices: sums, products and determinants of matrices that an answer leaves to do, carried out on its tree."""

from __future__ import annotations

from algorist.verify.nodes import Node, negative

_LARGEST_DETERMINANT = 5


def computed(node: Node) -> Node:
    """The node with matrix operations done where the sizes fit; other nodes as they are."""
    if not node.parts or node.kind in ("matrix", "tuple", "list", "set"):
        return node
    parts = tuple(computed(part) for part in node.parts)
    node = node._replace(parts=parts)
    matrices = [part for part in parts if part.kind == "matrix"]
    if not matrices:
        return node
    if node.kind == "sum" and len(matrices) == len(parts):
        return _added(parts) or node
    if node.kind == "product":
        return _multiplied(parts) or node
    if node.kind == "negative":
        return _scaled(matrices[0], Node("number", (), -1))
    if node.kind == "function" and node.value == "det":
        return _determinant([list(row.parts) for row in matrices[0].parts]) or node
    return node


def _matrix(rows: list[list[Node]]) -> Node:
    return Node("matrix", tuple(Node("tuple", tuple(row), "()") for row in rows))


def _added(parts: tuple[Node, ...]) -> Node | None:
    shapes = {(len(part.parts), len(part.parts[0].parts)) for part in parts}
    if len(shapes) != 1:
        return None
    rows, columns = shapes.pop()
    return _matrix([
        [Node("sum", tuple(part.parts[row].parts[column] for part in parts)) for column in range(columns)]
        for row in range(rows)
    ])  # fmt: skip


def _scaled(matrix: Node, by: Node) -> Node:
    return _matrix([[Node("product", (by, entry)) for entry in row.parts] for row in matrix.parts])


def _multiplied(parts: tuple[Node, ...]) -> Node | None:
    found = parts[0]
    for part in parts[1:]:
        if found.kind == part.kind == "matrix":
            inner = len(part.parts)
            if len(found.parts[0].parts) != inner or inner > 10:
                return None
            found = _matrix([
                [
                    Node("sum", tuple(Node("product", (row.parts[k], part.parts[k].parts[j])) for k in range(inner)))
                    for j in range(len(part.parts[0].parts))
                ]
                for row in found.parts
            ])  # fmt: skip
        elif part.kind == "matrix":
            found = _scaled(part, found)
        elif found.kind == "matrix":
            found = _scaled(found, part)
        else:
            found = Node("product", (found, part))
    return found


def _determinant(rows: list[list[Node]]) -> Node | None:
    """By the first row; None for what is not square or too large for that."""
    size = len(rows)
    if size > _LARGEST_DETERMINANT or any(len(row) != size for row in rows):
        return None
    if size == 1:
        return rows[0][0]
    terms = []
    for column, entry in enumerate(rows[0]):
        minor = _determinant([[*row[:column], *row[column + 1 :]] for row in rows[1:]])
        assert minor is not None, "a minor of a square matrix is square"
        term = Node("product", (entry, minor))
        terms.append(term if column % 2 == 0 else negative(term))
    return Node("sum", tuple(terms))
