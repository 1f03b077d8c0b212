"""The same stream and loss inside other people's training loops, and students in their evaluations.

transformers.py    `class DistillTrainer(DistillMixin, Trainer)`, for `transformers.Trainer`
lightning.py       `DistillModule` and `DistillData`, for `lightning.Trainer`
torchtitan.py      `SoftTargetTrainer`, its loader and its loss, for torchtitan
lm_eval.py         `SoftTrainLM`, a model of lm-evaluation-harness
evaluate.py        `answers`, for the metrics of Hugging Face `evaluate`; imports nothing of it

Each but the last imports its library; this package alone does not.
"""

from __future__ import annotations

import warnings

from softlabels.store.reader import Store
from trainers.data.tasks import CAUSAL, renumbers
from trainers.loss.losses import DistillLoss
from trainers.students import Student
from trainers.students.context import check_student
from trainers.students.documents import SEE_EACH_OTHER


def check_fit(student: Student, loss: DistillLoss, store: Store) -> None:
    """Refuse what `softtrain run` refuses before its first step.

    A view that renumbers ids (`map:FILE`) is taken on your word, with a warning: no tokenizer is compared. A student in
    which documents of a row would see each other is fed each as a sequence of its own, with a warning, too.

    Raises:
        PairingError: the store cannot serve the loss, or the student's head has another vocabulary.
        TokenizerError: the student's folder holds another tokenizer than the store's.
    """
    where = f"student {student.source or type(student.model).__name__}"
    loss.check(store.identity.targets)
    unknown = check_student(student, store, where=where)
    if unknown is not None:
        warnings.warn(
            f"{where}: {unknown}, so nothing says that its ids mean what they mean in {store.path}; save its tokenizer "
            "beside its weights",
            stacklevel=3,
        )
    if renumbers(store):
        warnings.warn(
            f"{store.path}: the view renumbers the ids, so the tokenizer of {where} is not compared with the store's",
            stacklevel=3,
        )
    if store.identity.domain == CAUSAL.domain and student.keeps_documents_apart is False:
        warnings.warn(SEE_EACH_OTHER.format(model=type(student.model).__name__), stacklevel=3)
