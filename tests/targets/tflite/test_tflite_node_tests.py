"""A sample of ONNX's own node tests; ``benchmarks/tflite_backend_tests.py`` runs them all."""

from __future__ import annotations

import pytest
from tflite_models import platform

from benchmarks.tflite_backend_tests import cases, judge

pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")

PASSING = [
    "test_argmax_keepdims_random_select_last_index",
    "test_averagepool_2d_ceil",
    "test_averagepool_2d_dilations",
    "test_averagepool_2d_pads_count_include_pad",
    "test_averagepool_3d_default",
    "test_batchnorm_example_training_mode",
    "test_clip_example",
    "test_concat_3d_axis_negative_2",
    "test_convtranspose_dilations",
    "test_convtranspose_output_shape",
    "test_depthtospace_crd_mode_example",
    "test_dropout_default_mask",
    "test_elu",
    "test_expand_dim_changed",
    "test_gather_negative_indices",
    "test_gemm_all_attributes",
    "test_hardsigmoid",
    "test_l1normalization_axis_1",
    "test_logsoftmax_axis_0",
    "test_matmul_4d",
    "test_maxpool_with_argmax_2d_precomputed_strides",
    "test_maxpool_3d_default",
    "test_mish",
    "test_mod_int64_fmod",
    "test_pow_bcast_scalar",
    "test_pow_types_float32_int64",
    "test_prelu_broadcast",
    "test_reduce_l2_keep_dims_example",
    "test_reduce_max_bool_inputs",
    "test_resize_downsample_scales_linear",
    "test_resize_upsample_sizes_nearest_ceil_half_pixel",
    "test_selu",
    "test_shape_start_1_end_negative_1",
    "test_slice_neg_steps",
    "test_softmax_axis_1",
    "test_softplus",
    "test_spacetodepth_crd_mode_example",
    "test_split_variable_parts_2d_opset18",
    "test_tile",
    "test_transpose_all_permutations_4",
    "test_where_example",
    "test_xor_bcast4v4d",
]

REFUSED = {
    "test_training_dropout": "drops at random",
    "test_training_dropout_mask": "drops at random",
    "test_convtranspose_3d": "one or two spatial axes",
    "test_pow_types_int64_int64": "not computed in int64",
}


@pytest.fixture(scope="module")
def by_name():
    return {case[0]: case for case in cases()}


@pytest.mark.parametrize("name", PASSING)
def test_passes(by_name, name):
    outcome = judge(*by_name[name], platform())
    assert (outcome.kind, outcome.reason) == ("passed", "")


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_its_reason(by_name, name):
    outcome = judge(*by_name[name], platform())
    assert outcome.kind == "refused"
    assert REFUSED[name] in outcome.reason
