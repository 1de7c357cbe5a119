//! The documented walk-throughs, line by line.
seldon_e2e::transcripts! {
    "z1_sklearn": "Z1",
    "z2_tensorflow_without_config": "Z2",
    "z3_xgboost": "Z3",
    "z4_onnx": "Z4",
    "z5_lightgbm": "Z5",
    "z6_mlflow": "Z6",
    "z7_pytorch": "Z7",
    "k2_versions": "K2",
    "k10_explainer": "K10",
    "l19_explainers": "L19",
    "l23_text_generation": "L23",
    "l24_text_generation_of_ones_own": "L24",
}
