"""The Multi-MNIST recipe, and files that are missing or damaged."""

import gzip
import itertools
import urllib.error

import numpy as np
import pytest

from experiments import data


def test_digits_are_overlaid_pairs_of_disjoint_splits():
    splits = data.load("digits")
    assert [len(split.labels) for split in splits] == [8000, 1500, 3000]
    for split in splits:
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (12, 12)
        assert (split.labels[:, 0] != split.labels[:, 1]).all()
    train, validation, test = data._digits(np.random.default_rng(0))
    seen = [{image.tobytes() for image in part.images} for part in (train, validation, test)]
    for one, other in itertools.combinations(seen, 2):
        assert not one & other


def test_the_seed_decides():
    one, two, other = (data.load("digits", seed=seed, quick=True) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.test.images, two.test.images)
    assert (one.test.images != other.test.images).any()


def test_overlaying_keeps_the_brighter_pixel():
    """A block of 100 and a block of 200: every pixel is one of them, where its image was put."""
    first = data.Images(np.full((1, 4, 4), 100, np.uint8), np.array([0]))
    second = data.Images(np.full((1, 4, 4), 200, np.uint8), np.array([1]))
    pairs = data.overlay(np.random.default_rng(0), first, second, 200, canvas=6, move=1)
    places = set()
    for image in pairs.images:
        rows, columns = np.nonzero(image == 200)
        assert (rows.max() - rows.min(), columns.max() - columns.min()) == (3, 3)
        assert len(rows) == 16
        low = (rows.min(), columns.min())
        places.add(low)
        assert min(low) >= 1  # towards the bottom right
        assert set(np.unique(image)) <= {0, 100, 200}
        left = image[:5, :5]
        assert (left > 0).sum() >= 16  # the other, towards the top left, brighter pixels on top
    assert places == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert (pairs.labels == [0, 1]).all()


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes())


def test_idx_files_are_read():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(data.parse_idx(idx(array)), array)
    with pytest.raises(ValueError, match="not an idx file"):
        data.parse_idx(gzip.compress(b"not at all"))


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((1, 28, 28), np.uint8)))
    monkeypatch.setenv("DIVJAX_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        data.load("multi_mnist")


def test_a_missing_file_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.delenv("DIVJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data.urllib.request, "urlopen", offline)
    with pytest.raises(FileNotFoundError, match=r"DIVJAX_DATA_DIR \(not set\).*could not be read"):
        data.load("multi_fashion")
    assert not any(tmp_path.rglob("*.gz"))


def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch):
    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self):
            return b"truncated"

    monkeypatch.delenv("DIVJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data.urllib.request, "urlopen", lambda *_, **__: Response())
    with pytest.raises(ValueError, match="is damaged"):
        data.load("multi_mnist")
    assert not any(tmp_path.rglob("*.gz"))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="dataset must be one of digits, multi_mnist"):
        data.load("cifar")
