"""Scoring of any model that predicts logits, and of answers to ambiguous questions."""

from bdh_jax.evaluation.scoring import (
    AnswerSwap,
    Predict,
    answer_logits,
    answer_swap,
    autoregressive,
    ceiling,
    credit,
    teacher_forced,
)

__all__ = ["AnswerSwap", "Predict", "answer_logits", "answer_swap", "autoregressive", "ceiling", "credit", "teacher_forced"]
