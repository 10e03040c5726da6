"""The tests of parity that hold in any `world`, for modules that bring one of their own. Tests nothing itself."""

from tests.engine.test_blend import (
    test_a_mixture_alone_equals_the_slow_reference,
    test_an_expert_of_weight_one_answers_as_it_does_alone,
    test_mixtures_in_a_mixed_batch_equal_themselves_alone,
)
from tests.engine.test_mixture import test_a_mixed_batch_gives_the_same_tokens_as_alone
from tests.engine.test_mixture import test_greedy_tokens_equal_the_slow_reference as test_logit_mixtures_equal_it_too
from tests.engine.test_parity import (
    test_greedy_tokens_equal_peft_in_fp32,
    test_indicator_logits_equal_peft,
    test_mixed_batch_gives_the_same_tokens_as_alone,
    test_probed_expert_answers_as_when_named,
)

__all__ = [
    "test_a_mixed_batch_gives_the_same_tokens_as_alone",
    "test_a_mixture_alone_equals_the_slow_reference",
    "test_an_expert_of_weight_one_answers_as_it_does_alone",
    "test_greedy_tokens_equal_peft_in_fp32",
    "test_indicator_logits_equal_peft",
    "test_logit_mixtures_equal_it_too",
    "test_mixed_batch_gives_the_same_tokens_as_alone",
    "test_mixtures_in_a_mixed_batch_equal_themselves_alone",
    "test_probed_expert_answers_as_when_named",
]
