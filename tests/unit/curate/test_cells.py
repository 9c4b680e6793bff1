"""Cells divide vectors in two levels, the same way each time."""

import numpy as np
import pytest

from pipelines.curate.cells import Cells


def clusters(count: int, each: int, noise: float = 0.2, dim: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(count, dim))
    vectors = np.repeat(centres, each, axis=0) + noise * rng.normal(size=(count * each, dim))
    vectors = vectors[rng.permutation(len(vectors))]
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_the_same_sample_gives_the_same_bytes_with_any_number_of_threads() -> None:
    import faiss

    vectors, tables = clusters(60, 40), []
    before = faiss.omp_get_max_threads()
    for threads in (1, 2, 4):
        faiss.omp_set_num_threads(threads)
        tables.append(Cells.of_sample(vectors, 60, seed=3).to_table())
        assert faiss.omp_get_max_threads() == threads
    faiss.omp_set_num_threads(before)
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_cells_are_read_as_they_were_written() -> None:
    vectors = clusters(20, 30)
    cells = Cells.of_sample(vectors, 20, seed=0)
    again = Cells.from_table(cells.to_table())
    assert again.first.tolist() == cells.first.tolist()
    assert len(again) == len(cells)
    assert again.to_table().equals(cells.to_table())
    assert (again.assign(vectors) == cells.assign(vectors)).mean() > 0.99  # stored as float16


@pytest.mark.parametrize("wanted", [1, 2, 7, 64, 300])
def test_cells_are_about_as_many_as_wanted_and_of_similar_size(wanted: int) -> None:
    vectors = clusters(600, 20)
    cells = Cells.of_sample(vectors, wanted, seed=0)
    assert 0.9 * wanted <= len(cells) <= 1.1 * wanted + 1
    assert len(cells.coarse) == int(np.ceil(np.sqrt(wanted)))
    sizes = np.bincount(cells.assign(vectors), minlength=len(cells))
    assert len(sizes) == len(cells)
    assert sizes.max() <= 4 * len(vectors) / wanted


def test_a_vector_is_in_the_most_similar_cell_of_nearly_all() -> None:
    vectors = clusters(600, 20)
    cells = Cells.of_sample(vectors, 100, seed=0)
    assigned = cells.assign(vectors)
    assert (assigned == (vectors @ cells.fine.T).argmax(axis=1)).mean() > 0.9
    assert (cells.assign(vectors[5:6]) == assigned[5:6]).all()


def test_vectors_of_one_cluster_are_in_one_cell() -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(400, 32))
    views = centres[:, None] + 0.2 * rng.normal(size=(400, 2, 32))
    views /= np.linalg.norm(views, axis=2, keepdims=True)
    views = views.astype(np.float32)
    cells = Cells.of_sample(views.reshape(-1, 32), 20, seed=0)
    assert (cells.assign(views[:, 0]) == cells.assign(views[:, 1])).mean() > 0.8


def test_a_sample_that_cannot_be_divided_gives_valid_cells() -> None:
    empty = Cells.of_sample(np.zeros((0, 8), np.float16), 5, seed=0)
    assert (len(empty), empty.fine.shape) == (1, (1, 8))
    assert empty.assign(clusters(3, 2, dim=8)).tolist() == [0] * 6
    assert empty.assign(np.zeros((0, 8), np.float32)).tolist() == []
    few = Cells.of_sample(clusters(3, 1), 50, seed=0)
    assert 1 <= len(few) <= 3
    equal = Cells.of_sample(np.repeat(clusters(1, 1), 50, axis=0), 9, seed=0)
    assert np.isfinite(equal.fine).all()
    assert ((equal.assign(clusters(5, 5)) >= 0) & (equal.assign(clusters(5, 5)) < len(equal))).all()
