"""Mutants of the probe of a model when the trainer is made."""

from mutant import mutant

TESTS = "teacher/test_probe.py"

MUTANTS = [
    mutant(
        "probe_heads_product_unchecked",
        "the LM head as data is never compared with the model's own logits",
        ("teacher/probe.py", "off = _relative(product_NV, own_NV)", "off = 0.0"),
        tests=(
            f"{TESTS}::test_a_head_that_is_not_its_product_is_refused[scaled by 1.1-dtype0]",
            f"{TESTS}::test_every_routing_that_distils_is_probed",
        ),
    ),
    mutant(
        "probe_trls_head_unchecked",
        "TRL's fused LM head is never compared with the model's own logits",
        (
            "teacher/probe.py",
            "off = _relative(*_fused_and_own_logps(passes, inputs, loud, source, temperature))",
            "off = 0.0",
        ),
        tests=(f"{TESTS}::test_a_fused_head_of_another_temperature_is_refused",),
    ),
    mutant(
        "probe_of_quiet_logits",
        "the logits are compared as small as they are, where a softcap does not show",
        (
            "teacher/probe.py",
            'factor = max(1.0, _SPREAD / spread) if 0 < spread < float("inf") else 1.0',
            "factor = 1.0",
        ),
        tests=(f"{TESTS}::test_a_softcap_is_seen_where_the_logits_are_small",),
    ),
    mutant(
        "probe_unread_parameters",
        "parameters between hidden states and logits that only training would move are overlooked",
        ("teacher/probe.py", "unread = _unread_parameters(passes, inputs, source)", "unread = []"),
        tests=(f"{TESTS}::test_a_trained_scale_is_seen_before_it_is_trained",),
    ),
    mutant(
        "probe_padding_unchecked",
        "a row padded on the left is never compared with the row alone",
        ("teacher/probe.py", "needs_positions = not off <= largest", "needs_positions, off = False, 0.0"),
        tests=(
            f"{TESTS}::test_learned_positions_do_not_count_padding",
            f"{TESTS}::test_padding_that_position_ids_do_not_mend_is_refused",
        ),
    ),
    mutant(
        "probe_positions_count_padding",
        "the position ids that are given count the padding, as the model does",
        (
            "teacher/positions.py",
            "(attention_mask_RL.long().cumsum(-1) - 1)",
            "(attention_mask_RL.long().fill_(1).cumsum(-1) - 1)",
        ),
        tests=(
            f"{TESTS}::test_positions_count_a_rows_own_tokens",
            f"{TESTS}::test_learned_positions_are_seen_in_half_precision",
        ),
    ),
    mutant(
        "probe_reference_model_without_positions",
        "the reference model counts padding, the student does not",
        ("teacher/prepared_student.py", "for model in (student, reference):", "for model in (student,):"),
        tests=(f"{TESTS}::test_nor_do_those_of_the_reference_model",),
    ),
    mutant(
        "probe_later_tokens_unchecked",
        "a model that sees later tokens is trained on completions",
        ("teacher/probe.py", "if not rounding <= tolerances.causal:", "if rounding == -1.0:"),
        tests=(f"{TESTS}::test_a_model_that_sees_later_tokens_is_refused",),
    ),
    mutant(
        "probe_layout_unchecked",
        "the layout that the configuration suggests is taken, though rows leak into each other",
        ("teacher/probe.py", "if differences[tried] <= largest:", "if tried:"),
        tests=(f"{TESTS}::test_rows_that_would_leak_into_each_other_are_padded[packed]",),
    ),
    mutant(
        "probe_layout_not_taken",
        "the teacher's rows are laid out as suggested, whatever the probe has found",
        ("teacher/prepared_student.py", "return found.layout", "return layout"),
        tests=(f"{TESTS}::test_the_trainer_takes_the_layout_that_was_found",),
    ),
    mutant(
        "probe_leaves_evaluation_mode",
        "the model trains in evaluation mode, without dropout",
        ("teacher/probe.py", "module.training = was_training", "pass"),
        tests=(f"{TESTS}::test_the_model_is_left_as_it_was",),
    ),
    mutant(
        "probe_leaves_buffers",
        "buffers that a forward pass changes stay changed",
        ("teacher/probe.py", "buffer.copy_(value)", "pass"),
        tests=(f"{TESTS}::test_the_model_is_left_as_it_was",),
    ),
    mutant(
        "probe_copies_whole_model",
        "layers that were brought to the device stay there",
        (
            "seams/residence.py",
            "layer.register_forward_hook(lambda *_, those=while_it_runs: those.close()),",
            "layer.register_forward_hook(lambda *_, those=while_it_runs: None),",
        ),
        tests=(f"{TESTS}::test_layers_come_to_the_device_one_after_the_other",),
    ),
    mutant(
        "probe_compiles",
        "a compiled model is compiled for the probe, whose hooks end the trace",
        (
            "teacher/probe.py",
            'torch.compiler.set_stance("force_eager")',
            'torch.compiler.set_stance("default")',
        ),
        tests=(f"{TESTS}::test_a_compiled_model_is_probed_without_compiling",),
    ),
]
