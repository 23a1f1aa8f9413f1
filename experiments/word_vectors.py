"""Word vectors from texts: co-occurrences, positive pointwise mutual information, and their SVD.

With c_ij how often words i and j are within a window of each other, and sums c_i and c of these,
PPMI_ij = max(0, log(c_ij c/(c_i c_j))). The vectors are the rows of U √S of its truncated singular
value decomposition (Levy, Goldberg, Dagan 2015).
"""

import collections
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from experiments import data

ARCHIVES = ("genesis", "inaugural", "movie_reviews", "shakespeare", "state_union")
# A word may have an apostrophe within.
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def read_texts() -> list[str]:
    """Tiny Shakespeare and the English texts of five corpora of NLTK, one string a document.

    Raises:
        FileNotFoundError: if the files are not under `DIVJAX_DATA_DIR`: they are never downloaded.
    """
    texts = [data.fetch("text/tinyshakespeare.txt").decode()]
    for name in ARCHIVES:
        with zipfile.ZipFile(io.BytesIO(data.fetch(f"text/nltk/{name}.zip"))) as archive:
            for file in sorted(archive.namelist()):
                english = name != "genesis" or "/english-" in file
                if english and file.endswith((".txt", ".xml")) and "README" not in file:
                    text = archive.read(file).decode("utf-8", errors="replace")
                    texts.append(re.sub(r"<[^>]*>", " ", text) if file.endswith("xml") else text)
    return texts


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower())


def cooccurrences(
    documents: Iterable[Sequence[str]], vocabulary: int, window: int
) -> tuple[list[str], scipy.sparse.csr_array]:
    """The most frequent words, and how often two of them are at most a window apart.

    Other words are left out, and keep their places. No window reaches into another document.
    """
    documents = list(documents)
    found = collections.Counter(word for document in documents for word in document)
    words = sorted(found, key=lambda word: (-found[word], word))[:vocabulary]
    place = {word: index for index, word in enumerate(words)}
    gap = [-1] * window
    ids = np.array([id for doc in documents for id in [*(place.get(w, -1) for w in doc), *gap]])
    size = len(words)
    counts = scipy.sparse.csr_array((size, size), dtype=np.int64)
    for distance in range(1, window + 1):
        first, second = ids[:-distance], ids[distance:]
        both = (first >= 0) & (second >= 0)
        pairs = first[both], second[both]
        ones = np.ones(both.sum(), np.int64)
        counts = counts + scipy.sparse.coo_array((ones, pairs), (size, size)).tocsr()
    return words, counts + counts.T


def positive_pmi(counts: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """The positive part of the pointwise mutual information of pairs, in nats."""
    pairs = counts.tocoo()
    margin = np.asarray(counts.sum(axis=1), float)
    values = np.log(pairs.data * margin.sum() / (margin[pairs.row] * margin[pairs.col]))
    kept = values > 0
    places = pairs.row[kept], pairs.col[kept]
    return scipy.sparse.coo_array((values[kept], places), counts.shape).tocsr()


def svd_vectors(matrix: scipy.sparse.csr_array, dim: int, seed: int) -> np.ndarray:
    """U √S of the largest singular values, in descending order: a row a word."""
    shape: Any = matrix.shape
    start = np.random.default_rng(seed).normal(size=min(shape))
    found: Any = scipy.sparse.linalg.svds(matrix, k=dim, v0=start)
    u, s, _ = found
    order = np.argsort(-s)
    return u[:, order] * np.sqrt(s[order])


def word_vectors(vocabulary: int, dim: int, window: int, seed: int) -> np.ndarray:
    """The vectors of the most frequent words of all texts, the most frequent one first.

    Raises:
        FileNotFoundError: if the texts are not under `DIVJAX_DATA_DIR`.
    """
    documents = map(words_of, read_texts())
    _, counts = cooccurrences(documents, vocabulary, window)
    return svd_vectors(positive_pmi(counts), dim, seed).astype(np.float32)
