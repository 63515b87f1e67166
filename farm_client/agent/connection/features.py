"""What this client can do that older ones can't, as its hello says it."""

from __future__ import annotations

from typing import Final

from protocol.credit import CREDIT
from protocol.versions import (
    BASE_FOLDER,
    CARRIED_STATE,
    CONTROL_VARIATES,
    EPOCH_END,
    FRAGMENTS,
    FROZEN_APART,
    MAP_ITEMS,
    NAMED_SCHEDULE,
    PROXIMAL_TERM,
    QUANTIZED_BASE,
    SECAGG,
    SEQUENTIAL_ORDER,
    SPLIT_VARIATES,
    STEP_RULES,
    TASK_ENVIRONMENT,
    TASK_LENGTH,
)

FEATURES: Final = (
    BASE_FOLDER,
    CARRIED_STATE,
    CONTROL_VARIATES,
    CREDIT,
    EPOCH_END,
    FRAGMENTS,
    FROZEN_APART,
    NAMED_SCHEDULE,
    PROXIMAL_TERM,
    QUANTIZED_BASE,
    SECAGG,
    SEQUENTIAL_ORDER,
    SPLIT_VARIATES,
    STEP_RULES,
    MAP_ITEMS,
    TASK_ENVIRONMENT,
    TASK_LENGTH,
)
