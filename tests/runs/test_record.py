"""What the folder of a run says of its token ids."""

from __future__ import annotations

import pytest

from bdh_jax.data.tokenizer import load_tokenizer, train_tokenizer
from bdh_jax.tasks import CounterConfig, FactsConfig, NBackConfig, TextConfig
from bdh_jax.runs.record import token_meaning


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    path.write_text(train_tokenizer([b"to be or not to be " * 50], 270))
    return load_tokenizer(path)


def test_only_tasks_of_the_same_tokens_go_together(bpe):
    meanings = [
        [token_meaning(NBackConfig(), None), token_meaning(CounterConfig(), None)],
        [token_meaning(NBackConfig(encoding="text"), None), token_meaning(TextConfig(), load_tokenizer(None))],
        [token_meaning(FactsConfig(), None)],
        [token_meaning(TextConfig(), bpe)],
    ]
    for group in meanings:
        assert len(set(group)) == 1
    assert len({group[0] for group in meanings}) == len(meanings)
